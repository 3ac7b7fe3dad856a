"""Evaluation of a split assert on the host, and messages about results of asserts."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from common.parsing import dotted_name
from evaluate.test_runner.asserts import AssertPlan, Placeholder, SourcedExpr, is_constant
from evaluate.test_runner.calls import CallResult, ChildCall
from evaluate.test_runner.child import MAX_VALUE_CHARACTERS
from evaluate.test_runner.host_functions import OpaqueArithmeticError, UnknownValueError, UnsupportedExprError
from evaluate.test_runner.interpreter import Interpreter
from evaluate.test_runner.result import (
    EXACT,
    MAX_MESSAGE_TEXT,
    ComparisonRules,
    TestResult,
    contrast,
    format_value,
    one_line,
    shorten,
)
from evaluate.test_runner.values import LargeValue, OpaqueValue, SubclassValue

# APPS's calls go through a helper in the test's set-up (tasks/problem.py), which messages leave out.
_APPS_CALL = re.compile(r"\b_apps_call\('(\w+)'(?:, )?")
_OPERATOR_PHRASES: dict[type[ast.cmpop], str] = {
    ast.Eq: "{}",
    ast.Is: "{}",
    ast.NotEq: "anything but {}",
    ast.IsNot: "anything but {}",
    ast.Lt: "less than {}",
    ast.LtE: "at most {}",
    ast.Gt: "more than {}",
    ast.GtE: "at least {}",
    ast.In: "one of {}",
    ast.NotIn: "none of {}",
}


@dataclass(frozen=True)
class AssertOutcome:
    """The evaluation of a split assert: whether it holds, and what it needed of the child.

    `error` is the exception that ended it, None if there was none. `used` are the indices of the expressions that it
    used; `missing` is the index of one that it would have used and that the child did not evaluate, None if there is
    none. `is_unknown` is True if only the child can evaluate the assert, with its expected values. `values` are the
    values, or the results that failed, of the parts that messages name, by their index.
    """

    holds: bool
    error: Exception | None = None
    used: frozenset[int] = frozenset()
    missing: int | None = None
    is_unknown: bool = False
    values: dict[int, Any] = field(default_factory=dict)


class _CallError(Exception):
    """The child has no value of an expression, because it raised an exception or ended."""

    def __init__(self, result: CallResult) -> None:
        super().__init__(result.error)
        self.result = result


class _MissingValueError(Exception):
    """The child did not evaluate the expression of that index."""


class _TemplateEvaluator(Interpreter):
    """Evaluator of a template with the results of its expressions; None stands for what the child did not evaluate."""

    def __init__(self, plan: AssertPlan, results: Sequence[CallResult | None], rules: ComparisonRules) -> None:
        super().__init__(plan.imports)
        self._plan, self._results, self._rules = plan, results, rules
        self._named = {id(node): at for at, node in enumerate(plan.sources)}
        self.used: set[int] = set()
        self.values: dict[int, Any] = {}

    def evaluate_special(self, node: ast.expr) -> Any:
        """Return the value of a placeholder or of an expression that messages name."""
        if not isinstance(node, Placeholder | SourcedExpr):
            return NotImplemented
        try:
            value = self._value_of_call(node) if isinstance(node, Placeholder) else self._value_of_part(node)
        except _CallError as error:
            self._note(node, error.result)
            raise
        except (UnsupportedExprError, _MissingValueError):
            raise
        except Exception as error:
            self._note(node, CallResult(error=f"{type(error).__name__}: {error}", status="error"))
            raise
        self._note(node, value)
        return value

    def _note(self, node: ast.expr, value: Any) -> None:
        if id(node) in self._named:
            self.values[self._named[id(node)]] = value

    def _value_of_call(self, node: Placeholder) -> Any:
        index = int(node.id)
        result = self._results[index]
        if result is None:
            raise _MissingValueError(index)
        self.used.add(index)
        if result.error:
            raise _CallError(result)
        return result.value

    def _value_of_part(self, node: SourcedExpr) -> Any:
        try:
            return self.evaluate(node.inner)
        except (UnsupportedExprError, OpaqueArithmeticError):
            return self._wider_value(node.wider)

    def _wider_value(self, placeholder: str | None) -> Any:
        """Return the value of the expression around a call that the child evaluated."""
        result = self._results[int(placeholder)] if placeholder is not None else None
        if result is None or result.wider is None:
            raise UnknownValueError("only the child has its value")
        if result.wider.error:
            raise _CallError(result.wider)
        return result.wider.value

    def compare(self, op: ast.cmpop, left: Any, right: Any, node: ast.Compare) -> Any:
        """Compute a comparison: `==` by the rules, `in` with the items of an object that the child listed."""
        if isinstance(op, ast.In | ast.NotIn) and isinstance(right, OpaqueValue):
            holder = node.comparators[node.ops.index(op)]
            result = self._results[int(holder.id)] if isinstance(holder, Placeholder) else None
            if result is None or result.wider is None or result.wider.error:
                raise UnknownValueError("only the child has its items")
            right = result.wider.value
        if (
            isinstance(op, ast.Eq | ast.NotEq)
            and len(node.ops) == 1
            and not (self._rules.is_exact and not self._plan.tolerance)
        ):
            value, expected = (left, right) if self._compares_call(node.left, node.comparators[0]) else (right, left)
            call = self._compares_call(node.left, node.comparators[0]) or self._compares_call(
                node.comparators[0], node.left
            )
            if call is not None:
                return self._rules.are_equal(value, expected, *call, self._plan.tolerance) is isinstance(op, ast.Eq)
        return super().compare(op, left, right, node)

    def _compares_call(self, side: ast.expr, other: ast.expr) -> tuple[str, list[Any]] | None:
        """Return function and arguments of the call on one side of a comparison with a constant; None for any other.

        Arguments that are no constants are left out.
        """
        if not isinstance(side, Placeholder) or not is_constant(other, self._imports):
            return None
        call = ast.parse(self._plan.expressions[int(side.id)].source, mode="eval").body
        if not isinstance(call, ast.Call):
            return "", []
        arguments = [
            Interpreter(self._imports).evaluate(each) for each in call.args if is_constant(each, self._imports)
        ]
        return dotted_name(call.func).rpartition(".")[2], arguments


def evaluate_assert(
    plan: AssertPlan, results: Sequence[CallResult | None], rules: ComparisonRules = EXACT
) -> AssertOutcome:
    """Evaluate a split assert with the results of its expressions. Never raises for any values."""
    evaluator = _TemplateEvaluator(plan, results, rules)
    holds, error, missing = False, None, None
    try:
        holds = bool(evaluator.evaluate(plan.template))
    except _MissingValueError as found:
        missing = found.args[0]
    except Exception as found:  # noqa: BLE001 - an exception of the child, or values that cannot be compared
        error = found
    is_unknown = isinstance(error, UnsupportedExprError)
    return AssertOutcome(holds, error, frozenset(evaluator.used), missing, is_unknown, evaluator.values)


MAX_REPEATS = 3


def run_split_asserts(
    plans: Sequence[AssertPlan], run: Callable[[list[ChildCall]], list[CallResult]], rules: ComparisonRules = EXACT
) -> list[tuple[list[CallResult | None], AssertOutcome]]:
    """Run the expressions of split asserts, in order and in one child, and evaluate the asserts.

    `run` runs calls in a fresh child. Python does not come to the right side of an `or` whose left side holds, so an
    optional expression is left out at first. If it turns out that an assert needs it, or that it did not need another
    one, all run once more with what is then known, so that each sees the state that it sees in Python.
    """
    chosen = [frozenset(at for at, each in enumerate(plan.expressions) if not each.optional) for plan in plans]
    outcomes = _run_once(plans, chosen, run, rules)
    for _ in range(MAX_REPEATS):
        needed = [
            outcome.used if outcome.missing is None else outcome.used | {outcome.missing} for _, outcome in outcomes
        ]
        if needed == chosen:
            break
        chosen = needed
        outcomes = _run_once(plans, chosen, run, rules)
    return outcomes


def _run_once(
    plans: Sequence[AssertPlan],
    chosen: Sequence[frozenset[int]],
    run: Callable[[list[ChildCall]], list[CallResult]],
    rules: ComparisonRules,
) -> list[tuple[list[CallResult | None], AssertOutcome]]:
    calls = [
        ChildCall(
            plan.setup if at == min(indices) else "", plan.expressions[at].source, None, plan.expressions[at].wider
        )
        for plan, indices in zip(plans, chosen, strict=True)
        for at in sorted(indices)
    ]
    answers = iter(run(calls))
    outcomes = []
    for plan, indices in zip(plans, chosen, strict=True):
        results = [next(answers) if at in indices else None for at in range(len(plan.expressions))]
        outcomes.append((results, evaluate_assert(plan, results, rules)))
    return outcomes


def explain_assert(
    plan: AssertPlan, results: Sequence[CallResult | None], outcome: AssertOutcome | None = None
) -> TestResult:
    """Build the result of a split assert from the results of its expressions."""
    outcome = outcome or evaluate_assert(plan, results)
    values = [outcome.values[at] for at in sorted(outcome.values)]
    called = ", ".join(readable_source(source) for source in plan.source_expressions)
    expected = _expected_text(plan.template, plan)
    got = ", ".join(_value_text(value) for value in values if not isinstance(value, CallResult))
    failed = next((value for value in values if isinstance(value, CallResult)), None)
    failed = failed or next((each for each in results if each is not None and each.error), None)
    status, reason = "ok", ""
    if not outcome.holds and failed is not None:
        status = failed.status
        reason = failed.error if failed.is_load_error else f"{one_line(called)} {joined_error(failed)}"
    elif not outcome.holds:
        reason = _mismatch(plan, values, called, expected) + _error_text(outcome.error)
    return TestResult(
        passed=outcome.holds,
        kind="call",
        given=shorten(called),
        expected=shorten(expected or readable_source(plan.source)),
        got=shorten(got),
        reason=reason,
        status=status,
        protected=plan.is_protected,
        seconds=sum(each.seconds for each in results if each is not None),
    )


def _mismatch(plan: AssertPlan, values: Sequence[Any], called: str, expected: str) -> str:
    """Return how the values differ from what the assert expects."""
    large = next((value for value in values if isinstance(value, LargeValue)), None)
    if large is not None:
        return f"{one_line(called)} returned more than {MAX_VALUE_CHARACTERS} characters" + (
            f", expected {one_line(expected)}" if expected and len(expected) < MAX_MESSAGE_TEXT else ""
        )
    texts = [_value_text(value) for value in values]
    if not expected:
        return f"{one_line(readable_source(plan.source))} does not hold: {one_line(called)} gave " + ", ".join(
            contrast(text, "")[0] for text in texts
        )
    got, wanted = contrast(", ".join(texts), expected)
    if got == wanted and len(values) == 1:
        got += f" ({_type_name(values[0])})"
    return f"{one_line(called)} gave {got}, expected {wanted}"


def _value_text(value: Any) -> str:
    return format_value(value)


def _type_name(value: Any) -> str:
    return value.type_name if isinstance(value, SubclassValue | OpaqueValue) else type(value).__name__


def _error_text(error: Exception | None) -> str:
    return "" if error is None else f" ({type(error).__name__}: {one_line(str(error))})"


def explain_whole_assert(plan: AssertPlan, result: CallResult, unprotected_reason: str = "") -> TestResult:
    """Build the result of an assert that ran as a whole in the child."""
    note = f"the whole assert ran in the sandbox, unprotected, because {unprotected_reason or plan.unprotected_reason}"
    statement = one_line(readable_source(plan.statement))
    failed = result.error if result.is_load_error else f"{statement} {joined_error(result)}"
    if result.error.startswith("AssertionError"):
        failed = f"{statement} does not hold"
    return TestResult(
        passed=not result.error,
        kind="assert",
        given=shorten(readable_source(plan.statement)),
        expected="no error",
        got="" if result.error else "no error",
        reason=f"{failed} ({note})" if result.error else "",
        status=result.status if not result.error.startswith("AssertionError") else "ok",
        protected=False,
        seconds=result.seconds,
    )


def readable_source(source: str) -> str:
    """Return a test's source without internal helpers."""
    return _APPS_CALL.sub(r"\1(", source)


def joined_error(result: CallResult) -> str:
    """Return the error as the end of 'f(2) raised NameError: ...' or 'f(2) stopped after 5 s (time limit)'."""
    if result.status == "error" and re.match(r"[A-Za-z_]\w*(?::| \(line|$)", result.error):
        return f"raised {result.error}"
    return result.error


def _expected_text(template: ast.expr, plan: AssertPlan) -> str:
    """Return what a single comparison or truth test expects; '' for more complex asserts."""
    match template:
        case Placeholder() | SourcedExpr():
            return "a true value"
        case ast.UnaryOp(op=ast.Not(), operand=Placeholder() | SourcedExpr()):
            return "a false value"
        case ast.Compare(left=Placeholder() | SourcedExpr(), ops=[op], comparators=[constant]) if is_constant(
            constant, plan.imports
        ):
            return _expected_constant(op, constant, plan)
        case ast.Compare(
            left=constant, ops=[ast.Eq() | ast.Is() | ast.NotEq() as op], comparators=[Placeholder() | SourcedExpr()]
        ):
            return _expected_constant(op, constant, plan) if is_constant(constant, plan.imports) else ""
    return ""


def _expected_constant(op: ast.cmpop, constant: ast.expr, plan: AssertPlan) -> str:
    value = Interpreter(plan.imports).evaluate(constant)
    if isinstance(op, ast.In) and isinstance(value, list) and 1 <= len(value) <= 2:
        return " or ".join(format_value(item) for item in value)
    return _OPERATOR_PHRASES[type(op)].format(format_value(value))
