"""TestResult, the texts about tests, and the rules by which a returned value is compared with the expected one.

Every text of a result may come from a candidate, so it is escaped and shortened where the result is made: control and
format characters, lone surrogates and blanks other than a space are written as in Python's `repr`.

Rules by which a value that a candidate returned is compared with the expected one. `EXACT` is Python's `==`. `EVALPLUS`
is the comparison of EvalPlus 0.3 (Liu et al., arXiv 2305.01210), under which the figures of HumanEval+ and MBPP+ are
published:

- floats, and lists and tuples of floats, are equal within 1e-6 + 1e-7 * |expected| if type and length are equal;
- the values of tasks whose order does not matter are compared as sets;
- three tasks are expected to return a match, or None;
- `are_equivalent`, `sum_div`, `surface_Area`, `digit_distance_nums` and `find_zero` have more than one right answer.

The rules apply to values of a reference (reference.py), and where an assert compares the value of one call with a
constant by `==` or `!=`, on the host: an assert that runs as a whole in the child compares as Python does.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from common.format import format_bytes
from errors import unknown_name_error
from evaluate.sandbox.spec import ExecutionResult, Limits

TestKind = Literal["call", "stdio", "assert"]
MAX_TEXT = 1_000  # characters of a field: a run stores one result per test, candidate and problem
MAX_REASON = 600  # characters of a message
MAX_MESSAGE_TEXT = 120  # characters of a value inside a message
_TEXT_BEFORE_DIFFERENCE = 40  # characters before the first difference of two long values
_OUTPUT_LIMIT_MESSAGE = "printed more than {size}"
FLOAT_ATOL, FLOAT_RTOL = 1e-6, 1e-7
MAX_COEFFICIENTS = 1_000
SET_EQUALITY_TASKS = frozenset(
    [
        "similar_elements",
        "find_char_long",
        "common_in_nested_lists",
        "extract_singly",
        "larg_nnum",
        "intersection_array",
        "find_dissimilar",
        "Diff",
    ]
)
NOT_NONE_TASKS = frozenset(["check_str", "text_match_three", "text_starta_endb"])


@dataclass(frozen=True)
class TestResult:
    """The result of one test.

    `kind` is how it ran: `call` (the child sent a value, compared here), `stdio` (a program run, compared here) or
    `assert` (the whole statement ran in the child, expected value included: `protected` is False). `given`, `expected`
    and `got` are texts, shortened in the middle; `got` is '' if nothing was returned. `reason` is '' if the test
    passed, else a message of one line. `status` is that of evaluate.sandbox.spec.ExecutionResult, `ok` for a wrong
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


@dataclass(frozen=True)
class ComparisonRules:
    """How `==` between a call's value and a constant is decided.

    `float_atol` and `float_rtol` are the tolerances of floats, 0 for none; `task_rules` says whether the tasks named in
    this module, known by the function that is called, have rules of their own.
    """

    name: str
    float_atol: float = 0.0
    float_rtol: float = 0.0
    task_rules: bool = False

    @property
    def is_exact(self) -> bool:
        """Whether `==` is Python's."""
        return self.float_atol == self.float_rtol == 0 and not self.task_rules

    def expected_value(self, function: str, answer: Any) -> Any:
        """Return what a call of `function` must equal where the reference returned `answer`."""
        return answer is not None if self.task_rules and function in NOT_NONE_TASKS else answer

    def uses_arguments(self, function: str) -> bool:
        """Whether `are_equal` needs the arguments of calls of `function`."""
        return self.task_rules and (function == "find_zero" or function in _OTHER_ANSWERS)

    def are_equal(
        self, value: Any, expected: Any, function: str = "", arguments: Sequence[Any] = (), tolerance: float = 0.0
    ) -> bool:
        """Return whether `value`, of the call `function(*arguments)`, counts as equal to `expected`.

        `tolerance` is the absolute one of this test, 0 for none. Raises what Python raises for values that cannot be
        compared.
        """
        if self.task_rules and function in NOT_NONE_TASKS:
            return bool(value == expected) if isinstance(value, bool) else bool(expected == (value is not None))
        if self.task_rules and function in SET_EQUALITY_TASKS:
            return set(value) == set(expected)
        if self.task_rules and function == "find_zero" and len(arguments) == 1:
            return _is_root(value, arguments[0], max(tolerance, FLOAT_ATOL))
        if bool(value == expected):
            return True
        if self.task_rules and function in _OTHER_ANSWERS and _OTHER_ANSWERS[function](value, arguments):
            return True
        absolute = tolerance or (self.float_atol if _are_floats(expected) else 0.0)
        return absolute > 0 and _are_close(value, expected, absolute, self.float_rtol)


EXACT = ComparisonRules("exact")
EVALPLUS = ComparisonRules("evalplus", FLOAT_ATOL, FLOAT_RTOL, task_rules=True)
RULES = {rules.name: rules for rules in (EXACT, EVALPLUS)}


def comparison_rules(name: str) -> ComparisonRules:
    """Return the rules of that name. Raises UnknownNameError for another one."""
    if name not in RULES:
        raise unknown_name_error("comparison", name, RULES)
    return RULES[name]


def _are_floats(value: Any) -> bool:
    if isinstance(value, list | tuple) and value:
        return all(isinstance(item, float) for item in value)
    return isinstance(value, float) or str(getattr(value, "dtype", "")) in {"float32", "float64"}


def _are_close(value: Any, expected: Any, absolute: float, relative: float) -> bool:
    """Compare numbers, and sequences of them of equal type and length, within both tolerances together."""
    if type(value) is not type(expected):
        return False
    if isinstance(expected, list | tuple):
        return len(value) == len(expected) and all(
            isinstance(each, list | tuple) and _are_close(each, wanted, absolute, relative)
            if isinstance(wanted, list | tuple)
            else _is_close(each, wanted, absolute, relative)
            for each, wanted in zip(value, expected, strict=True)
        )
    if hasattr(expected, "dtype"):
        import numpy as np

        return np.shape(value) == np.shape(expected) and bool(np.allclose(value, expected, relative, absolute))
    return _is_close(value, expected, absolute, relative)


def _is_close(value: Any, expected: Any, absolute: float, relative: float) -> bool:
    if not isinstance(value, int | float | complex) or not isinstance(expected, int | float | complex):
        return bool(value == expected)
    if value == expected:
        return True
    difference = abs(value - expected)
    return math.isfinite(difference) and difference <= absolute + relative * abs(expected)


def _is_root(value: Any, coefficients: Sequence[float], tolerance: float) -> bool:
    """Return whether the polynomial of these coefficients, lowest first, is 0 at `value`."""
    if not isinstance(value, int | float) or len(coefficients) > MAX_COEFFICIENTS:
        return False
    return abs(sum(each * math.pow(value, power) for power, each in enumerate(coefficients))) <= tolerance


def _is_surface_area(value: Any, arguments: Sequence[Any]) -> bool:
    """Accept the other reading of the task, in which the height is that of the pyramid, not of its sides."""
    base, height = arguments
    slant_height = math.sqrt((base / 2) ** 2 + height**2)
    return isinstance(value, int | float) and abs(value - round(base**2 + 2 * base * slant_height)) <= FLOAT_ATOL


def _is_digit_distance(value: Any, arguments: Sequence[Any]) -> bool:
    """Accept the other reading of the task, in which the shorter number is filled up with zeros."""
    one, other = map(str, arguments)
    width = max(len(one), len(other))
    pairs = zip(one.zfill(width), other.zfill(width), strict=True)
    return bool(value == sum(abs(int(left) - int(right)) for left, right in pairs))


_OTHER_ANSWERS: dict[str, Callable[[Any, Sequence[Any]], bool]] = {
    "are_equivalent": lambda _value, _arguments: True,
    "sum_div": lambda value, _: bool(value == 0),
    "surface_Area": _is_surface_area,
    "digit_distance_nums": _is_digit_distance,
}
