"""The part of an assert that the host works out: constants, and plain operations on values that a child sent.

An interpreter of a small part of Python over syntax trees, as `ast.literal_eval` is: literals, arithmetic, comparisons,
and the functions named below. Names that a test may use but that are not here belong to the child. Everything is
bounded: a test comes from a data set or from a person, and neither may hang the host.
"""

from __future__ import annotations

import ast
import math
import operator
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

MAX_BITS = 100_000  # of a whole number
MAX_DIGITS = 400  # to round to: a float has no more
MAX_ITEMS = 1_000_000  # of a sequence
NUMBER_TYPES = (int, float, complex, Fraction, Decimal)
ISINSTANCE_TYPES: dict[str, type] = {
    each.__name__: each for each in (int, float, str, bool, list, tuple, dict, set, frozenset, bytes, complex)
}
MATH_CONSTANTS: dict[str, Any] = {f"math.{name}": getattr(math, name) for name in ("pi", "e", "tau", "inf", "nan")}


class UnsupportedExprError(ValueError):
    """An expression that the host doesn't work out, or whose value is out of bounds."""


def _int(value: Any = 0) -> int:
    if isinstance(value, Decimal):
        raise UnsupportedExprError("a Decimal may stand for too large a number")
    if isinstance(value, str) and len(value) <= MAX_BITS and value.strip().lstrip("+-").isdecimal():
        return int(Decimal(value.strip()))  # int(text) refuses more than 4,300 digits
    return int(value)


def _round(value: Any, digits: int | None = None) -> Any:
    if digits is not None and abs(digits) > MAX_DIGITS:
        raise UnsupportedExprError("too many digits to round to")
    return round(value, digits)


CALLABLES: dict[str, Callable[..., Any]] = {
    **{name: each for name, each in ISINSTANCE_TYPES.items() if name not in {"int", "bytes"}},  # bytes(n) takes n bytes
    "int": _int,
    "sorted": sorted,
    "len": len,
    "sum": sum,
    "min": min,
    "max": max,
    "abs": abs,
    "round": _round,
    "Counter": Counter,
    "OrderedDict": OrderedDict,
}
ISCLOSE_NAMES = ("isclose", "math.isclose")
COMPARE_OPS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda item, items: item in items,
    ast.NotIn: lambda item, items: item not in items,
    ast.Is: lambda left, right: _is_identical(left, right),  # noqa: PLW0108 - defined below
    ast.IsNot: lambda left, right: not _is_identical(left, right),
}
_BINARY_OPS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_UNARY_OPS: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
}


class Placeholder(ast.Name):
    """Stands in an expression for the value that a child sends for it: `Hole(id=str(index))`."""


def dotted_name(node: ast.expr) -> str:
    """'math.isclose' for that expression, '' for anything but names joined by dots."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        owner = dotted_name(node.value)
        return f"{owner}.{node.attr}" if owner else ""
    return ""


def evaluate_expr(node: ast.expr, values: Mapping[str, Any] | None = None) -> Any:
    """The value of `node`, with `holes` filled in. UnsupportedExprError where it is none of what is known here.

    What Python raises for such an expression (TypeError for 1 < 'a') is raised as it is.
    """
    return _ExprEvaluator(values or {}).evaluate(node)


def is_constant(node: ast.expr) -> bool:
    """Whether `node` has a value that depends on no program."""
    try:
        evaluate_expr(node)
    except Exception:  # noqa: BLE001 - whatever it raises, it is no constant
        return False
    return True


class _ExprEvaluator:
    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def evaluate(self, node: ast.expr) -> Any:
        found = self._evaluate_simple(node)
        if found is not NotImplemented:
            return found
        match node:
            case ast.UnaryOp() if type(node.op) in _UNARY_OPS:
                return _UNARY_OPS[type(node.op)](self.evaluate(node.operand))
            case ast.BinOp():
                return apply_binary_op(node.op, self.evaluate(node.left), self.evaluate(node.right))
            case ast.BoolOp():
                return self._evaluate_bool_op(node)
            case ast.Compare():
                return self._evaluate_compare(node)
            case ast.Call():
                return self._evaluate_call(node)
        raise UnsupportedExprError(f"a {type(node).__name__} is not worked out here")

    def _evaluate_simple(self, node: ast.expr) -> Any:
        match node:
            case Placeholder() if node.id in self._values:
                return self._values[node.id]
            case ast.Constant():
                return node.value
            case ast.List():
                return [self.evaluate(each) for each in node.elts]
            case ast.Tuple():
                return tuple(self.evaluate(each) for each in node.elts)
            case ast.Set():
                return {self.evaluate(each) for each in node.elts}
            case ast.Dict() if all(key is not None for key in node.keys):
                return {self.evaluate(k): self.evaluate(v) for k, v in zip(node.keys, node.values, strict=True) if k}
            case ast.Attribute() if dotted_name(node) in MATH_CONSTANTS:
                return MATH_CONSTANTS[dotted_name(node)]
        return NotImplemented

    def _evaluate_bool_op(self, node: ast.BoolOp) -> Any:
        found: Any = None
        for each in node.values:
            found = self.evaluate(each)
            if bool(found) is isinstance(node.op, ast.Or):
                break
        return found

    def _evaluate_compare(self, node: ast.Compare) -> bool:
        left = self.evaluate(node.left)
        for op, each in zip(node.ops, node.comparators, strict=True):
            right = self.evaluate(each)
            if not COMPARE_OPS[type(op)](left, right):
                return False
            left = right
        return True

    def _evaluate_call(self, node: ast.Call) -> Any:
        name = dotted_name(node.func)
        named = {each.arg: self.evaluate(each.value) for each in node.keywords if each.arg}
        if name == "isinstance" and len(node.args) == 2:
            return isinstance(self.evaluate(node.args[0]), isinstance_types(node.args[1]))
        function = math.isclose if name in ISCLOSE_NAMES else CALLABLES.get(name)
        if function is None or len(named) != len(node.keywords):
            raise UnsupportedExprError(f"{name or 'this call'} is not worked out here")
        return function(*(self.evaluate(each) for each in node.args), **named)


def isinstance_types(node: ast.expr) -> tuple[type, ...]:
    """The types that the second argument of isinstance names; UnsupportedExprError for others."""
    named = node.elts if isinstance(node, ast.Tuple) else [node]
    if not all(isinstance(each, ast.Name) and each.id in ISINSTANCE_TYPES for each in named):
        raise UnsupportedExprError("a type that is not known here")
    return tuple(ISINSTANCE_TYPES[each.id] for each in named if isinstance(each, ast.Name))


def apply_binary_op(op: ast.operator, left: Any, right: Any) -> Any:
    """`left op right` for numbers, sequences and sets of bounded size."""
    if isinstance(left, set | frozenset) and isinstance(op, ast.BitOr | ast.BitAnd | ast.Sub | ast.BitXor):
        bits = {ast.BitOr: operator.or_, ast.BitAnd: operator.and_, ast.Sub: operator.sub, ast.BitXor: operator.xor}
        return bits[type(op)](left, right)
    if type(op) not in _BINARY_OPS:
        raise UnsupportedExprError(f"{type(op).__name__} is not worked out here")
    numbers = isinstance(left, NUMBER_TYPES) and isinstance(right, NUMBER_TYPES)
    if not numbers and not isinstance(op, ast.Add | ast.Mult):
        raise UnsupportedExprError("arithmetic on what is no number")
    if _result_size(op, left, right) > MAX_ITEMS:
        raise UnsupportedExprError("a value too large to work out")
    return _BINARY_OPS[type(op)](left, right)


def _result_size(op: ast.operator, left: Any, right: Any) -> float:
    """An upper bound of what the result takes, in items (MAX_ITEMS for MAX_BITS of a number)."""
    scale = MAX_ITEMS / MAX_BITS
    if isinstance(op, ast.Pow):
        if isinstance(left, int) and isinstance(right, int):
            return scale * max(left.bit_length(), 1) * max(right, 1)
        return 0 if isinstance(left, float | complex | int) and isinstance(right, float | complex | int) else math.inf
    if isinstance(left, int) and isinstance(right, int):
        return scale * (left.bit_length() + right.bit_length())
    if isinstance(op, ast.Mult):
        for many, times in ((left, right), (right, left)):
            if isinstance(many, str | bytes | list | tuple) and isinstance(times, int):
                return len(many) * max(times, 0)
    return 0


def _is_identical(left: Any, right: Any) -> bool:
    """`is` for values that were read: identity for None, True and False, else equal values of the same type."""
    if left is None or right is None or isinstance(left, bool) or isinstance(right, bool):
        return left is right
    return type(left) is type(right) and bool(left == right)
