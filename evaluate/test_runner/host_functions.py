"""Functions, methods and operators of the host's interpreter, bounded in the size of their results."""

from __future__ import annotations

import ast
import math
import operator
from collections import Counter, OrderedDict, UserList, deque
from collections.abc import Callable, Iterable
from decimal import Decimal
from fractions import Fraction
from functools import partial
from typing import Any

from evaluate.test_runner.values import LargeValue, OpaqueValue, SubclassValue, is_fully_known

MAX_BITS = 100_000  # of a whole number
MAX_DIGITS = 400  # to round to; a float has fewer
MAX_ITEMS = 1_000_000  # of a sequence
MAX_FACTORIAL = 1_000
NUMBER_TYPES = (int, float, complex, Fraction, Decimal)
TYPES: dict[str, type] = {
    kind.__name__: kind
    for kind in (int, float, str, bool, list, tuple, dict, set, frozenset, bytes, bytearray, complex, range)
}
CONSTANTS: dict[str, Any] = {f"math.{name}": getattr(math, name) for name in ("pi", "e", "tau", "inf", "nan")}
NUMPY_CONSTANTS = ("pi", "e", "inf", "nan")


class UnsupportedExprError(ValueError):
    """An expression that the host does not evaluate, or whose value is too large."""


class UnknownValueError(UnsupportedExprError):
    """An operation on a value of which the host knows only the type, or a part."""


class OpaqueArithmeticError(TypeError):
    """Arithmetic with an object of which the host knows only the type."""


def _int(value: Any = 0, base: int = 10) -> int:
    if isinstance(value, Decimal):
        raise UnsupportedExprError("a Decimal may stand for too large a number")
    if base != 10:
        return int(value, base)
    if isinstance(value, str) and len(value) <= MAX_BITS and value.strip().lstrip("+-").isdecimal():
        return int(Decimal(value.strip()))  # int(text) refuses more than 4,300 digits
    return int(value)


def _round(value: Any, digits: int | None = None) -> Any:
    if digits is not None and abs(digits) > MAX_DIGITS:
        raise UnsupportedExprError("too many digits to round to")
    return round(value, digits)


def _range(*limits: int) -> range:
    found = range(*limits)
    if len(found) > MAX_ITEMS:
        raise UnsupportedExprError("a range too long to evaluate")
    return found


def _sum(items: Iterable[Any], start: Any = 0) -> Any:
    if not isinstance(start, NUMBER_TYPES):
        raise UnsupportedExprError("a sum of what are no numbers")
    return sum(items, start)


def _bytes(value: Any = b"") -> bytes:
    if isinstance(value, int):
        raise UnsupportedExprError("bytes of a length")
    return bytes(value)


def _text(function: Callable[[Any], str], value: Any = "") -> str:
    if not is_fully_known(value) or _contains_set(value):
        raise UnknownValueError("its text is known to the child alone")
    return function(value)


def _contains_set(value: Any) -> bool:
    """Return whether the text of `value` depends on the order of a set, which differs between processes."""
    if isinstance(value, set | frozenset):
        return len(value) > 1
    if isinstance(value, dict):
        return any(map(_contains_set, value.values()))
    return isinstance(value, list | tuple | deque | UserList) and any(map(_contains_set, value))


def _fraction(numerator: Any = 0, denominator: Any = None) -> Fraction:
    if isinstance(numerator, str | Decimal):
        raise UnsupportedExprError("a text may stand for too large a number")
    return Fraction(numerator, denominator)


def _factorial(value: int) -> int:
    if value > MAX_FACTORIAL:
        raise UnsupportedExprError("a factorial too large to evaluate")
    return math.factorial(value)


def _type(value: Any) -> type:
    if isinstance(value, SubclassValue | OpaqueValue | LargeValue):
        raise UnknownValueError("its type is known to the child alone")
    return type(value)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    **TYPES,
    "int": _int,
    "bytes": _bytes,
    "range": _range,
    "sum": _sum,
    "round": _round,
    "str": partial(_text, str),
    "repr": partial(_text, repr),
    "type": _type,
    **{f.__name__: f for f in (sorted, len, min, max, abs, all, any, zip, map, filter, enumerate, reversed, divmod)},
    **{f.__name__: f for f in (ord, chr, iter, next, Counter, OrderedDict, deque, hex, bin, oct)},
    "Fraction": _fraction,
    "collections.Counter": Counter,
    "collections.OrderedDict": OrderedDict,
    "collections.deque": deque,
    "fractions.Fraction": _fraction,
    "math.factorial": _factorial,
    **{
        f"math.{name}": getattr(math, name)
        for name in (
            *("isclose", "dist", "hypot", "fabs", "sqrt", "floor", "ceil", "trunc", "isnan", "isinf", "isfinite"),
            *("gcd", "copysign", "log", "log2", "log10", "exp", "sin", "cos", "tan", "atan", "atan2", "degrees"),
            *("radians", "fsum", "fmod", "asin", "acos", "log1p", "expm1", "modf"),
        )
    },
    **{f"operator.{name}": getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge", "sub", "add")},
}
_SIZED_TYPES = (str, bytes, bytearray, list, tuple, set, frozenset, dict, deque, range, UserList)
_NUMBER_FUNCTIONS = frozenset(["abs", "round", "divmod", "float", "int", "complex"])
NUMPY_FUNCTIONS = frozenset(
    [
        *("array", "asarray", "abs", "absolute", "fabs", "allclose", "isclose", "array_equal", "array_equiv", "max"),
        *("min", "amax", "amin", "sum", "mean", "all", "any", "sqrt", "square", "sort", "subtract", "round", "around"),
        *("linalg.norm", "isnan", "isinf", "isfinite", "ravel", "median", "std", "var", "float64", "int64", "shape"),
    ]
)
METHODS: dict[type, frozenset[str]] = {
    str: frozenset(
        [
            "startswith",
            "endswith",
            "lower",
            "upper",
            "strip",
            "lstrip",
            "rstrip",
            "split",
            "rsplit",
            "splitlines",
            "count",
            "find",
            "rfind",
            "index",
            "rindex",
            "isdigit",
            "isalpha",
            "isalnum",
            "isupper",
            "islower",
            "isspace",
            "istitle",
            "isnumeric",
            "isdecimal",
            "isascii",
            "title",
            "capitalize",
            "casefold",
            "swapcase",
            "encode",
            "partition",
            "rpartition",
            "removeprefix",
            "removesuffix",
            "join",
        ]
    ),
    bytes: frozenset(["decode", "hex", "startswith", "endswith"]),
    list: frozenset(["index", "count", "copy"]),
    tuple: frozenset(["index", "count"]),
    dict: frozenset(["keys", "values", "items", "get", "copy", "most_common", "elements", "total"]),
    set: frozenset(
        ["union", "intersection", "difference", "symmetric_difference", "issubset", "issuperset", "isdisjoint", "copy"],
    ),
    float: frozenset(["is_integer", "as_integer_ratio"]),
    int: frozenset(["bit_length", "bit_count", "as_integer_ratio"]),
    complex: frozenset(["conjugate"]),
    range: frozenset(["index", "count"]),
}
METHODS[frozenset] = METHODS[set]
_NUMPY_KEYWORDS = frozenset(["axis", "rtol", "atol", "equal_nan", "decimals", "ord", "keepdims"])
NUMPY_TYPE_NAMES = frozenset(["ndarray", "integer", "floating", "number", "bool_", "int64", "float64"])
_ARRAY_METHODS = frozenset(["all", "any", "max", "min", "sum", "mean", "tolist", "round", "item", "ravel", "flatten"])
METHOD_NAMES = _ARRAY_METHODS.union(*METHODS.values())
ATTRIBUTES = frozenset(["real", "imag", "numerator", "denominator", "shape", "ndim", "size"])
NUMBERS_WITH_PARTS = (int, float, complex, Fraction)
COMPARE_OPS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda item, items: item in known(items),
    ast.NotIn: lambda item, items: item not in known(items),
    ast.Is: lambda left, right: _is_identical(left, right),  # noqa: PLW0108 - defined below
    ast.IsNot: lambda left, right: not _is_identical(left, right),
}
_ARITHMETIC_OPS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_BIT_OPS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.BitOr: operator.or_,
    ast.BitAnd: operator.and_,
    ast.BitXor: operator.xor,
}
_BIT_OPERANDS: tuple[tuple[type, ...], ...] = (
    (int,),
    (set, frozenset, type({}.keys()), type({}.items())),
    (dict,),
)
UNARY_OPS: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
    ast.Invert: operator.invert,
}


def known(value: Any) -> Any:
    """Return `value`; raise UnknownValueError if the host does not know it."""
    if isinstance(value, OpaqueValue | LargeValue):
        raise UnknownValueError("a value that only the child has")
    return value


def size_of(value: Any) -> int:
    """Return the number of items of a sequence or set, as a measure of the work with it; 1 for all else."""
    return len(value) if isinstance(value, _SIZED_TYPES) else 1


def call_function(name: str, arguments: list[Any], named: dict[str, Any]) -> Any:
    """Call a function in FUNCTIONS. Functions of numbers take no other object for one."""
    if name == "len" and len(arguments) == 1 and isinstance(arguments[0], LargeValue) and arguments[0].length:
        return arguments[0].length
    for value in arguments:
        if isinstance(value, OpaqueValue) and (name.startswith("math.") or name in _NUMBER_FUNCTIONS):
            raise OpaqueArithmeticError(f"no arithmetic with {value!r}")
    return FUNCTIONS[name](*map(known, arguments), **named)


def is_instance(value: Any, types: Any) -> bool:
    """Compute `isinstance` for a decoded value."""
    kinds = types if isinstance(types, tuple) else (types,)
    if not all(isinstance(kind, type) for kind in kinds):
        raise UnsupportedExprError("an unsupported type")
    if isinstance(value, LargeValue):
        return value.type_name in {kind.__name__ for kind in kinds}
    if isinstance(value, OpaqueValue | SubclassValue) and not set(kinds) <= set(TYPES.values()):
        raise UnknownValueError("its type is known to the child alone")
    return isinstance(value, kinds)


def call_method(owner: Any, name: str, arguments: list[Any], named: dict[str, Any]) -> Any:
    """Call a method in METHODS, or one of an array. Raises UnknownValueError for any other."""
    if is_numpy(owner) and name in _ARRAY_METHODS:
        return getattr(owner, name)(*arguments, **named)
    base = next((kind for kind in METHODS if isinstance(owner, kind)), None)
    if base is None or isinstance(owner, SubclassValue) or name not in METHODS[base] or not hasattr(owner, name):
        raise UnknownValueError("a method that only the child has")
    if name == "elements" and sum(map(abs, owner.values())) > MAX_ITEMS:
        raise UnsupportedExprError("too many elements")
    if name == "join":
        arguments = [list(known(each)) for each in arguments]
        if sum(len(part) + len(owner) for each in arguments for part in each) > MAX_ITEMS:
            raise UnsupportedExprError("a text too long to evaluate")
    return getattr(owner, name)(*map(known, arguments), **named)


def is_numpy(value: Any) -> bool:
    """Return whether this is an array or a number of NumPy."""
    return type(value).__module__ == "numpy"


def call_numpy(name: str, arguments: list[Any], named: dict[str, Any]) -> Any:
    """Call a function in NUMPY_FUNCTIONS with numbers, and sequences and arrays of them."""
    import numpy as np

    if not is_fully_known(arguments):
        raise UnknownValueError("a value that only the child has")
    if not named.keys() <= _NUMPY_KEYWORDS or any(isinstance(each, str) for each in (*arguments, *named.values())):
        raise UnsupportedExprError("other arguments of a function of NumPy")
    arrays = [np.asarray(each) for each in arguments if isinstance(each, list | tuple) or is_numpy(each)]
    if any(array.dtype.kind not in "biufc" for array in arrays):
        raise UnsupportedExprError("an array of what are no numbers")
    if len(arrays) > 1:
        check_broadcast(*arrays)
    function: Any = np
    for part in name.split("."):
        function = getattr(function, part)
    with np.errstate(all="ignore"):
        return function(*arguments, **named)


def check_broadcast(*sides: Any) -> None:
    """Raise UnsupportedExprError if an operation on the arrays had too large a result."""
    import numpy as np

    if math.prod(np.broadcast_shapes(*(np.shape(side) for side in sides))) > MAX_ITEMS:
        raise UnsupportedExprError("an array too large to evaluate")


def apply_binary_op(op: ast.operator, left: Any, right: Any) -> Any:
    """Compute `left op right` for numbers, sequences, sets, counters and arrays of bounded size."""
    for value in (left, right):
        if isinstance(value, LargeValue):
            raise UnknownValueError("a value too large to send")
        if isinstance(value, OpaqueValue):
            raise OpaqueArithmeticError(f"no arithmetic with {value!r}")
    if is_numpy(left) or is_numpy(right):
        return _apply_to_arrays(op, left, right)
    if type(op) in _BIT_OPS:
        if any(isinstance(left, kinds) and isinstance(right, kinds) for kinds in _BIT_OPERANDS):
            return _BIT_OPS[type(op)](left, right)
        raise _no_operation(left, right)
    if type(op) not in _ARITHMETIC_OPS:
        raise UnsupportedExprError(f"{type(op).__name__} is not evaluated on the host")
    numbers = isinstance(left, NUMBER_TYPES) and isinstance(right, NUMBER_TYPES)
    if isinstance(op, ast.Sub) and isinstance(left, Counter):
        raise UnknownValueError("a difference of counters, which drops what is missing")
    sets = isinstance(op, ast.Sub) and isinstance(left, set | frozenset | type({}.keys()))
    if not numbers and not sets and not isinstance(op, ast.Add | ast.Mult):
        raise _no_operation(left, right)
    if _result_size(op, left, right) > MAX_ITEMS:
        raise UnsupportedExprError("a value too large to evaluate")
    return _ARITHMETIC_OPS[type(op)](left, right)


def _no_operation(left: Any, right: Any) -> Exception:
    if isinstance(left, str | bytes):  # % formats
        return UnsupportedExprError("arithmetic on a value that is not a number")
    return TypeError(f"no arithmetic between {type(left).__name__} and {type(right).__name__}")


def _apply_to_arrays(op: ast.operator, left: Any, right: Any) -> Any:
    import numpy as np

    function = (_ARITHMETIC_OPS | _BIT_OPS).get(type(op))
    sides = [np.asarray(side) for side in (left, right)]
    if function is None or any(side.dtype.kind not in "biufc" for side in sides):
        raise UnsupportedExprError("another operation on an array")
    check_broadcast(*sides)
    with np.errstate(all="ignore"):
        return function(left, right)


def _result_size(op: ast.operator, left: Any, right: Any) -> float:
    """Return an upper bound of the result's size in items, where MAX_BITS of a number count as MAX_ITEMS."""
    scale = MAX_ITEMS / MAX_BITS
    if isinstance(op, ast.Pow):
        if isinstance(left, int) and isinstance(right, int):
            return scale * max(left.bit_length(), 1) * max(right, 1)
        return 0 if isinstance(left, float | complex | int) and isinstance(right, float | complex | int) else math.inf
    if isinstance(left, int) and isinstance(right, int):
        return scale * (left.bit_length() + right.bit_length())
    if isinstance(op, ast.Mult):
        for many, times in ((left, right), (right, left)):
            if isinstance(many, str | bytes | list | tuple | deque | UserList) and isinstance(times, int):
                return len(many) * max(times, 0)
    return 0


def _is_identical(left: Any, right: Any) -> bool:
    """Compute `is` for decoded values: identity for None, True, False and types, else equality with the same type.

    A value of a subclass is not what a constant is.
    """
    if left is None or right is None or isinstance(left, bool | type) or isinstance(right, bool | type):
        return left is right
    return type(left) is type(right) and bool(left == right)
