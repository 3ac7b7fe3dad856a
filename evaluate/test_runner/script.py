"""Scripts of pasted tests: run each line once, in its order, and compare what it displays or raises.

Outcomes of statements: compare what a child displayed or raised with what the test expects, as doctest does. The child
sends the displayed text, or the exception's types and message; the expected ones stay on the host. Displayed text is
compared by doctest's own checker. A value that is a literal may also differ in the order of a set or a dict.

All steps and calls of a script run in one child. Its unprotected tests would bring expected values into that child, so
they are left out there and a second child runs the whole script. A protected test then passes if it holds in both,
and without protection if it holds in the second alone, because it depends on what an unprotected test did.

As in Python, an error of a step ends the script, or the test function whose step it is; a failed assert does not, so
that each test has a result.
"""

from __future__ import annotations

import ast
import doctest
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from common.parsing import parse_python
from evaluate.sandbox.sandbox import Sandbox
from evaluate.sandbox.spec import Limits
from evaluate.test_runner.asserts import AssertPlan, BrokenTestError, plan_assert
from evaluate.test_runner.calls import INVALID_RESULT_MESSAGE, CallResult, ChildCall, run_calls
from evaluate.test_runner.explain import evaluate_assert, explain_assert, explain_whole_assert, joined_error
from evaluate.test_runner.result import EXACT, ComparisonRules, TestResult, one_line, shorten
from evaluate.test_runner.setup_code import UnprotectedAssert, analyze_setup
from tasks.problem import AssertTest, Outcome, ScriptTest, Step

MAX_LITERAL = 20_000  # characters; longer text is compared as text only
UNKNOWN_VALUE = "it uses a value of which only the sandbox knows all"
OPTIONAL_CALL = "Python calls the right side of its 'or' only if the left one is false"


def is_protected_outcome(test: ScriptTest) -> bool:
    """Return whether no expected value enters the child: its statements compare nothing themselves."""
    return not any(isinstance(node, ast.Assert) for node in ast.walk(parse_python(test.code)))


def explain_outcome(test: ScriptTest, result: CallResult) -> TestResult:
    """Build the result of a test with an outcome from what the child sent."""
    outcome = test.outcome or Outcome()
    expected = _expected_error(outcome) if outcome.error else outcome.output.removesuffix("\n")
    called = one_line(_called(test.code))
    got, reason, status = "", "", "ok"
    if result.error:
        status = result.status
        reason = result.error if result.is_load_error else f"{called} {joined_error(result)}"
    else:
        match result.value:
            case (str(text), tuple(names), str(message), str(description)):
                got = description or text.removesuffix("\n")
                reason = _difference(outcome, text, names, message)
                if reason and description:
                    reason = f"{called} raised {one_line(description)}, expected {one_line(expected)}"
                elif reason:
                    reason = f"{called} {reason}, expected {one_line(expected)}"
            case _:
                status, reason = "error", f"{called} {INVALID_RESULT_MESSAGE}"
    return TestResult(
        passed=not reason,
        kind="call",
        given=shorten(_called(test.code)),
        expected=shorten(expected),
        got=shorten(got),
        reason=reason,
        status=status,
        protected=is_protected_outcome(test),
        seconds=result.seconds,
    )


def _called(code: str) -> str:
    """Return the statements without a `try` around them that only stores the exception for later tests."""
    match parse_python(code).body:
        case [ast.Try(body=body, handlers=[ast.ExceptHandler(body=[*_, ast.Raise(exc=None)])])]:
            return "\n".join(map(ast.unparse, body))
    return code


def _expected_error(outcome: Outcome) -> str:
    name = outcome.error.replace("|", " or ")
    if outcome.message:
        return f"{name}: {outcome.message}"
    return f"{name} with the message part {outcome.match!r}" if outcome.match else name


def _difference(outcome: Outcome, text: str, names: tuple[Any, ...], message: str) -> str:
    """Return '' for the expected outcome, else what happened in its stead."""
    if outcome.error:
        if not names:
            return "raised nothing"
        if not set(outcome.error.split("|")) & set(names):
            return "raised another exception"
        if outcome.message is not None and not _exact(outcome, outcome.message, message):
            return "raised another message"
        return "" if outcome.match in message else "raised another message"
    if names:
        return "raised"
    if _text_matches(outcome, text):
        return ""
    return f"displayed {one_line(text)}" if text.strip() else "displayed nothing"


def _exact(outcome: Outcome, wanted: str, got: str) -> bool:
    if "IGNORE_EXCEPTION_DETAIL" in outcome.options:
        return True
    return doctest.OutputChecker().check_output(_lines(wanted), _lines(got), _flags(outcome, wanted))


def _text_matches(outcome: Outcome, text: str) -> bool:
    wanted, got = _lines(outcome.output), _lines(text)
    if doctest.OutputChecker().check_output(wanted, got, _flags(outcome, wanted)):
        return True
    if max(len(wanted), len(got)) > MAX_LITERAL:
        return False
    try:
        return _order_free(ast.literal_eval(wanted.strip())) == _order_free(ast.literal_eval(got.strip()))
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return False


def _lines(text: str) -> str:
    """Return the text without blanks at the ends of its lines and without empty lines at its end."""
    lines = "\n".join(line.rstrip() for line in text.split("\n")).rstrip("\n")
    return f"{lines}\n" if lines else ""


def _flags(outcome: Outcome, wanted: str) -> int:
    flags = 0
    for name in outcome.options:
        flags |= doctest.OPTIONFLAGS_BY_NAME.get(name, 0)
    # `3.14...` stands for more digits also where the directive was not copied.
    return flags | doctest.ELLIPSIS if "..." in wanted and wanted.strip() != "..." else flags


def _order_free(value: Any) -> Any:
    """Return the value with the types of all its parts, independent of the order of sets and dicts."""
    match value:
        case dict():
            pairs = [(_order_free(key), _order_free(item)) for key, item in value.items()]
            return "dict", tuple(sorted(pairs, key=repr))
        case set() | frozenset():
            return type(value).__name__, tuple(sorted((_order_free(item) for item in value), key=repr))
        case list() | tuple():
            return type(value).__name__, tuple(_order_free(item) for item in value)
    return type(value).__name__, repr(value)


@dataclass(frozen=True)
class _PlannedTest:
    """A test with its plan; without one it has an outcome. `whole_reason` says why the assert runs whole, '' if not."""

    test: ScriptTest
    plan: AssertPlan | None
    whole_reason: str = ""

    @property
    def protected(self) -> bool:
        if self.plan is not None:
            return not self.whole_reason
        return is_protected_outcome(self.test)

    def calls(self) -> Iterator[ChildCall]:
        """Yield the calls of the test itself, after those of its steps."""
        if self.plan is None:
            yield ChildCall("", self.test.code, scope=self.test.scope, mode="outcome")
        elif self.whole_reason:
            yield ChildCall("", self.plan.statement, secrets.token_hex(16), scope=self.test.scope)
        else:
            for at, each in enumerate(self.plan.expressions):
                setup = "" if at else self.plan.setup
                yield ChildCall(setup, each.source, wider=each.wider, scope=self.test.scope)


def run_script(
    code: str,
    tests: Sequence[ScriptTest],
    sandbox: Sandbox,
    limits: Limits,
    preamble: str = "",
    rules: ComparisonRules = EXACT,
) -> list[TestResult]:
    """Run the tests as one script after `code` and return their results in order. Never raises for any code."""
    planned: list[_PlannedTest] = []
    broken: dict[int, str] = {}
    lines: list[Step] = []  # the steps, and the tests themselves, which may change values too
    for at, test in enumerate(tests):
        lines += test.steps
        earlier = "\n".join(line.source for line in lines if line.scope in ("", test.scope))
        lines.append(Step(test.code, test.scope))
        try:
            planned.append(_plan(test, earlier))
        except BrokenTestError as error:
            broken[at] = str(error)
            planned.append(_PlannedTest(replace(test, code="pass"), None))
    run = _ScriptRun(code, planned, sandbox, limits, preamble, rules)
    results, unknown = run.results(include_unprotected=False)
    if unknown:
        planned = [
            replace(each, whole_reason=UNKNOWN_VALUE) if at in unknown else each for at, each in enumerate(planned)
        ]
        run = replace(run, planned=planned)
        results, _ = run.results(include_unprotected=False)
    if not all(each.protected for each in planned):
        whole, _ = run.results(include_unprotected=True)
        results = [_combine(*pair, protected=p.protected) for *pair, p in zip(results, whole, planned, strict=True)]
    for at, reason in broken.items():
        given = shorten(tests[at].code)
        results[at] = TestResult(False, "assert", given, "no error", "", reason, "refused", protected=False)
    return results


def _plan(test: ScriptTest, earlier: str) -> _PlannedTest:
    if test.outcome is not None:
        return _PlannedTest(test, None)
    plan = plan_assert(AssertTest(test.code), earlier_setup=earlier)
    is_optional = any(expression.optional for expression in plan.expressions)
    return _PlannedTest(test, plan, plan.unprotected_reason or (OPTIONAL_CALL if is_optional else ""))


def _combine(first: TestResult, second: TestResult, *, protected: bool) -> TestResult:
    """Return the result of a test in the whole script, protected if it is the same without unprotected tests."""
    if not protected:
        return second
    return first if first.passed == second.passed else replace(second, protected=False)


@dataclass(frozen=True)
class _ScriptRun:
    """A script with what runs it."""

    code: str
    planned: Sequence[_PlannedTest]
    sandbox: Sandbox
    limits: Limits
    preamble: str
    rules: ComparisonRules

    def results(self, *, include_unprotected: bool) -> tuple[list[TestResult], set[int]]:
        """Run the script in a child; return the results, and the tests whose values the host does not know.

        An unprotected test has a meaningless result where it is not included. Steps that only hold constants for the
        comparisons on the host are left out then, so that the child does not know these.
        """
        calls: list[ChildCall] = []
        needed, is_protected = ({}, True) if include_unprotected else _needed_steps(self.planned)
        ends: list[tuple[int, int]] = []  # of each test: the number of calls up to its steps' end, and to its own end
        for each in self.planned:
            calls += [
                ChildCall("", step.source if needed.get(id(step), True) else "pass", scope=step.scope, mode="step")
                for step in each.test.steps
            ]
            steps_end = len(calls)
            if include_unprotected or each.protected:
                calls += each.calls()
            ends.append((steps_end, len(calls)))
        results = run_calls(self.code, calls, self.sandbox, self.limits, self.preamble, stateful=True)
        reported: list[TestResult] = []
        ended: dict[str, str] = {}  # scopes that an error of a step ended, with the message
        unknown: set[int] = set()
        start = 0
        for at, (each, (steps_end, end)) in enumerate(zip(self.planned, ends, strict=True)):
            failed = next(
                (
                    (step, result)
                    for step, result in zip(each.test.steps, results[start:steps_end], strict=True)
                    if result.error
                ),
                None,
            )
            own = results[steps_end:end]
            start = end
            is_split = own and failed is None and each.plan is not None and not each.whole_reason
            if is_split and each.plan is not None and evaluate_assert(each.plan, own, self.rules).is_unknown:
                unknown.add(at)
            result = self._explain(each, own, failed, ended) if own else _not_run(each, "", "ok")
            reported.append(result if is_protected else replace(result, protected=False))
        return reported, unknown

    def _explain(
        self,
        each: _PlannedTest,
        own: Sequence[CallResult],
        failed: tuple[Step, CallResult] | None,
        ended: dict[str, str],
    ) -> TestResult:
        test = each.test
        earlier = ended.get("") or ended.get(test.scope)
        if earlier and test.outcome is None:
            return _not_run(each, earlier, "error")
        if failed is not None:
            step, error = failed
            if error.is_load_error:
                return _not_run(each, error.error, error.status)
            message = f"{one_line(step.source)} {joined_error(error)}"
            ended[step.scope] = f"was not reached, because {message}"
            return _not_run(each, message, error.status)
        if each.plan is None:
            return explain_outcome(test, own[0])
        if each.whole_reason:
            return explain_whole_assert(each.plan, own[0], each.whole_reason)
        return explain_assert(each.plan, own, evaluate_assert(each.plan, own, self.rules))


def _needed_steps(planned: Sequence[_PlannedTest]) -> tuple[dict[int, bool], bool]:
    """Return which steps the child needs for the protected tests, by identity, and whether none holds a constant.

    A constant counts unless it is an argument of the candidate's own calls.
    """
    steps = [step for each in planned for step in each.test.steps]
    try:
        setup = analyze_setup("\n".join(step.source for step in steps))
        counts = [len(parse_python(step.source).body) for step in steps]
        calls, others = [], []
        for each in planned:
            if each.plan is None:
                body = parse_python(each.test.code)
                calls += [node for node in ast.walk(body) if isinstance(node, ast.expr)]
            elif not each.whole_reason:
                calls += [parse_python(expression.source, "eval").body for expression in each.plan.expressions]
                others += [parse_python(e.wider, "eval").body for e in each.plan.expressions if e.wider]
    except (UnprotectedAssert, SyntaxError, ValueError, MemoryError, RecursionError):
        return {}, False
    if sum(counts) != len(setup.statements):
        return {}, False
    statements, is_protected = setup.needed_statements(calls, others)
    needed, start = {}, 0
    for step, count in zip(steps, counts, strict=True):
        needed[id(step)] = any(statements[start : start + count])
        start += count
    return needed, is_protected


def _not_run(each: _PlannedTest, reason: str, status: str) -> TestResult:
    given = shorten(each.plan.source if each.plan is not None else each.test.code)
    return TestResult(False, "call", given, "", "", reason, status, protected=each.protected)
