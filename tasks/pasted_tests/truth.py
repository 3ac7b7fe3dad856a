"""Conditions whose truth does not depend on the answer: a constant, a tuple, a function that is not called."""

from __future__ import annotations

import ast
from collections.abc import Callable, Set
from typing import Any

# Functions of constants that a person may write by mistake; an answer that defines one of them is tested by others.
_PURE: dict[str, Callable[..., Any]] = {
    each.__name__: each
    for each in (abs, all, any, bool, dict, float, int, len, list, max, min, repr, set, sorted, str, sum, tuple, type)
}
_TYPES = {each.__name__: each for each in (bool, bytes, complex, dict, float, frozenset, int, list, set, str, tuple)}


def fixed_truth(node: ast.expr, objects: Set[str]) -> bool | None:  # noqa: PLR0911 - one return for each form
    """Return whether the condition is always true or always false; None where the answer may decide.

    `objects` are names of functions, classes and modules, which are true as such.
    """
    match node:
        case ast.Tuple() | ast.List() | ast.Set():
            return _fixed_display(node.elts)
        case ast.Dict():
            return True if node.keys and all(key is not None for key in node.keys) else (None if node.keys else False)
        case ast.Lambda() | ast.GeneratorExp():
            return True
        case ast.JoinedStr():
            return True if any(isinstance(each, ast.Constant) and each.value for each in node.values) else None
        case ast.Name():
            return True if node.id in objects else None
        case ast.NamedExpr():
            return fixed_truth(node.value, objects)
        case ast.UnaryOp(op=ast.Not()):
            inner = fixed_truth(node.operand, objects)
            return None if inner is None else not inner
        case ast.BoolOp():
            return _fixed_bool_op(node, objects)
        case ast.IfExp():
            both = {fixed_truth(node.body, objects), fixed_truth(node.orelse, objects)}
            return both.pop() if len(both) == 1 else None
        case ast.Compare(left=ast.Name(id=name), ops=[op], comparators=[ast.Constant(value=None)]) if name in objects:
            if isinstance(op, ast.IsNot | ast.NotEq):
                return True
            return False if isinstance(op, ast.Is | ast.Eq) else None
    return _constant_truth(node)


def _fixed_display(items: list[ast.expr]) -> bool | None:
    if not items:
        return False
    return None if all(isinstance(each, ast.Starred) for each in items) else True


def _fixed_bool_op(node: ast.BoolOp, objects: Set[str]) -> bool | None:
    truths = [fixed_truth(each, objects) for each in node.values]
    decisive = isinstance(node.op, ast.Or)
    if decisive in truths:
        return decisive
    return None if None in truths else not decisive


def _constant_truth(node: ast.expr) -> bool | None:
    try:
        return bool(_evaluate(node))
    except Exception:  # noqa: BLE001 - not a constant, or no value: the answer may decide
        return None


def _evaluate(node: ast.expr) -> Any:
    match node:
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            values = _evaluate(left), _evaluate(right)
            return _COMPARISONS[type(op)](*values)
        case ast.BinOp(
            left=ast.Constant(value=int() | float() as left), right=ast.Constant(value=int() | float() as right)
        ):
            return _ARITHMETIC[type(node.op)](left, right)
        case ast.Call(func=ast.Name(id="isinstance"), args=[value, ast.Name(id=name)], keywords=[]):
            return isinstance(_evaluate(value), _TYPES[name])
        case ast.Call(func=ast.Name(id=name), keywords=[]):
            return _PURE[name](*(_evaluate(each) for each in node.args))
        case ast.Name(id=name) if name in _TYPES:
            return _TYPES[name]
    return ast.literal_eval(node)


_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: lambda left, right: left == right,
    ast.NotEq: lambda left, right: left != right,
    ast.Lt: lambda left, right: left < right,
    ast.LtE: lambda left, right: left <= right,
    ast.Gt: lambda left, right: left > right,
    ast.GtE: lambda left, right: left >= right,
    ast.In: lambda left, right: left in right,
    ast.NotIn: lambda left, right: left not in right,
    ast.Is: lambda left, right: left is right or (type(left) is type(right) and left == right),
    ast.IsNot: lambda left, right: not (left is right or (type(left) is type(right) and left == right)),
}
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: lambda left, right: left + right,
    ast.Sub: lambda left, right: left - right,
    ast.Mult: lambda left, right: left * right,
}
