"""What one test said about one candidate, in words that a person reads."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal

from evaluate.sandbox import ExecutionResult, Limits

TestKind = Literal["call", "stdio", "assert"]
MAX_TEXT = 1_000  # characters of a field: a run keeps one result per test, candidate and problem
MAX_MESSAGE_TEXT = 120  # characters of a value inside of a sentence
_OUTPUT_LIMIT_MESSAGE = "printed more than {size}"


@dataclass(frozen=True)
class TestResult:
    """The result of one test.

    `kind` is how it ran: `call` (the child sent a value, compared here), `stdio` (a program run, compared here) or
    `assert` (the whole statement ran inside of the child, expected value included: `protected` is False).
    `given`, `expected` and `got` are texts, shortened in the middle; `got` is '' where nothing came back. `reason`
    is '' when the test passed, else one sentence. `status` is the sandbox's (`evaluate.sandbox.Outcome`): it is `ok`
    for a wrong answer too. `seconds` is the time of this test alone, as far as it is known.
    """

    __test__ = False  # its name begins like a test's, and pytest need not look

    passed: bool
    kind: TestKind
    given: str
    expected: str
    got: str
    reason: str
    status: str
    protected: bool = True
    seconds: float = 0.0


def shorten(text: str, max_length: int = MAX_TEXT) -> str:
    """`text` in at most `most` characters: what is too much is cut out of its middle."""
    if len(text) <= max_length:
        return text
    left = max_length // 2
    return f"{text[:left]}…{text[len(text) - (max_length - left - 1) :]}"


def one_line(text: str) -> str:
    """`text` as part of a sentence: one line, short."""
    return shorten(" ".join(text.split()), MAX_MESSAGE_TEXT)


def strip_python_path(text: str) -> str:
    """`text` without the folder in which this machine keeps its Python, which some errors name."""
    return text.replace(f"{sys.base_prefix}/", "")


def end_reason(execution: ExecutionResult, limits: Limits) -> str:
    """Why the sandbox ended a program, or why it ended itself, in one sentence without a full stop."""
    match execution.status:
        case "timeout":
            return f"stopped after {limits.wall_seconds:g} s ({execution.limit or 'time limit'})"
        case "memory":
            return f"needs more than {format_megabytes(limits.memory_bytes)}"
        case "output":
            return _OUTPUT_LIMIT_MESSAGE.format(size=format_megabytes(limits.output_bytes))
        case "killed":
            return f"ended by a signal{_limit_reason(execution)}"
        case "refused":
            return f"could not be run{_limit_reason(execution)}"
        case _:
            return last_error(execution.stderr) or "ended with an error status"


def format_megabytes(size: int) -> str:
    """A size in bytes as a person says it."""
    return f"{size / 2**20:g} MB" if size >= 2**20 else f"{size / 2**10:g} kB"


def last_error(stderr: str) -> str:
    """'NameError: ... (line 3)' from the traceback at the end of what a program said; '' where there is none."""
    lines = [line.rstrip() for line in stderr.splitlines() if line.strip()]
    if not lines:
        return ""
    number = ""
    for line in reversed(lines):
        place = line.strip()
        if place.startswith("File ") and ", line " in place:
            number = place.partition(", line ")[2].partition(",")[0]
            break
    return one_line(lines[-1]) + (f" (line {number})" if number.isdigit() else "")


def _limit_reason(execution: ExecutionResult) -> str:
    why = execution.limit or (last_error(execution.stderr) if execution.status == "refused" else "")
    return f" ({one_line(why)})" if why else ""
