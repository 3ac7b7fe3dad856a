"""Problems to solve, their tests, and solved examples."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """An intent with code that implements it: a row of a training split, or an example in a prompt."""

    id: str
    intent: str
    code: str


@dataclass(frozen=True)
class AssertTest:
    """One `assert ...` statement. It runs after the candidate's code and after `setup`.

    Numbers that differ by at most `tolerance` are equal; 0 leaves that to the problem's rules of comparison.
    """

    code: str
    setup: str = ""
    tolerance: float = 0.0


@dataclass(frozen=True)
class StdioTest:
    """A program run: its standard input and the expected standard output."""

    stdin: str
    expected: str


Test = AssertTest | StdioTest


@dataclass(frozen=True)
class Problem:
    """An intent in words, with reference code and tests where the data set has them.

    `entry_point` names the function that the tests call (MBPP, starter); `difficulty` is APPS's level; `comparison`
    names the rules of its data set by which asserts compare values (evaluate.test_runner.comparison).
    """

    id: str
    intent: str
    reference: str | None = None
    tests: tuple[Test, ...] = ()
    entry_point: str | None = None
    difficulty: str | None = None
    comparison: str = "exact"
