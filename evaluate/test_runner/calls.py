"""Calls of a candidate's functions in sandbox children, and messages about their results.

One child runs the code once and then all calls. If it ends early (a call that hangs, crashes or ends the process),
results that it sent are used and a new child continues. It repeats the failed call if other calls ran before it in
the same child, as these may have used up its time or memory; otherwise it continues after that call. So each child
settles at least one call. Calls that depend on the state that earlier ones left (a script of pasted tests) are
repeated after these.
"""

from __future__ import annotations

import inspect
import marshal
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

from common.format import format_bytes
from evaluate.sandbox.sandbox import Sandbox
from evaluate.sandbox.spec import ExecutionResult, Limits, Program, require_run
from evaluate.test_runner import child
from evaluate.test_runner.result import MAX_TEXT, end_reason, printable, strip_python_path
from evaluate.test_runner.values import InvalidValueError, decode_value, parse_json_line

FAIR_TIME_FRACTION = 0.2  # of the time limit; a call that hangs is not repeated if earlier calls used less than this
MAX_REPEATED_TIMES = 3  # the time limit, for the calls before one that a new child runs again
NOT_RUN_MESSAGE = "was not run, because the lines before it took too long"
NOT_RUN_AFTER_END = "was not run, because a call before it ended the program"
CLOCK_TOLERANCE = 1.0  # seconds by which the clocks of a child and of the host may differ
NO_ANSWER_MESSAGE = "ended before it answered"
INVALID_RESULT_MESSAGE = "sent no result"


@dataclass(frozen=True)
class ChildCall:
    """An expression (with a token: a statement) that a child evaluates after `setup`.

    `wider` is an expression with the value as VALUE_NAME, for a value that the host cannot know; '' for none. In the
    mode `step` it is statements without a result, in the mode `outcome` statements whose displayed text or exception is
    the result (see child.py). `scope` is that of tasks.problem.Step. After `cpu_seconds` of processor time (0: no limit
    of its own) the call ends its child; the seconds of its result are then processor time.
    """

    setup: str
    source: str
    token: str | None = None
    wider: str = ""
    scope: str = ""
    mode: Literal["value", "step", "outcome"] = "value"
    cpu_seconds: float = 0.0


@dataclass(frozen=True)
class CallResult:
    """The value of one call, or an error message, worded as part of a sentence.

    `is_load_error` is True if the code itself failed, before any call. `wider` is the result of the call's wider
    expression, None if the child did not evaluate it.
    """

    value: Any = None
    error: str = ""
    status: str = "ok"
    seconds: float = 0.0
    is_load_error: bool = False
    wider: CallResult | None = None


def run_calls(
    code: str,
    calls: Sequence[ChildCall],
    sandbox: Sandbox,
    limits: Limits,
    preamble: str = "",
    *,
    stateful: bool = False,
    until_ended: bool = False,
) -> list[CallResult]:
    """Run the calls and return their results in order; `preamble` runs before the code. Never raises for any code.

    Where they are `stateful`, each call finds the state that all earlier ones left: a child that continues runs the
    earlier calls again, except one that ended its child, and their first results count. With `until_ended` the calls
    after one that failed by ending its child are not run, and `limits` hold for the time of all calls together.
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
        elif len(settled) < len(calls) and (
            len(settled) == first
            or (until_ended and execution.status == "timeout")
            or _is_own_timeout(execution, calls[len(settled)])
            or _must_settle(reader, execution, limits, stateful)
        ):
            ended.add(len(settled))
            settled[len(settled)] = (
                CallResult(error=INVALID_RESULT_MESSAGE, status="error")
                if reader.malformed
                else _call_ended_result(execution, limits, calls[len(settled)])
            )
            if until_ended:
                rest = range(len(settled), len(calls))
                settled.update(dict.fromkeys(rest, CallResult(error=NOT_RUN_AFTER_END, status="error")))
    return [settled[at] for at in range(len(calls))]


def _is_own_timeout(result: ExecutionResult, call: ChildCall) -> bool:
    """Return whether the kernel ended the child at the call's own time limit (child.py)."""
    return call.cpu_seconds > 0 and result.status == "killed" and result.limit == "signal SIGPROF"


def _call_ended_result(result: ExecutionResult, limits: Limits, call: ChildCall) -> CallResult:
    """Return the failed result of a call during which the child ended."""
    if _is_own_timeout(result, call):
        error = f"stopped after {call.cpu_seconds:.3g} s of processor time (time limit)"
        return CallResult(error=error, status="timeout", seconds=call.cpu_seconds)
    return _child_ended_result(result, limits)


def _extend_time(limits: Limits, repeated_seconds: float) -> Limits:
    """Return limits with time for the calls that run again, unless these take little of it."""
    if repeated_seconds < FAIR_TIME_FRACTION * limits.wall_seconds:
        return limits
    more = math.ceil(2 * repeated_seconds)
    return replace(limits, wall_seconds=limits.wall_seconds + more, cpu_seconds=limits.cpu_seconds + more)


def _child_program(
    code: str, preamble: str, calls: Sequence[ChildCall], pending: Sequence[int], limits: Limits
) -> Program:
    listed = [(at, *vars(calls[at]).values()) for at in pending]
    # ASCII literals, so that any text reaches the child's compiler, which reports what is wrong with it.
    program = f"import marshal\nexec(marshal.loads({_compiled_child()!r}))\n"
    return Program(f"{program}run_child({code!a}, {listed!a}, {preamble!a})\n", limits=limits)


@cache
def _compiled_child() -> bytes:
    """Return child.py, compiled and marshalled: it would take the child milliseconds to compile it."""
    source = inspect.getsource(child)
    return marshal.dumps(compile(source, "<test runner>", "exec", dont_inherit=True, optimize=2))


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
    """Parser of the lines of one child (see child.py).

    A candidate can write such lines itself. They then count as its results, which is safe: it knows no expected value.
    A line that no child writes fails the call that it stands for; the results before it count, the rest is ignored.
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
        lines = result.stdout.split("\n", 2 * len(pending) + 1)[:-1]  # drops an unfinished line, and what is too much
        try:
            self._parse_start(lines[:1])
            for at, begin, line in zip(pending, lines[1::2], lines[2::2], strict=False):
                if parse_json_line(begin) != ["begin", at]:
                    raise InvalidValueError("not the begin of the next call")
                self.results[at] = self._parse_result(parse_json_line(line), at)
        except InvalidValueError:
            self.malformed = True
            if not self.loaded and self.load_error is None:
                self.load_error = CallResult(error=INVALID_RESULT_MESSAGE, status="error", is_load_error=True)

    def _parse_start(self, lines: Sequence[str]) -> None:
        for line in lines:
            record = parse_json_line(line)
            self.loaded = record == ["loaded"]
            if not self.loaded:
                self.load_error = replace(self._parse_result(record, -1), is_load_error=True)

    def _parse_result(self, record: Any, at: int) -> CallResult:
        """Parse the record of the call of index `at`; -1 for an error of the code itself."""
        match record:
            case [str(event), int(index), float(seconds), *content] if index == at and index is not False:
                if not 0 <= seconds <= self._max_seconds + CLOCK_TOLERANCE:
                    raise InvalidValueError("not a time")
            case _:
                raise InvalidValueError("not a result")
        call = self._calls[at] if at >= 0 else None
        match event, content:
            case "error", [kind, text]:
                return self._parse_error(kind, text, seconds)
            case "value", [value] if call is not None and call.token is None:
                return CallResult(decode_value(value), seconds=seconds)
            case "value", [value, kind, wider] if call is not None and call.wider:
                found = CallResult(decode_value(wider)) if kind == "value" else self._parse_error(kind, wider, 0.0)
                return CallResult(decode_value(value), seconds=seconds, wider=found)
            case "held", [token] if call is not None and call.token is not None and token == call.token:
                return CallResult(True, seconds=seconds)
        raise InvalidValueError("not a result")

    def _parse_error(self, kind: Any, text: Any, seconds: float) -> CallResult:
        if not isinstance(text, str) or len(text) > 2 * MAX_TEXT:
            raise InvalidValueError("not a message")
        if kind == "memory":
            return CallResult(error=self._memory_message, status="memory", seconds=seconds)
        if kind != "error":
            raise InvalidValueError("not a kind of error")
        return CallResult(error=printable(strip_python_path(text)), status="error", seconds=seconds)
