"""Decoding of the values that the sandbox's child sends, and the host's stand-ins for what it cannot restore.

The child writes values as JSON (evaluate/test_runner/child.py). None, booleans, text and small numbers stand for
themselves, a list is a list; everything else is an object with one key, its type:

    {"int": "0x..."} {"float": "nan"} {"complex": ["0x1p+0", "0x0p+0"]} {"bytes": "hex"} {"str": "hex of UTF-8"}
    {"tuple": [...]} {"set": [...]} {"frozenset": [...]} {"dict": [[key, value], ...]} {"bytearray": "hex"}
    {"fraction": ["0x1", "0x2"]} {"decimal": "1.5"} {"range": [start, stop, step]} {"numpy": ["int64", 3]}
    {"ndarray": ["int64", [shape], [items]]} {"Counter": [[key, count], ...]}, and other types of `collections`
    {"subclass": ["name", value of its base]} {"other": "name"} {"large": ["name", length, "digest"]}

Library types are restored, so that Python's own equality compares them. An instance of a subclass has the data of its
base, so no method of the candidate, such as `__eq__`, takes part in comparisons. Any other object arrives as the name
of its type: an `OpaqueValue`, equal to nothing. A value that is too large to send arrives as a digest: a `LargeValue`.
Decoding is bounded in length, depth and digits, and evaluates nothing.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, OrderedDict, UserDict, UserList, UserString, deque
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

from evaluate.test_runner.child import (
    MAX_NAME_CHARACTERS,
    MAX_VALUE_CHARACTERS,
    MAX_VALUE_DEPTH,
    NUMPY_TYPES,
    ValueTooLargeError,
    value_digest,
)

MAX_LINE_CHARACTERS = MAX_VALUE_CHARACTERS * 2 + 10_000  # two values, and the rest of a record
MAX_FRACTION_DIGITS = 25_000  # hexadecimal ones
MAX_RANGE_ITEMS = 1_000_000  # a longer one is opaque, because the host may make a list of it
_HEX_PATTERN = re.compile(r"-?0x[0-9a-f]+")
_DECIMAL_PATTERN = re.compile(r"-?(?:\d{1,1000}(?:\.\d{1,1000})?(?:E[+-]?\d{1,4})?|Infinity|NaN)", re.ASCII)
_DIGEST_PATTERN = re.compile(r"(?:[0-9a-f]{32})?")
_SPECIAL_FLOATS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_SUBCLASSED_TYPES = (int, float, complex, str, bytes, bytearray, list, tuple, set, frozenset, dict)


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


@dataclass(frozen=True, eq=False)
class LargeValue:
    """A value of more than 200,000 characters: equal to what has the same digest; to nothing if `digest` is ''."""

    type_name: str
    length: int
    digest: str

    def __eq__(self, other: object) -> bool:
        if isinstance(other, LargeValue):
            return self.digest != "" and self.digest == other.digest
        try:
            return self.digest != "" and value_digest(other) == self.digest
        except (TypeError, ValueTooLargeError):
            return False

    __hash__ = object.__hash__

    def __bool__(self) -> bool:
        return True  # an empty value and zero are short

    def __repr__(self) -> str:
        return f"a {self.type_name} of more than {MAX_VALUE_CHARACTERS} characters"


class SubclassValue:
    """Mixin of a value whose type is a subclass, in the child, of the type that it has here."""

    type_name = ""


_SUBCLASSES = {base: type(base.__name__, (SubclassValue, base), {}) for base in _SUBCLASSED_TYPES}


def is_fully_known(value: Any) -> bool:
    """Return whether the host knows all of a decoded value: nothing in it is opaque, large, or of a subclass."""
    if isinstance(value, OpaqueValue | LargeValue | SubclassValue):
        return False
    if isinstance(value, dict | UserDict):
        return all(is_fully_known(key) and is_fully_known(item) for key, item in value.items())
    if isinstance(value, list | tuple | set | frozenset | deque | UserList) or type(value).__name__ == "dict_values":
        return all(map(is_fully_known, value))
    return True


def decode_value(encoded: Any) -> Any:
    """Decode a value from parsed JSON. Raises InvalidValueError if it is not an encoded value."""
    try:
        return _decode(encoded, 0)
    except InvalidValueError:
        raise
    except (TypeError, ValueError, LookupError, ArithmeticError, RecursionError, AttributeError) as error:
        raise InvalidValueError(str(error)) from error


def parse_json_line(line: str) -> Any:
    """Parse one line of JSON. Raises InvalidValueError if it is invalid, too long or too deeply nested."""
    if len(line) > MAX_LINE_CHARACTERS:
        raise InvalidValueError("too long")
    try:
        return json.loads(line, parse_constant=_raise_invalid_number)
    except (ValueError, RecursionError) as error:
        raise InvalidValueError(str(error)) from error


def _raise_invalid_number(text: str) -> float:
    raise InvalidValueError(f"{text} is no number of JSON")


def _decode(encoded: Any, depth: int) -> Any:
    if depth > MAX_VALUE_DEPTH + 1:  # of a subclass: a wrapper more
        raise InvalidValueError("nested too deeply")
    if encoded is None or isinstance(encoded, bool | int | str):
        return encoded
    if isinstance(encoded, float):
        if not math.isfinite(encoded):
            raise InvalidValueError("not a finite number")
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
    if tag == "subclass":
        name, value = content
        return _decode_subclass(name, _decode(value, depth))
    if tag in _PAIR_DECODERS:
        pairs = [(_decode(key, depth + 1), _decode(value, depth + 1)) for key, value in content]
        return _PAIR_DECODERS[tag](pairs)
    if tag not in _ITEM_DECODERS:
        raise InvalidValueError("unknown tag")
    return _ITEM_DECODERS[tag]([_decode(item, depth + 1) for item in content])


def _decode_name(text: Any) -> str:
    if not isinstance(text, str) or len(text) > MAX_NAME_CHARACTERS:
        raise InvalidValueError("not a name")
    return text


def _decode_subclass(name: Any, value: Any) -> Any:
    if type(value) not in _SUBCLASSED_TYPES:
        raise InvalidValueError("not the value of a base")
    restored = _SUBCLASSES[type(value)](value)
    restored.type_name = _decode_name(name)
    return restored


def _decode_large(content: Any) -> LargeValue:
    name, length, digest = content
    if type(length) is not int or not 0 <= length < 10**12 or not _DIGEST_PATTERN.fullmatch(digest):
        raise InvalidValueError("not a large value")
    return LargeValue(_decode_name(name), length, digest)


def _decode_int(text: Any) -> int:
    if not isinstance(text, str) or not _HEX_PATTERN.fullmatch(text):
        raise InvalidValueError("not a whole number")
    return int(text, 16)


def _decode_float(name: Any) -> float:
    if name not in _SPECIAL_FLOATS:
        raise InvalidValueError("not a number")
    return _SPECIAL_FLOATS[name]


def _decode_fraction(pair: Any) -> Fraction:
    numerator, denominator = pair
    if len(numerator) + len(denominator) > MAX_FRACTION_DIGITS:
        raise InvalidValueError("too many digits")
    return Fraction(_decode_int(numerator), _decode_int(denominator))


def _decode_decimal(text: Any) -> Decimal:
    if not isinstance(text, str) or not _DECIMAL_PATTERN.fullmatch(text):
        raise InvalidValueError("not a decimal")
    return Decimal(text)


def _decode_complex(pair: Any) -> complex:
    real, imaginary = pair
    return complex(float.fromhex(real), float.fromhex(imaginary))


def _decode_range(items: list[Any]) -> range | OpaqueValue:
    if not all(type(item) is int for item in items):
        raise InvalidValueError("not a range")
    start, stop, step = items
    found = range(start, stop, step)
    try:
        return found if len(found) <= MAX_RANGE_ITEMS else OpaqueValue("range")
    except OverflowError:  # longer than any list
        return OpaqueValue("range")


def _decode_numpy_scalar(items: list[Any]) -> Any:
    name, value = items
    if isinstance(value, list | tuple | dict | str):
        raise InvalidValueError("not a number of NumPy")
    return _numpy_type(name).type(value)


def _decode_array(items: list[Any]) -> Any:
    import numpy as np

    name, shape, values = items
    if not all(type(length) is int and length >= 0 for length in shape) or math.prod(shape) != len(values):
        raise InvalidValueError("not the shape of an array")
    if not all(isinstance(value, bool | int | float | complex) for value in values):
        raise InvalidValueError("not numbers")
    return np.array(values, dtype=_numpy_type(name)).reshape(shape)


def _numpy_type(name: Any) -> Any:
    import numpy as np

    if name not in NUMPY_TYPES:
        raise InvalidValueError("not a type of numbers")
    return np.dtype(name)


def _decode_wrapped(wrapper: Callable[[Any], Any], base: type) -> Callable[[list[Any]], Any]:
    def decode(items: list[Any]) -> Any:
        (data,) = items
        if type(data) is not base:
            raise InvalidValueError("not what is wrapped")
        return wrapper(data)

    return decode


def _decode_counter(pairs: list[Any]) -> Counter[Any]:
    counts: Counter[Any] = Counter()
    counts.update(dict.fromkeys((key for key, _ in pairs), 0))
    for key, count in pairs:
        counts[key] = count
    return counts


_SCALAR_DECODERS: dict[str, Callable[[Any], Any]] = {
    "int": _decode_int,
    "float": _decode_float,
    "complex": _decode_complex,
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "str": lambda text: bytes.fromhex(text).decode("utf-8", "surrogatepass"),
    "fraction": _decode_fraction,
    "decimal": _decode_decimal,
    "large": _decode_large,
    "other": lambda name: OpaqueValue(_decode_name(name)),
}
_PAIR_DECODERS: dict[str, Callable[[list[Any]], Any]] = {
    "dict": dict,
    "OrderedDict": OrderedDict,
    "Counter": _decode_counter,
}
_ITEM_DECODERS: dict[str, Callable[[list[Any]], Any]] = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "deque": deque,
    "range": _decode_range,
    "numpy": _decode_numpy_scalar,
    "ndarray": _decode_array,
    "dict_keys": lambda items: dict.fromkeys(items).keys(),
    "dict_items": lambda items: dict(items).items(),
    "dict_values": lambda items: dict(enumerate(items)).values(),
    "UserList": _decode_wrapped(UserList, list),
    "UserDict": _decode_wrapped(UserDict, dict),
    "UserString": _decode_wrapped(UserString, str),
}
