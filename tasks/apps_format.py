"""The format of APPS's tests: a JSON object with inputs, outputs and, for problems that call a function, fn_name.

Problems that call a function become asserts, the others program runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from common.parsing import parse_json
from errors import DataError
from tasks.problem import AssertTest, StdioTest, Test

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
