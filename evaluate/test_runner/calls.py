"""Calls of a candidate's functions in sandbox children, and messages about their results.

One child runs the code once and then all calls. If it ends early (a call that hangs, crashes or ends the process),
results that it sent are used and a new child continues. It repeats the failed call if other calls ran before it in
the same child, as these may have used up its time or memory; otherwise it continues after that call. So each child
settles at least one call. Calls that depend on the state that earlier ones left (a script of pasted tests) are
repeated after these.
"""

from __future__ import annotations

import ast
import inspect
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

from common.format import format_bytes
from evaluate.sandbox.sandbox import Sandbox
from evaluate.sandbox.types import ExecutionResult, Limits, Program, require_run
from evaluate.test_runner import child
from evaluate.test_runner.asserts import AssertPlan, Placeholder, evaluate_expr, is_constant
from evaluate.test_runner.result import (
    InvalidValueError,
    TestResult,
    decode_value,
    end_reason,
    format_value,
    one_line,
    parse_json_line,
    shorten,
    strip_python_path,
)

FAIR_TIME_FRACTION = 0.2  # of the time limit; a call that hangs is not repeated if earlier calls used less than this
MAX_REPEATED_TIMES = 3  # the time limit, for the calls before one that a new child runs again
NOT_RUN_MESSAGE = "was not run, because the lines before it took too long"
NO_ANSWER_MESSAGE = "ended before it answered"
INVALID_RESULT_MESSAGE = "sent an invalid result"


@dataclass(frozen=True)
class ChildCall:
    """An expression (with a token: a statement) that a child evaluates after `setup`.

    In the mode `step` it is statements without a result, in the mode `outcome` statements whose displayed text or
    exception is the result (see child.py). `scope` is that of tasks.problem.Step.
    """

    setup: str
    source: str
    token: str | None = None
    scope: str = ""
    mode: Literal["value", "step", "outcome"] = "value"


@dataclass(frozen=True)
class CallResult:
    """The value of one call, or an error message, worded as part of a sentence.

    `is_load_error` is True if the code itself failed, before any call.
    """

    value: Any = None
    error: str = ""
    status: str = "ok"
    seconds: float = 0.0
    is_load_error: bool = False


def run_calls(
    code: str,
    calls: Sequence[ChildCall],
    sandbox: Sandbox,
    limits: Limits,
    preamble: str = "",
    *,
    stateful: bool = False,
) -> list[CallResult]:
    """Run the calls and return their results in order; `preamble` runs before the code. Never raises for any code.

    Where they are `stateful`, each call finds the state that all earlier ones left: a child that continues runs the
    earlier calls again, except one that ended its child, and their first results count.
    """
    settled: dict[int, CallResult] = {}
    ended: set[int] = set()  # calls that ended a child
    while len(settled) < len(calls):
        first = len(settled)
        repeated = [at for at in range(first) if at not in ended] if stateful else []
        seconds = sum(settled[at].seconds for at in repeated)
        if seconds > MAX_REPEATED_TIMES * limits.wall_seconds:
            settled.update(dict.fromkeys(range(first, len(calls)), CallResult(error=NOT_RUN_MESSAGE, status="timeout")))
            break
        pending = [*repeated, *range(first, len(calls))]
        program = _child_program(code, preamble, calls, pending, _extend_time(limits, seconds))
        execution = require_run(sandbox.run(program))
        reader = _ChildOutput(pending, calls, execution, limits)
        settled = {**reader.results, **settled}
        if reader.load_error is not None:
            settled.update({at: reader.load_error for at in pending if at not in settled})
        elif not reader.loaded:
            failure = replace(_child_ended_result(execution, limits), is_load_error=True)
            settled.update({at: failure for at in pending if at not in settled})
        elif len(settled) < len(calls) and (len(settled) == first or _must_settle(reader, execution, limits, stateful)):
            ended.add(len(settled))
            settled[len(settled)] = (
                CallResult(error=INVALID_RESULT_MESSAGE, status="error")
                if reader.malformed
                else _child_ended_result(execution, limits)
            )
    return [settled[at] for at in range(len(calls))]


def _extend_time(limits: Limits, repeated_seconds: float) -> Limits:
    """Return limits with time for the calls that run again, unless these take little of it."""
    if repeated_seconds < FAIR_TIME_FRACTION * limits.wall_seconds:
        return limits
    more = math.ceil(2 * repeated_seconds)
    return replace(limits, wall_seconds=limits.wall_seconds + more, cpu_seconds=limits.cpu_seconds + more)


def _child_program(
    code: str, preamble: str, calls: Sequence[ChildCall], pending: Sequence[int], limits: Limits
) -> Program:
    chosen = [(at, calls[at]) for at in pending]
    listed = [(at, call.setup, call.source, call.token, call.scope, call.mode) for at, call in chosen]
    # ASCII literals, so that any text reaches the child's compiler, which reports what is wrong with it.
    return Program(f"{_child_source()}\n\nrun_child({code!a}, {listed!a}, {preamble!a})\n", limits=limits)


@cache
def _child_source() -> str:
    return inspect.getsource(child)


def _child_ended_result(result: ExecutionResult, limits: Limits) -> CallResult:
    """Return the failed result of a call during which, or before which, the child ended."""
    if result.status == "ok":
        return CallResult(error=NO_ANSWER_MESSAGE, status="error", seconds=result.seconds)
    return CallResult(error=end_reason(result, limits), status=result.status, seconds=result.seconds)


def _must_settle(reader: _ChildOutput, result: ExecutionResult, limits: Limits, stateful: bool) -> bool:
    """Return whether the call without a result has failed for good: earlier calls in its child did not affect it.

    Where calls are stateful, the earlier ones belong to it, so that only their time is no failure of its own.
    """
    if not reader.results or reader.malformed or result.status == "refused":
        return True
    if stateful and result.status != "timeout":
        return True
    earlier = sum(call.seconds for call in reader.results.values())
    return result.status == "timeout" and earlier < FAIR_TIME_FRACTION * limits.wall_seconds


class _ChildOutput:
    """Parser of the lines of one child (see child.py). After an invalid line the rest is ignored.

    A candidate can write such lines itself. They then count as its results, which is safe: it knows no expected value.
    """

    def __init__(
        self, pending: Sequence[int], calls: Sequence[ChildCall], result: ExecutionResult, limits: Limits
    ) -> None:
        self.results: dict[int, CallResult] = {}
        self.loaded = False
        self.malformed = False
        self.load_error: CallResult | None = None
        self._calls = calls
        self._max_seconds = result.seconds
        self._memory_message = f"needs more than {format_bytes(limits.memory_bytes, 1024)}"
        lines = result.stdout.split("\n")[:-1]  # drops an unfinished line
        try:
            self._parse([parse_json_line(line) for line in lines[: 2 * len(pending) + 2]], pending)
        except (InvalidValueError, TypeError, ValueError, LookupError):
            self.malformed = True

    def _parse(self, lines: list[Any], pending: Sequence[int]) -> None:
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
        event, index, seconds, *content = result
        seconds = min(max(float(seconds), 0.0), self._max_seconds)
        if event == "error":
            status, error = content
            if status == "memory":
                return CallResult(error=self._memory_message, status="memory", seconds=seconds)
            return CallResult(error=strip_python_path(str(error)), status="error", seconds=seconds)
        (value,) = content
        token = self._calls[index].token
        if event == "value" and token is None:
            return CallResult(decode_value(value), seconds=seconds)
        if event == "held" and token is not None and value == token:
            return CallResult(True, seconds=seconds)
        raise InvalidValueError("not a result")


# APPS's calls go through a helper in the test's set-up (tasks/datasets/apps.py), which messages leave out.
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
    """Build the result of a split assert from the results of its calls."""
    seconds = sum(result.seconds for result in results)
    called = ", ".join(readable_source(source) for source in plan.source_expressions)
    expected = _expected_text(plan.template)
    got = ", ".join(format_value(result.value) for result in results if not result.error)
    failure = _failure_reason(plan, results)
    reason, status = "", "ok"
    if failure is not None:
        first = next((result for result in results if result.error), None)
        if first is not None:
            status = first.status
            reason = first.error if first.is_load_error else f"{one_line(called)} {joined_error(first)}"
        elif expected:
            reason = f"{one_line(called)} gave {one_line(got)}, expected {one_line(expected)}"
        else:
            reason = f"{one_line(readable_source(plan.source))} does not hold: {one_line(called)} gave {one_line(got)}"
        reason += failure
    return TestResult(
        passed=failure is None,
        kind="call",
        given=shorten(called),
        expected=shorten(expected or readable_source(plan.source)),
        got=shorten(got),
        reason=reason,
        status=status,
        seconds=seconds,
    )


def explain_whole_assert(plan: AssertPlan, result: CallResult) -> TestResult:
    """Build the result of an assert that ran as a whole in the child."""
    note = f"the whole assert ran in the sandbox, unprotected, because {plan.unprotected_reason}"
    statement = one_line(readable_source(plan.whole_statement))
    failed = result.error if result.is_load_error else f"{statement} {joined_error(result)}"
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
    """Return a test's source without internal helpers."""
    return _APPS_CALL.sub(r"\1(", source)


def _failure_reason(plan: AssertPlan, results: Sequence[CallResult]) -> str | None:
    """Return None if the assert holds, else a text to append to the message about it."""
    values: Mapping[str, Any] = {str(index): call.value for index, call in enumerate(results) if not call.error}
    try:
        return None if evaluate_expr(plan.template, values) else ""
    except Exception as error:  # noqa: BLE001 - a missing value, or values that cannot be compared
        return "" if len(values) < len(results) else f" ({type(error).__name__}: {one_line(str(error))})"


def joined_error(result: CallResult) -> str:
    """Return the error as the end of 'f(2) raised NameError: ...' or 'f(2) stopped after 5 s (time limit)'."""
    if result.status == "error" and re.match(r"[A-Za-z_]\w*(?::| \(line|$)", result.error):
        return f"raised {result.error}"
    return result.error


def _expected_text(template: ast.expr) -> str:
    """Return what a single comparison or truth test expects; '' for more complex asserts."""
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
        return " or ".join(format_value(item) for item in value)
    return _OPERATOR_PHRASES[type(op)].format(format_value(value))
