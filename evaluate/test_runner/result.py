"""TestResult, messages about how a program ended, and decoding of the values that the sandbox's child sends.

The child writes values as JSON (evaluate/test_runner/child.py). None, booleans, text and small numbers stand for
themselves, a list is a list; everything else is an object with one key, its type:

    {"int": "0x..."} {"float": "nan"} {"complex": ["0x1p+0", "0x0p+0"]} {"bytes": "hex"} {"str": "hex of UTF-8"}
    {"tuple": [...]} {"set": [...]} {"frozenset": [...]} {"dict": [[key, value], ...]}
    {"fraction": ["0x1", "0x2"]} {"decimal": "1.5"} {"other": "name of the type"}

An instance of a subclass arrives as the data of its base (a Counter as a dict, a NumPy number as a number), so no
method of the candidate, such as `__eq__`, takes part in comparisons. Any other object arrives as the name of its
type: an `OpaqueValue`, equal to nothing. Decoding is bounded in length, depth and digits, and evaluates nothing.
"""

from __future__ import annotations

import json
import math
import re
import sys
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any, Literal

from common.format import format_bytes
from evaluate.sandbox.types import ExecutionResult, Limits

TestKind = Literal["call", "stdio", "assert"]
MAX_TEXT = 1_000  # characters of a field: a run stores one result per test, candidate and problem
MAX_MESSAGE_TEXT = 120  # characters of a value inside a message
_OUTPUT_LIMIT_MESSAGE = "printed more than {size}"


@dataclass(frozen=True)
class TestResult:
    """The result of one test.

    `kind` is how it ran: `call` (the child sent a value, compared here), `stdio` (a program run, compared here) or
    `assert` (the whole statement ran in the child, expected value included: `protected` is False). `given`, `expected`
    and `got` are texts, shortened in the middle; `got` is '' if nothing was returned. `reason` is '' if the test
    passed, else a message. `status` is that of evaluate.sandbox.types.ExecutionResult, `ok` for a wrong answer too.
    `seconds` is the time of this test alone, if it is known.
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


def shorten(text: str, max_length: int = MAX_TEXT) -> str:
    """Shorten `text` to at most `max_length` characters by cutting out its middle."""
    if len(text) <= max_length:
        return text
    left = max_length // 2
    return f"{text[:left]}…{text[len(text) - (max_length - left - 1) :]}"


def one_line(text: str) -> str:
    """Return `text` as one short line, for use inside a message."""
    return shorten(" ".join(text.split()), MAX_MESSAGE_TEXT)


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


MAX_CHARACTERS = 200_000  # of one value; the same as MAX_VALUE_CHARACTERS of the child
MAX_DEPTH = 60
_HEX_PATTERN = re.compile(r"-?0x[0-9a-f]+")
_DECIMAL_PATTERN = re.compile(r"-?(?:\d{1,1000}(?:\.\d{1,1000})?(?:E[+-]?\d{1,4})?|Infinity|NaN)")
_SPECIAL_FLOATS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class InvalidValueError(ValueError):
    """The child sent something that is not an encoded value."""


@dataclass(frozen=True, eq=False)
class OpaqueValue:
    """An object of which only the type's name is known. Equal to nothing, itself included."""

    type_name: str

    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"an object of type {self.type_name}"


def decode_value(encoded: Any) -> Any:
    """Decode a value from parsed JSON. Raises InvalidValueError if it is not an encoded value."""
    try:
        return _decode(encoded, 0)
    except InvalidValueError:
        raise
    except (TypeError, ValueError, ArithmeticError) as error:
        raise InvalidValueError(str(error)) from error


def parse_json_line(line: str) -> Any:
    """Parse one line of JSON. Raises InvalidValueError if it is invalid, too long or too deeply nested."""
    if len(line) > MAX_CHARACTERS + 1_000:
        raise InvalidValueError("too long")
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidValueError(str(error)) from error


def format_value(value: Any) -> str:
    """Return the `repr` of a decoded value, or a description if Python refuses to print it."""
    try:
        return repr(value)
    except ValueError:  # an int of more digits than Python writes
        return f"an integer of {value.bit_length()} bits" if isinstance(value, int) else "a value too long to write"


def _decode(encoded: Any, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise InvalidValueError("nested too deeply")
    if encoded is None or isinstance(encoded, bool | int | float | str):
        return encoded
    if isinstance(encoded, list):
        return [_decode(item, depth + 1) for item in encoded]
    if not isinstance(encoded, dict) or len(encoded) != 1:
        raise InvalidValueError("not a tagged value")
    ((tag, content),) = encoded.items()
    if tag in _SCALAR_DECODERS:
        return _SCALAR_DECODERS[tag](content)
    if not isinstance(content, list):
        raise InvalidValueError(f"not the content of a {tag}")
    if tag == "dict":
        return {_decode(key, depth + 1): _decode(value, depth + 1) for key, value in content}
    if tag not in _CONTAINER_TYPES:
        raise InvalidValueError("unknown tag")
    return _CONTAINER_TYPES[tag](_decode(item, depth + 1) for item in content)


def _decode_int(text: Any) -> int:
    if not isinstance(text, str) or not _HEX_PATTERN.fullmatch(text):
        raise InvalidValueError("not a whole number")
    return int(text, 16)


def _decode_fraction(pair: Any) -> Fraction:
    numerator, denominator = pair
    return Fraction(_decode_int(numerator), _decode_int(denominator))


def _decode_decimal(text: Any) -> Decimal:
    if not isinstance(text, str) or not _DECIMAL_PATTERN.fullmatch(text):
        raise InvalidValueError("not a decimal")
    return Decimal(text)


def _decode_complex(pair: Any) -> complex:
    real, imaginary = pair
    return complex(float.fromhex(real), float.fromhex(imaginary))


_SCALAR_DECODERS: dict[str, Any] = {
    "int": _decode_int,
    "float": lambda name: _SPECIAL_FLOATS[name] if name in _SPECIAL_FLOATS else _raise_invalid_float(),
    "complex": _decode_complex,
    "bytes": bytes.fromhex,
    "str": lambda text: bytes.fromhex(text).decode("utf-8", "surrogatepass"),
    "fraction": _decode_fraction,
    "decimal": _decode_decimal,
    "other": lambda name: OpaqueValue(str(name)[:100]),
}
_CONTAINER_TYPES: dict[str, Any] = {"tuple": tuple, "set": set, "frozenset": frozenset}


def _raise_invalid_float() -> float:
    raise InvalidValueError("not a number")
