"""Results of asserts in words: what was called, what it gave, what was expected."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any

from evaluate.checking.asserts import AssertPlan
from evaluate.checking.calls import CallResult
from evaluate.checking.constants import Placeholder, evaluate_expr, is_constant
from evaluate.checking.result import TestResult, one_line, shorten
from evaluate.checking.values import format_value

# APPS's calls go through a function of the test's set-up (tasks/datasets/apps_tests.py); a person need not see it.
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


def explain_assert(plan: AssertPlan, results: Sequence[CallResult]) -> TestResult:
    """The result of a test that was taken apart, from what its holes gave."""
    seconds = sum(each.seconds for each in results)
    called = ", ".join(readable_source(source) for source in plan.source_expressions)
    expected = _expected_text(plan.template)
    got = ", ".join(format_value(each.value) for each in results if not each.error)
    fault = _failure_reason(plan, results)
    reason, status = "", "ok"
    if fault is not None:
        first = next((each for each in results if each.error), None)
        if first is not None:
            status = first.status
            reason = first.error if first.is_load_error else f"{one_line(called)} {_joined_error(first)}"
        elif expected:
            reason = f"{one_line(called)} gave {one_line(got)}, expected {one_line(expected)}"
        else:
            reason = f"{one_line(readable_source(plan.source))} does not hold: {one_line(called)} gave {one_line(got)}"
        reason += fault
    return TestResult(
        passed=fault is None,
        kind="call",
        given=shorten(called),
        expected=shorten(expected or readable_source(plan.source)),
        got=shorten(got),
        reason=reason,
        status=status,
        seconds=seconds,
    )


def explain_whole_assert(plan: AssertPlan, result: CallResult) -> TestResult:
    """The result of a test that ran whole inside of the child."""
    note = f"the whole assert ran in the sandbox, unprotected, because {plan.unprotected_reason}"
    statement = one_line(readable_source(plan.whole_statement))
    failed = result.error if result.is_load_error else f"{statement} {_joined_error(result)}"
    if result.error.startswith("AssertionError"):
        failed = f"{statement} does not hold"
    return TestResult(
        passed=not result.error,
        kind="assert",
        given=shorten(readable_source(plan.whole_statement)),
        expected="no error",
        got="" if result.error else "no error",
        reason=f"{failed} ({note})" if result.error else "",
        status=result.status if not result.error.startswith("AssertionError") else "ok",
        protected=False,
        seconds=result.seconds,
    )


def readable_source(source: str) -> str:
    """A test's source as a person would write it."""
    return _APPS_CALL.sub(r"\1(", source)


def _failure_reason(plan: AssertPlan, results: Sequence[CallResult]) -> str | None:
    """None where the assert holds; else what to add to the sentence about it."""
    holes: Mapping[str, Any] = {str(at): each.value for at, each in enumerate(results) if not each.error}
    try:
        return None if evaluate_expr(plan.template, holes) else ""
    except Exception as fault:  # noqa: BLE001 - a hole without a value, or values that cannot be compared
        return "" if len(holes) < len(results) else f" ({type(fault).__name__}: {one_line(str(fault))})"


def _joined_error(result: CallResult) -> str:
    """The fault of a call behind the call: 'f(2) raised NameError: ...', 'f(2) stopped after 5 s (time limit)'."""
    if result.status == "error" and re.match(r"[A-Za-z_]\w*(?::| \(line|$)", result.error):
        return f"raised {result.error}"
    return result.error


def _expected_text(template: ast.expr) -> str:
    """What a plain comparison or question wants, '' for asserts that say more than that."""
    match template:
        case Placeholder():
            return "a true value"
        case ast.UnaryOp(op=ast.Not(), operand=Placeholder()):
            return "a false value"
        case ast.Compare(left=Placeholder(), ops=[op], comparators=[constant]) if is_constant(constant):
            return _expected_constant(op, constant)
        case ast.Compare(left=constant, ops=[ast.Eq() | ast.Is() | ast.NotEq() as op], comparators=[Placeholder()]):
            return _expected_constant(op, constant) if is_constant(constant) else ""
    return ""


def _expected_constant(op: ast.cmpop, constant: ast.expr) -> str:
    value = evaluate_expr(constant)
    if isinstance(op, ast.In) and isinstance(value, list) and 1 <= len(value) <= 2:
        return " or ".join(format_value(each) for each in value)
    return _OPERATOR_PHRASES[type(op)].format(format_value(value))
