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
from evaluate.checking.result import megabytes, stopped, without_folder
from evaluate.checking.values import UnreadableError, read_line, read_value
from evaluate.sandbox import Limits, Outcome, Program, Sandbox

FAIR_SHARE = 0.2  # of the time limit: with less used by earlier calls, a call that hangs had enough of it
NO_ANSWER = "ended before it answered"
NO_RESULT = "sent what is no result"


@dataclass(frozen=True)
class Call:
    """An expression (or, with a token, a statement) that a child evaluates after `setup`."""

    setup: str
    source: str
    token: str | None = None


@dataclass(frozen=True)
class Given:
    """What one call gave: a value, or the fault that kept it from giving one, as part of a sentence.

    `alone` is True where the fault is the code's own, before any call.
    """

    value: Any = None
    fault: str = ""
    status: str = "ok"
    seconds: float = 0.0
    alone: bool = False


def run_calls(code: str, calls: Sequence[Call], sandbox: Sandbox, limits: Limits, head: str = "") -> list[Given]:
    """What each call gave, in their order; `head` runs before the code. Never raises for any code."""
    settled: dict[int, Given] = {}
    while len(settled) < len(calls):
        pending = range(len(settled), len(calls))
        outcome = sandbox.run(_program(code, head, calls, pending, limits))
        reader = _Reader(pending, calls, outcome, limits)
        settled.update(reader.given)
        if reader.own_fault is not None:
            settled.update(dict.fromkeys(pending, reader.own_fault))
        elif not reader.loaded:
            fault = _ended(outcome, limits)
            settled.update(dict.fromkeys(pending, replace(fault, alone=True)))
        elif len(settled) < len(calls) and _is_to_blame(reader, outcome, limits):
            settled[len(settled)] = (
                Given(fault=NO_RESULT, status="error") if reader.garbled else _ended(outcome, limits)
            )
    return [settled[at] for at in range(len(calls))]


def _program(code: str, head: str, calls: Sequence[Call], pending: range, limits: Limits) -> Program:
    listed = [(at, calls[at].setup, calls[at].source, calls[at].token) for at in pending]
    # In ASCII, so that any text at all reaches the child's compiler, which says what is wrong with it.
    return Program(f"{_child_text()}\n\nserve({code!a}, {listed!a}, {head!a})\n", limits=limits)


@cache
def _child_text() -> str:
    return inspect.getsource(child)


def _ended(outcome: Outcome, limits: Limits) -> Given:
    """The fault of a call in which, or before which, the whole child ended."""
    if outcome.status == "ok":
        return Given(fault=NO_ANSWER, status="error", seconds=outcome.seconds)
    return Given(fault=stopped(outcome, limits), status=outcome.status, seconds=outcome.seconds)


def _is_to_blame(reader: _Reader, outcome: Outcome, limits: Limits) -> bool:
    """Whether the call that has no result had a child to itself, or as good as."""
    if not reader.given or reader.garbled or outcome.status == "refused":
        return True
    earlier = sum(given.seconds for given in reader.given.values())
    return outcome.status == "timeout" and earlier < FAIR_SHARE * limits.wall_seconds


class _Reader:
    """Reads the lines of one child. They must come as evaluate/checking/child.py says; else the rest is not believed.

    A candidate can write such lines itself. Then they are its answers: it knows no expected value to write there.
    """

    def __init__(self, pending: range, calls: Sequence[Call], outcome: Outcome, limits: Limits) -> None:
        self.given: dict[int, Given] = {}
        self.loaded = False
        self.garbled = False
        self.own_fault: Given | None = None
        self._calls = calls
        self._most = outcome.seconds
        self._memory = f"needs more than {megabytes(limits.memory_bytes)}"
        lines = outcome.stdout.split("\n")[:-1]  # an unfinished line is none
        try:
            self._read([read_line(line) for line in lines[: 2 * len(pending) + 2]], pending)
        except (UnreadableError, TypeError, ValueError, LookupError):
            self.garbled = True

    def _read(self, lines: list[Any], pending: range) -> None:
        if not lines:
            return
        if lines[0] != ["loaded"]:
            if lines[0][:2] == ["error", -1]:
                self.own_fault = replace(self._settle(lines[0]), alone=True)
            return
        self.loaded = True
        for at, begin, result in zip(pending, lines[1::2], lines[2::2], strict=False):
            if begin != ["begin", at] or result[1] != at:
                raise UnreadableError("out of order")
            self.given[at] = self._settle(result)

    def _settle(self, result: list[Any]) -> Given:
        said, at, seconds, *content = result
        seconds = min(max(float(seconds), 0.0), self._most)
        if said == "error":
            status, fault = content
            if status == "memory":
                return Given(fault=self._memory, status="memory", seconds=seconds)
            return Given(fault=without_folder(str(fault)), status="error", seconds=seconds)
        (value,) = content
        token = self._calls[at].token
        if said == "value" and token is None:
            return Given(read_value(value), seconds=seconds)
        if said == "held" and token is not None and value == token:
            return Given(True, seconds=seconds)
        raise UnreadableError("no result")
