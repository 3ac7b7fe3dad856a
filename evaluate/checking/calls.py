"""Runs calls of a candidate's code in as few children as is safe, and reads what they sent.

One child runs the code once and then all calls. Where it ends early (a call that hangs, crashes or ends the process),
what was settled stays, and a new child goes on: with the call itself when others ran before it in the same child, as
they may have used up its time or memory, else behind it. So each child settles one call at least.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from evaluate.checking import child
from evaluate.checking.result import end_reason, format_megabytes, strip_python_path
from evaluate.checking.values import InvalidValueError, decode_value, parse_json_line
from evaluate.sandbox import ExecutionResult, Limits, Program, Sandbox

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
    """Reads the lines of one child. They must come as evaluate/checking/child.py says; else the rest is not believed.

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
