"""Call batching, explanations.

Runs calls of a candidate's code in as few children as is safe, and reads what they sent.

One child runs the code once and then all calls. Where it ends early (a call that hangs, crashes or ends the process),
what was settled stays, and a new child goes on: with the call itself when others ran before it in the same child, as
they may have used up its time or memory, else behind it. So each child settles one call at least.

Results of asserts in words: what was called, what it gave, what was expected.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from evaluate.sandbox.sandbox import Sandbox
from evaluate.sandbox.types import ExecutionResult, Limits, Program
from evaluate.test_runner import child
from evaluate.test_runner.asserts import AssertPlan, Placeholder, evaluate_expr, is_constant
from evaluate.test_runner.result import (
    InvalidValueError,
    TestResult,
    decode_value,
    end_reason,
    format_megabytes,
    format_value,
    one_line,
    parse_json_line,
    shorten,
    strip_python_path,
)

FAIR_TIME_FRACTION = 0.2  # of the time limit: with less used by earlier calls, a call that hangs had enough of it
NO_ANSWER_MESSAGE = "ended before it answered"
INVALID_RESULT_MESSAGE = "sent what is no result"


@dataclass(frozen=True)
class ChildCall:
    """An expression (or, with a token, a statement) that a child evaluates after `setup`."""

    setup: str
    source: str
    token: str | None = None


@dataclass(frozen=True)
class CallResult:
    """What one call gave: a value, or the fault that kept it from giving one, as part of a sentence.

    `alone` is True where the fault is the code's own, before any call.
    """

    value: Any = None
    error: str = ""
    status: str = "ok"
    seconds: float = 0.0
    is_load_error: bool = False


def run_calls(
    code: str, calls: Sequence[ChildCall], sandbox: Sandbox, limits: Limits, preamble: str = ""
) -> list[CallResult]:
    """What each call gave, in their order; `head` runs before the code. Never raises for any code."""
    settled: dict[int, CallResult] = {}
    while len(settled) < len(calls):
        pending = range(len(settled), len(calls))
        outcome = sandbox.run(_child_program(code, preamble, calls, pending, limits))
        reader = _ChildOutput(pending, calls, outcome, limits)
        settled.update(reader.results)
        if reader.load_error is not None:
            settled.update(dict.fromkeys(pending, reader.load_error))
        elif not reader.loaded:
            fault = _child_ended_result(outcome, limits)
            settled.update(dict.fromkeys(pending, replace(fault, is_load_error=True)))
        elif len(settled) < len(calls) and _is_culprit(reader, outcome, limits):
            settled[len(settled)] = (
                CallResult(error=INVALID_RESULT_MESSAGE, status="error")
                if reader.malformed
                else _child_ended_result(outcome, limits)
            )
    return [settled[at] for at in range(len(calls))]


def _child_program(code: str, preamble: str, calls: Sequence[ChildCall], pending: range, limits: Limits) -> Program:
    listed = [(at, calls[at].setup, calls[at].source, calls[at].token) for at in pending]
    # In ASCII, so that any text at all reaches the child's compiler, which says what is wrong with it.
    return Program(f"{_child_source()}\n\nrun_child({code!a}, {listed!a}, {preamble!a})\n", limits=limits)


@cache
def _child_source() -> str:
    return inspect.getsource(child)


def _child_ended_result(result: ExecutionResult, limits: Limits) -> CallResult:
    """The fault of a call in which, or before which, the whole child ended."""
    if result.status == "ok":
        return CallResult(error=NO_ANSWER_MESSAGE, status="error", seconds=result.seconds)
    return CallResult(error=end_reason(result, limits), status=result.status, seconds=result.seconds)


def _is_culprit(reader: _ChildOutput, result: ExecutionResult, limits: Limits) -> bool:
    """Whether the call that has no result had a child to itself, or as good as."""
    if not reader.results or reader.malformed or result.status == "refused":
        return True
    earlier = sum(given.seconds for given in reader.results.values())
    return result.status == "timeout" and earlier < FAIR_TIME_FRACTION * limits.wall_seconds


class _ChildOutput:
    """Reads the lines of one child. They must come as evaluate/test_runner/child.py says; else the rest is not believed.

    A candidate can write such lines itself. Then they are its answers: it knows no expected value to write there.
    """

    def __init__(self, pending: range, calls: Sequence[ChildCall], result: ExecutionResult, limits: Limits) -> None:
        self.results: dict[int, CallResult] = {}
        self.loaded = False
        self.malformed = False
        self.load_error: CallResult | None = None
        self._calls = calls
        self._max_seconds = result.seconds
        self._memory_message = f"needs more than {format_megabytes(limits.memory_bytes)}"
        lines = result.stdout.split("\n")[:-1]  # an unfinished line is none
        try:
            self._parse([parse_json_line(line) for line in lines[: 2 * len(pending) + 2]], pending)
        except (InvalidValueError, TypeError, ValueError, LookupError):
            self.malformed = True

    def _parse(self, lines: list[Any], pending: range) -> None:
        if not lines:
            return
        if lines[0] != ["loaded"]:
            if lines[0][:2] == ["error", -1]:
                self.load_error = replace(self._parse_result(lines[0]), is_load_error=True)
            return
        self.loaded = True
        for at, begin, result in zip(pending, lines[1::2], lines[2::2], strict=False):
            if begin != ["begin", at] or result[1] != at:
                raise InvalidValueError("out of order")
            self.results[at] = self._parse_result(result)

    def _parse_result(self, result: list[Any]) -> CallResult:
        said, at, seconds, *content = result
        seconds = min(max(float(seconds), 0.0), self._max_seconds)
        if said == "error":
            status, fault = content
            if status == "memory":
                return CallResult(error=self._memory_message, status="memory", seconds=seconds)
            return CallResult(error=strip_python_path(str(fault)), status="error", seconds=seconds)
        (value,) = content
        token = self._calls[at].token
        if said == "value" and token is None:
            return CallResult(decode_value(value), seconds=seconds)
        if said == "held" and token is not None and value == token:
            return CallResult(True, seconds=seconds)
        raise InvalidValueError("no result")


# APPS's calls go through a function of the test's set-up (tasks/datasets/apps.py); a person need not see it.
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
