"""Values that a child sent, read on the host: plain data of Python's own types, nothing that has a say of its own.

The child writes JSON (evaluate/checking/child.py). None, booleans, text and small numbers stand for themselves, a list
is a list; everything else is an object with one key, its type:

    {"int": "0x..."} {"float": "nan"} {"complex": ["0x1p+0", "0x0p+0"]} {"bytes": "hex"} {"str": "hex of UTF-8"}
    {"tuple": [...]} {"set": [...]} {"frozenset": [...]} {"dict": [[key, value], ...]}
    {"fraction": ["0x1", "0x2"]} {"decimal": "1.5"} {"other": "name of the type"}

An instance of a subclass arrives as the data of its base (a Counter as a dict, a NumPy number as a number), so methods
like `__eq__` never decide here. Any other object arrives as the name of its type: an `Opaque`, equal to nothing.
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
_HEX = re.compile(r"-?0x[0-9a-f]+")
_DECIMAL = re.compile(r"-?(?:\d{1,1000}(?:\.\d{1,1000})?(?:E[+-]?\d{1,4})?|Infinity|NaN)")
_FLOATS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class UnreadableError(ValueError):
    """What came from the child is no value."""


@dataclass(frozen=True, eq=False)
class Opaque:
    """An object of which no more than its type's name is known. Equal to nothing, itself included."""

    type_name: str

    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"an object of type {self.type_name}"


def read_value(encoded: Any) -> Any:
    """The value that `encoded` (parsed JSON) stands for; UnreadableError where it stands for none."""
    try:
        return _read(encoded, 0)
    except UnreadableError:
        raise
    except (TypeError, ValueError, ArithmeticError) as fault:
        raise UnreadableError(str(fault)) from fault


def read_line(line: str) -> Any:
    """One line of JSON; UnreadableError where it is none, too long or too deep."""
    if len(line) > MAX_CHARACTERS + 1_000:
        raise UnreadableError("too long")
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as fault:
        raise UnreadableError(str(fault)) from fault


def show(value: Any) -> str:
    """`repr` of a value that was read, whatever its size."""
    try:
        return repr(value)
    except ValueError:  # an int of more digits than Python writes
        return f"an integer of {value.bit_length()} bits" if isinstance(value, int) else "a value too long to write"


def _read(encoded: Any, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise UnreadableError("nested too deeply")
    if encoded is None or isinstance(encoded, bool | int | float | str):
        return encoded
    if isinstance(encoded, list):
        return [_read(each, depth + 1) for each in encoded]
    if not isinstance(encoded, dict) or len(encoded) != 1:
        raise UnreadableError("no tagged value")
    ((tag, content),) = encoded.items()
    if tag in _SCALARS:
        return _SCALARS[tag](content)
    if not isinstance(content, list):
        raise UnreadableError(f"no content of a {tag}")
    if tag == "dict":
        return {_read(key, depth + 1): _read(value, depth + 1) for key, value in content}
    if tag not in _CONTAINERS:
        raise UnreadableError("no tag that is known")
    return _CONTAINERS[tag](_read(each, depth + 1) for each in content)


def _int(text: Any) -> int:
    if not isinstance(text, str) or not _HEX.fullmatch(text):
        raise UnreadableError("no whole number")
    return int(text, 16)


def _fraction(pair: Any) -> Fraction:
    above, below = pair
    return Fraction(_int(above), _int(below))


def _decimal(text: Any) -> Decimal:
    if not isinstance(text, str) or not _DECIMAL.fullmatch(text):
        raise UnreadableError("no decimal")
    return Decimal(text)


def _complex(pair: Any) -> complex:
    real, imaginary = pair
    return complex(float.fromhex(real), float.fromhex(imaginary))


_SCALARS: dict[str, Any] = {
    "int": _int,
    "float": lambda name: _FLOATS[name] if name in _FLOATS else _no_float(),
    "complex": _complex,
    "bytes": bytes.fromhex,
    "str": lambda text: bytes.fromhex(text).decode("utf-8", "surrogatepass"),
    "fraction": _fraction,
    "decimal": _decimal,
    "other": lambda name: Opaque(str(name)[:100]),
}
_CONTAINERS: dict[str, Any] = {"tuple": tuple, "set": set, "frozenset": frozenset}


def _no_float() -> float:
    raise UnreadableError("no number")
