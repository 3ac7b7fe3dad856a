"""What one test said about one candidate, in words that a person reads."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal

from evaluate.sandbox import Limits, Outcome

Kind = Literal["call", "stdio", "assert"]
MAX_TEXT = 1_000  # characters of a field: a run keeps one result per test, candidate and problem
MAX_SHOWN = 120  # characters of a value inside of a sentence
_OUTPUT = "printed more than {size}"


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
    kind: Kind
    given: str
    expected: str
    got: str
    reason: str
    status: str
    protected: bool = True
    seconds: float = 0.0


def shorten(text: str, most: int = MAX_TEXT) -> str:
    """`text` in at most `most` characters: what is too much is cut out of its middle."""
    if len(text) <= most:
        return text
    left = most // 2
    return f"{text[:left]}…{text[len(text) - (most - left - 1) :]}"


def in_words(text: str) -> str:
    """`text` as part of a sentence: one line, short."""
    return shorten(" ".join(text.split()), MAX_SHOWN)


def without_folder(text: str) -> str:
    """`text` without the folder in which this machine keeps its Python, which some errors name."""
    return text.replace(f"{sys.base_prefix}/", "")


def stopped(outcome: Outcome, limits: Limits) -> str:
    """Why the sandbox ended a program, or why it ended itself, in one sentence without a full stop."""
    match outcome.status:
        case "timeout":
            return f"stopped after {limits.wall_seconds:g} s ({outcome.limit or 'time limit'})"
        case "memory":
            return f"needs more than {megabytes(limits.memory_bytes)}"
        case "output":
            return _OUTPUT.format(size=megabytes(limits.output_bytes))
        case "killed":
            return f"ended by a signal{_because(outcome)}"
        case "refused":
            return f"could not be run{_because(outcome)}"
        case _:
            return last_error(outcome.stderr) or "ended with an error status"


def megabytes(size: int) -> str:
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
    return in_words(lines[-1]) + (f" (line {number})" if number.isdigit() else "")


def _because(outcome: Outcome) -> str:
    why = outcome.limit or (last_error(outcome.stderr) if outcome.status == "refused" else "")
    return f" ({in_words(why)})" if why else ""
