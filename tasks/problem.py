"""Problems to solve, their tests in asserts and in APPS's format, solved examples, and programs from answers.

The format of APPS's tests: a JSON object with inputs, outputs and, for problems that call a function, fn_name. Problems
that call a function become asserts, the others program runs.

Programs from answers to prompts that are the beginning of a program, as HumanEval's signature with a docstring. An
answer may be a whole program, which repeats the signature, or only the body of the function. An extracted body may have
lost the indentation of its first line, or of all lines.
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from common.parsing import parse_json, parse_python
from errors import DataError

# Runs after the candidate's code, and follows APPS's own checker: tuples count as lists, a method is called on a
# `Solution` where the code has one, and a result equals the expected value or the only item of it (the published
# outputs are wrapped in a list or not, without a rule). Integers too long for a literal are read from text.
CALL_HELPERS = """\
import sys
sys.set_int_max_str_digits(0)
def _apps_plain(value):
    return [_apps_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
def _apps_call(name, *arguments):
    found = getattr(Solution(), name) if "Solution" in globals() else globals()[name]
    return _apps_plain(found(*arguments))
"""
# Runs before the code of such a problem: LeetCode's starter code has `List[int]` without an import.
CODE_PRELUDE = "from typing import *"
MAX_DIGITS = 4_000  # Python refuses to read or write more than 4,300 at once
_INDENT = "    "
_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


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
    `comparison` names the rules of its data set by which asserts compare values (evaluate.test_runner.result).
    `prompt` is the beginning of a program that an answer may continue or repeat (HumanEval's signature;
    tasks.problem).
    """

    id: str
    intent: str
    reference: str | None = None
    tests: tuple[Test, ...] = ()
    entry_point: str | None = None
    difficulty: str | None = None
    comparison: str = "exact"
    prompt: str = ""


@dataclass(frozen=True)
class AppsTests:
    """A problem's tests, and the function that they call, if any."""

    tests: tuple[Test, ...]
    function: str | None


class _LargeInt(str):
    """An integer with more digits than Python writes; its repr is int('...')."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"int({str(self)!r})"


def parse_tests(text: str, location: str) -> AppsTests:
    """Parse the tests in `text`; raises DataError with `location` where they are not in APPS's format."""
    value = parse_json(text, location, parse_int=_parse_int)
    if not isinstance(value, dict):
        raise DataError(f"{location}: must be a JSON object with inputs and outputs.")
    inputs, outputs, function = value.get("inputs", []), value.get("outputs", []), value.get("fn_name")
    if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs):
        raise DataError(f"{location}: inputs and outputs must be lists of the same length.")
    if function is None:
        return AppsTests(
            tuple(StdioTest(to_stdio_text(i), to_stdio_text(o)) for i, o in zip(inputs, outputs, strict=True)), None
        )
    if not isinstance(function, str) or not function.isidentifier():
        raise DataError(f"{location}: fn_name must be the name of a function.")
    return AppsTests(tuple(_call_test(function, i, o) for i, o in zip(inputs, outputs, strict=True)), function)


def to_stdio_text(value: Any) -> str:
    """Return a program's input or output for this value: text unchanged, a list joined by lines, others by str."""
    if isinstance(value, list):
        return "\n".join(line if isinstance(line, str) else str(line) for line in value)
    return str(value)


def _call_test(function: str, arguments: Any, expected: Any) -> AssertTest:
    arguments_source = "".join(
        f", {argument!r}" for argument in (arguments if isinstance(arguments, list) else [arguments])
    )
    accepted = [expected]
    if isinstance(expected, list) and len(expected) == 1:
        accepted.append(expected[0])
    return AssertTest(f"assert _apps_call({function!r}{arguments_source}) in {accepted!r}", CALL_HELPERS)


def _parse_int(digits: str) -> int | str:
    return int(digits) if len(digits) <= MAX_DIGITS else _LargeInt(digits)


def complete_program(code: str, prompt: str, function: str | None) -> str:
    """Return the program that the answer `code` stands for; `code` itself without a prompt.

    A program that defines anything gets what the prompt has beside `function` (imports, helpers) before it. Other code
    is the function's body and follows the prompt. Code that is neither is returned as it is.
    """
    if not prompt or function is None:
        return code
    tree = _parse(code)
    if tree is not None and any(isinstance(node, _Definition) for node in tree.body):
        return _beside(prompt, function, tree) + code
    given = _body_length(_parse(prompt), function)
    for body in (code, _INDENT + code.lstrip(), textwrap.indent(code, _INDENT)):
        program = f"{prompt.rstrip()}\n{body}"
        if _body_length(_parse(program), function) > given:
            return program
    return code


def _beside(prompt: str, function: str, tree: ast.Module) -> str:
    """Return the statements of the prompt without the function; '' where the program must begin with its own lines."""
    if any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body):
        return ""
    parsed = _parse(prompt)
    nodes = [] if parsed is None else [node for node in parsed.body if getattr(node, "name", "") != function]
    return "".join(f"{ast.unparse(node)}\n" for node in nodes)


def _body_length(tree: ast.Module | None, function: str) -> int:
    """Return the number of statements in the last definition of the function; 0 if there is none."""
    found = [node for node in (tree.body if tree else ()) if isinstance(node, _Definition) and node.name == function]
    return len(found[-1].body) if found else 0


def _parse(code: str) -> ast.Module | None:
    try:
        return parse_python(code)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None
