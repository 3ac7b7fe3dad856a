"""TestResult, and the texts about tests: bounded, printable, and without anything that a page or a file refuses.

Every text of a result may come from a candidate, so it is escaped and shortened where the result is made: control and
format characters, lone surrogates and blanks other than a space are written as in Python's `repr`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Literal

from common.format import format_bytes
from evaluate.sandbox.types import ExecutionResult, Limits

TestKind = Literal["call", "stdio", "assert"]
MAX_TEXT = 1_000  # characters of a field: a run stores one result per test, candidate and problem
MAX_REASON = 600  # characters of a message
MAX_MESSAGE_TEXT = 120  # characters of a value inside a message
_TEXT_BEFORE_DIFFERENCE = 40  # characters before the first difference of two long values
_OUTPUT_LIMIT_MESSAGE = "printed more than {size}"


@dataclass(frozen=True)
class TestResult:
    """The result of one test.

    `kind` is how it ran: `call` (the child sent a value, compared here), `stdio` (a program run, compared here) or
    `assert` (the whole statement ran in the child, expected value included: `protected` is False). `given`, `expected`
    and `got` are texts, shortened in the middle; `got` is '' if nothing was returned. `reason` is '' if the test
    passed, else a message of one line. `status` is that of evaluate.sandbox.types.ExecutionResult, `ok` for a wrong
    answer too. `seconds` is the time of this test alone, if it is known.
    """

    __test__ = False  # keeps pytest from collecting it

    passed: bool
    kind: TestKind
    given: str
    expected: str
    got: str
    reason: str
    status: str
    protected: bool = True
    seconds: float = 0.0

    def __post_init__(self) -> None:
        for name in ("given", "expected", "got"):
            object.__setattr__(self, name, shorten(printable(getattr(self, name), keep="\n\t")))
        object.__setattr__(self, "reason", shorten(printable(self.reason), MAX_REASON))


def printable(text: str, keep: str = "") -> str:
    """Return `text` with characters that cannot be printed escaped as in Python, except those in `keep`.

    At most a little more than MAX_TEXT characters of a longer text are read: the rest is cut out of its middle.
    """
    if len(text) > 2 * MAX_TEXT:
        text = shorten(text, 2 * MAX_TEXT)
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each in keep else _escape(each) for each in text)


def _escape(character: str) -> str:
    return repr(character)[1:-1]


def shorten(text: str, max_length: int = MAX_TEXT) -> str:
    """Shorten `text` to at most `max_length` characters by cutting out its middle."""
    if len(text) <= max_length:
        return text
    left = max_length // 2
    return f"{text[:left]}…{text[len(text) - (max_length - left - 1) :]}"


def one_line(text: str) -> str:
    """Return `text`, source or an error, as one short line for use inside a message: its blanks are joined."""
    return shorten(printable(" ".join(shorten(text, 2 * MAX_TEXT).split())), MAX_MESSAGE_TEXT)


def contrast(left: str, right: str) -> tuple[str, str]:
    """Shorten two texts of values for one message so that their first difference is visible; blanks stay as they are.

    The texts are equal only if `left` and `right` are.
    """
    left, right = _printable_all(left), _printable_all(right)
    if max(len(left), len(right)) <= MAX_MESSAGE_TEXT:
        return left, right
    differ = (at for at, (a, b) in enumerate(zip(left, right, strict=False)) if a != b)
    first = next(differ, min(len(left), len(right)))
    begin = max(0, first - _TEXT_BEFORE_DIFFERENCE)
    return _window(left, begin), _window(right, begin)


def _printable_all(text: str) -> str:
    return text if text.isprintable() else "".join(each if each.isprintable() else _escape(each) for each in text)


def _window(text: str, begin: int) -> str:
    """Return at most MAX_MESSAGE_TEXT characters of `text` from `begin` on, with ... for what is left out."""
    if len(text) <= MAX_MESSAGE_TEXT:
        return text
    begin = min(begin, len(text) - MAX_MESSAGE_TEXT + 1)
    head = "…" if begin > 0 else ""
    piece = text[begin : begin + MAX_MESSAGE_TEXT - 2]
    return head + piece + ("…" if begin + len(piece) < len(text) else "")


def format_value(value: Any) -> str:
    """Return the `repr` of a decoded value, or a description if Python refuses to print it."""
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - ValueError for an int of more digits than Python writes
        return f"an integer of {value.bit_length()} bits" if isinstance(value, int) else "a value too long to write"


def strip_python_path(text: str) -> str:
    """Remove the path of this machine's Python, which some errors contain, from `text`."""
    return text.replace(f"{sys.base_prefix}/", "")


def end_reason(execution: ExecutionResult, limits: Limits) -> str:
    """Return why the sandbox ended a program, or why it ended itself, as a message without a full stop."""
    match execution.status:
        case "timeout":
            return f"stopped after {limits.wall_seconds:g} s ({execution.limit or 'time limit'})"
        case "memory":
            return f"needs more than {format_bytes(limits.memory_bytes, 1024)}"
        case "output":
            return _OUTPUT_LIMIT_MESSAGE.format(size=format_bytes(limits.output_bytes, 1024))
        case "killed":
            return f"ended by a signal{_limit_reason(execution)}"
        case "refused":
            return f"could not be run{_limit_reason(execution)}"
        case _:
            return last_error(execution.stderr) or "ended with an error status"


def last_error(stderr: str) -> str:
    """Return 'NameError: ... (line 3)' from the traceback at the end of stderr; '' for an empty stderr."""
    lines = [line.rstrip() for line in stderr.splitlines() if line.strip()]
    if not lines:
        return ""
    number = ""
    for line in reversed(lines):
        location = line.strip()
        if location.startswith("File ") and ", line " in location:
            number = location.partition(", line ")[2].partition(",")[0]
            break
    return one_line(lines[-1]) + (f" (line {number})" if number.isdigit() else "")


def _limit_reason(execution: ExecutionResult) -> str:
    reason = execution.limit or (last_error(execution.stderr) if execution.status == "refused" else "")
    return f" ({one_line(reason)})" if reason else ""
