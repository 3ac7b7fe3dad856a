"""Values that a child sent, read on the host: plain data of Python's own types, nothing that has a say of its own.

The child writes JSON (evaluate/checking/child.py). None, booleans, text and small numbers stand for themselves, a list
is a list; everything else is an object with one key, its type:

    {"int": "0x..."} {"float": "nan"} {"complex": ["0x1p+0", "0x0p+0"]} {"bytes": "hex"} {"str": "hex of UTF-8"}
    {"tuple": [...]} {"set": [...]} {"frozenset": [...]} {"dict": [[key, value], ...]}
    {"fraction": ["0x1", "0x2"]} {"decimal": "1.5"} {"other": "name of the type"}

An instance of a subclass arrives as the data of its base (a TokenCounter as a dict, a NumPy number as a number), so methods
like `__eq__` never decide here. Any other object arrives as the name of its type: an `OpaqueValue`, equal to nothing.
Reading is bounded in length, depth and digits, and evaluates nothing.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

MAX_CHARACTERS = 200_000  # of one value; the child keeps to the same
MAX_DEPTH = 60
_HEX_PATTERN = re.compile(r"-?0x[0-9a-f]+")
_DECIMAL_PATTERN = re.compile(r"-?(?:\d{1,1000}(?:\.\d{1,1000})?(?:E[+-]?\d{1,4})?|Infinity|NaN)")
_SPECIAL_FLOATS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class InvalidValueError(ValueError):
    """What came from the child is no value."""


@dataclass(frozen=True, eq=False)
class OpaqueValue:
    """An object of which no more than its type's name is known. Equal to nothing, itself included."""

    type_name: str

    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"an object of type {self.type_name}"


def decode_value(encoded: Any) -> Any:
    """The value that `encoded` (parsed JSON) stands for; InvalidValueError where it stands for none."""
    try:
        return _decode(encoded, 0)
    except InvalidValueError:
        raise
    except (TypeError, ValueError, ArithmeticError) as fault:
        raise InvalidValueError(str(fault)) from fault


def parse_json_line(line: str) -> Any:
    """One line of JSON; InvalidValueError where it is none, too long or too deep."""
    if len(line) > MAX_CHARACTERS + 1_000:
        raise InvalidValueError("too long")
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as fault:
        raise InvalidValueError(str(fault)) from fault


def format_value(value: Any) -> str:
    """`repr` of a value that was read, whatever its size."""
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
        return [_decode(each, depth + 1) for each in encoded]
    if not isinstance(encoded, dict) or len(encoded) != 1:
        raise InvalidValueError("no tagged value")
    ((tag, content),) = encoded.items()
    if tag in _SCALAR_DECODERS:
        return _SCALAR_DECODERS[tag](content)
    if not isinstance(content, list):
        raise InvalidValueError(f"no content of a {tag}")
    if tag == "dict":
        return {_decode(key, depth + 1): _decode(value, depth + 1) for key, value in content}
    if tag not in _CONTAINER_TYPES:
        raise InvalidValueError("no tag that is known")
    return _CONTAINER_TYPES[tag](_decode(each, depth + 1) for each in content)


def _decode_int(text: Any) -> int:
    if not isinstance(text, str) or not _HEX_PATTERN.fullmatch(text):
        raise InvalidValueError("no whole number")
    return int(text, 16)


def _decode_fraction(pair: Any) -> Fraction:
    above, below = pair
    return Fraction(_decode_int(above), _decode_int(below))


def _decode_decimal(text: Any) -> Decimal:
    if not isinstance(text, str) or not _DECIMAL_PATTERN.fullmatch(text):
        raise InvalidValueError("no decimal")
    return Decimal(text)


def _decode_complex(pair: Any) -> complex:
    real, imaginary = pair
    return complex(float.fromhex(real), float.fromhex(imaginary))


_SCALAR_DECODERS: dict[str, Any] = {
    "int": _decode_int,
    "float": lambda name: _SPECIAL_FLOATS[name] if name in _SPECIAL_FLOATS else _raise_no_float(),
    "complex": _decode_complex,
    "bytes": bytes.fromhex,
    "str": lambda text: bytes.fromhex(text).decode("utf-8", "surrogatepass"),
    "fraction": _decode_fraction,
    "decimal": _decode_decimal,
    "other": lambda name: OpaqueValue(str(name)[:100]),
}
_CONTAINER_TYPES: dict[str, Any] = {"tuple": tuple, "set": set, "frozenset": frozenset}


def _raise_no_float() -> float:
    raise InvalidValueError("no number")
