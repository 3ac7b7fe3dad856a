"""Problems to solve, their tests, and solved examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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


ENTRY_POINT = "__candidate__"  # in a ScriptTest: the function of the program that fits the arguments


@dataclass(frozen=True)
class Step:
    """Lines of a script that test nothing. They run once.

    `scope` names the test function whose local names they have; '' is the namespace of the candidate's code.
    """

    source: str
    scope: str = ""


@dataclass(frozen=True)
class Outcome:
    """What the code of a test must display, as in an interactive session, or which exception it must raise.

    `error` is the exception's name, several joined by '|' are alternatives, and '' stands for none; `message` is then
    the text after its name, or None if any is right. `match` is a part of the message. `options` are doctest's flags.
    """

    output: str = ""
    error: str = ""
    message: str | None = None
    match: str = ""
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class ScriptTest:
    """One test of a script, which is a text of tests that runs as it stands.

    All ScriptTests of a problem are one script: they run in order after the candidate's code, and each finds the state
    that the ones before it left. `steps` are the lines between the test before it and this one. `code` is an assert
    statement or, with an `outcome`, any statements. It runs in `scope`, as a Step does.
    """

    code: str
    steps: tuple[Step, ...] = ()
    scope: str = ""
    outcome: Outcome | None = None


@dataclass(frozen=True)
class ReferenceTest:
    """One test of many calls: `function` must return, for each of `inputs`, what it returns in the code `reference`.

    An input is the source of a call's arguments (`[1, 2], k=3`). `name` says whose test it is ("HumanEval/2 plus").
    Numbers that differ by at most `tolerance` are equal; 0 leaves that to the problem's rules of comparison.
    """

    name: str
    function: str
    inputs: tuple[str, ...]
    reference: str
    tolerance: float = 0.0


Test = AssertTest | StdioTest | ScriptTest | ReferenceTest


def parse_test(record: Mapping[str, Any]) -> Test:
    """Return the test that `dataclasses.asdict` made this record of; raises TypeError if it is no such record."""
    if "inputs" in record:
        return ReferenceTest(**{**record, "inputs": tuple(record["inputs"])})
    if "code" not in record:
        return StdioTest(**record)
    if "steps" not in record:
        return AssertTest(**record)
    outcome = record["outcome"] and Outcome(**{**record["outcome"], "options": tuple(record["outcome"]["options"])})
    steps = tuple(Step(**step) for step in record["steps"])
    return ScriptTest(**{**record, "steps": steps, "outcome": outcome})


def format_test(test: Test) -> str:
    """Return the test as text that tasks.pasted_tests reads; an AssertTest without its set-up.

    A ReferenceTest becomes a comment, as it has no expected values.
    """
    if isinstance(test, ReferenceTest):
        return f"# {test.name}: {len(test.inputs):,} calls of {test.function} must return what the reference returns"
    if isinstance(test, StdioTest):
        parts = [text if text.endswith("\n") or not text else f"{text}\n" for text in (test.stdin, test.expected)]
        return f"input:\n{parts[0]}output:\n{parts[1]}"
    if isinstance(test, AssertTest):
        return test.code
    lines = [step.source for step in test.steps]
    if test.outcome is None:
        return "\n".join([*lines, test.code])
    code = test.code.replace("\n", "\n... ")
    result = test.outcome.output.rstrip("\n")
    if test.outcome.error:
        message = f": {test.outcome.message}" if test.outcome.message else ""
        result = f"Traceback (most recent call last):\n{test.outcome.error}{message}"
    return "\n".join([*lines, f">>> {code}", result, ""])


@dataclass(frozen=True)
class Problem:
    """An intent in words, with reference code and tests where the data set has them.

    `entry_point` names the function that the tests call (MBPP, starter, house); `difficulty` is APPS's level;
    `comparison` names the rules of its data set by which asserts compare values (evaluate.test_runner.comparison).
    `prompt` is the beginning of a program that an answer may continue or repeat (HumanEval's signature;
    tasks.completion).
    """

    id: str
    intent: str
    reference: str | None = None
    tests: tuple[Test, ...] = ()
    entry_point: str | None = None
    difficulty: str | None = None
    comparison: str = "exact"
    prompt: str = ""
