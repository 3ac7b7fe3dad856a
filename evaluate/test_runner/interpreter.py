"""The host's interpreter of a part of Python: expressions over constants and over values that a child sent.

It interprets syntax trees, as `ast.literal_eval` does: literals, operators, comparisons, comprehensions, subscripts,
and the functions and methods in host_functions.py. Nothing of a candidate takes part in it, patched built-in
functions neither. All of it is bounded in size and steps, because tests come from data sets and users, values from
candidates, and neither may hang the host.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from common.parsing import dotted_name
from evaluate.test_runner.host_functions import (
    ATTRIBUTES,
    COMPARE_OPS,
    CONSTANTS,
    FUNCTIONS,
    METHOD_NAMES,
    NUMBERS_WITH_PARTS,
    NUMPY_CONSTANTS,
    NUMPY_FUNCTIONS,
    NUMPY_TYPE_NAMES,
    TYPES,
    UNARY_OPS,
    UnknownValueError,
    UnsupportedExprError,
    apply_binary_op,
    call_function,
    call_method,
    call_numpy,
    check_broadcast,
    is_instance,
    is_numpy,
    known,
    size_of,
)
from evaluate.test_runner.values import LargeValue, OpaqueValue, SubclassValue

_IMPLIED_NAMES = {"np": "numpy", "isclose": "math.isclose"}  # also without the import


def full_name(node: ast.expr, imports: Mapping[str, str]) -> str:
    """Return the dotted name of a function with imported names replaced: 'numpy.abs' for np.abs; '' for another."""
    head, dot, rest = dotted_name(node).partition(".")
    return imports.get(head, _IMPLIED_NAMES.get(head, head)) + dot + rest


def is_host_function(name: str) -> bool:
    """Return whether the host can call the function of that full name."""
    return name in FUNCTIONS or name == "isinstance" or name.partition("numpy.")[2] in NUMPY_FUNCTIONS


MAX_STEPS = 5_000_000  # of one expression: nodes that are evaluated, and items of what they work with


class Interpreter:
    """Evaluator of expressions. Subclasses add node types in `evaluate_special`."""

    def __init__(self, imports: Mapping[str, str] | None = None) -> None:
        self._imports = imports or {}
        self._steps = 0
        self._bound: list[dict[str, Any]] = []  # variables of comprehensions and lambdas, inner ones last

    def evaluate_special(self, node: ast.expr) -> Any:  # noqa: ARG002 - for subclasses
        """Evaluate a node of a type that a subclass adds; NotImplemented for all others."""
        return NotImplemented

    def compare(self, op: ast.cmpop, left: Any, right: Any, node: ast.Compare) -> Any:  # noqa: ARG002 - as above
        """Compute `left op right`; `node` is the comparison that it is a part of."""
        if is_numpy(left) or is_numpy(right):
            check_broadcast(left, right)
        return COMPARE_OPS[type(op)](left, right)

    def evaluate(self, node: ast.expr) -> Any:
        """Evaluate `node`.

        Raises UnsupportedExprError for expressions that are not supported, and what Python raises for the others
        (TypeError for 1 < 'a').
        """
        self._count(1)
        found = self.evaluate_special(node)
        if found is not NotImplemented:
            return found
        method = getattr(self, f"_{type(node).__name__.lower()}", None)
        if method is None:
            raise UnsupportedExprError(f"a {type(node).__name__} is not evaluated on the host")
        return method(node)

    def _count(self, steps: int) -> None:
        self._steps += steps
        if self._steps > MAX_STEPS:
            raise UnsupportedExprError("too many steps to evaluate")

    def _constant(self, node: ast.Constant) -> Any:
        return node.value

    def _name(self, node: ast.Name) -> Any:
        for names in reversed(self._bound):
            if node.id in names:
                return names[node.id]
        if node.id in TYPES:
            return TYPES[node.id]
        function = FUNCTIONS.get(self._imports.get(node.id, node.id))
        if function is None:
            raise UnsupportedExprError(f"{node.id} is not known on the host")
        return function

    def _list(self, node: ast.List) -> list[Any]:
        return [self.evaluate(each) for each in node.elts]

    def _tuple(self, node: ast.Tuple) -> tuple[Any, ...]:
        return tuple(self.evaluate(each) for each in node.elts)

    def _set(self, node: ast.Set) -> set[Any]:
        return {self.evaluate(each) for each in node.elts}

    def _dict(self, node: ast.Dict) -> dict[Any, Any]:
        if not all(node.keys):
            raise UnsupportedExprError("an unpacked dict")
        return {self.evaluate(k): self.evaluate(v) for k, v in zip(node.keys, node.values, strict=True) if k}

    def _attribute(self, node: ast.Attribute) -> Any:
        name = full_name(node, self._imports)
        if name in CONSTANTS:
            return CONSTANTS[name]
        module, _, member = name.partition(".")
        if module == "numpy" and member in _NUMPY_MEMBERS:
            import numpy as np

            return getattr(np, member)
        if name in FUNCTIONS:
            return FUNCTIONS[name]
        owner = self.evaluate(node.value)
        if node.attr in ATTRIBUTES and (type(owner) in NUMBERS_WITH_PARTS or is_numpy(owner)):
            return getattr(owner, node.attr)
        raise UnknownValueError("an attribute that only the child has")

    def _subscript(self, node: ast.Subscript) -> Any:
        owner = self.evaluate(node.value)
        if isinstance(owner, OpaqueValue | LargeValue) or (
            isinstance(owner, SubclassValue) and isinstance(owner, dict)
        ):
            raise UnknownValueError("an item that only the child has")
        return owner[self.evaluate(node.slice)]

    def _slice(self, node: ast.Slice) -> slice:
        return slice(*(None if part is None else self.evaluate(part) for part in (node.lower, node.upper, node.step)))

    def _unaryop(self, node: ast.UnaryOp) -> Any:
        return UNARY_OPS[type(node.op)](self.evaluate(node.operand))

    def _binop(self, node: ast.BinOp) -> Any:
        found = apply_binary_op(node.op, self.evaluate(node.left), self.evaluate(node.right))
        self._count(size_of(found))
        return found

    def _boolop(self, node: ast.BoolOp) -> Any:
        found: Any = None
        for each in node.values:
            found = self.evaluate(each)
            if bool(found) is isinstance(node.op, ast.Or):
                break
        return found

    def _ifexp(self, node: ast.IfExp) -> Any:
        return self.evaluate(node.body if self.evaluate(node.test) else node.orelse)

    def _compare(self, node: ast.Compare) -> Any:
        left = self.evaluate(node.left)
        found: Any = True
        for op, each in zip(node.ops, node.comparators, strict=True):
            right = self.evaluate(each)
            self._count(size_of(right))
            found = self.compare(op, left, right, node)
            if len(node.ops) > 1 and not found:
                break
            left = right
        return found

    def _call(self, node: ast.Call) -> Any:
        name = full_name(node.func, self._imports)
        arguments = [item for each in node.args for item in self._argument(each)]
        named = {each.arg: self.evaluate(each.value) for each in node.keywords if each.arg}
        if len(named) != len(node.keywords):
            raise UnsupportedExprError("unpacked arguments")
        found = self._call_by_name(node.func, name, arguments, named)
        self._count(sum(map(size_of, arguments)) + size_of(found))
        return self._count_items(found) if name in {"map", "filter"} else found

    def _call_by_name(self, function: ast.expr, name: str, arguments: list[Any], named: dict[str, Any]) -> Any:
        if not any(name in names for names in self._bound):
            if name == "isinstance" and len(arguments) == 2:
                return is_instance(*arguments)
            if name.startswith("numpy.") and is_host_function(name):
                return call_numpy(name.removeprefix("numpy."), arguments, named)
            if is_host_function(name):
                return call_function(name, arguments, named)
        if isinstance(function, ast.Attribute):
            return call_method(self.evaluate(function.value), function.attr, arguments, named)
        if isinstance(function, ast.Name):
            return self.evaluate(function)(*arguments, **named)
        raise UnsupportedExprError(f"{name or 'this call'} is not evaluated on the host")

    def _count_items(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self._count(size_of(item))
            yield item

    def _argument(self, node: ast.expr) -> Iterable[Any]:
        return known(self.evaluate(node.value)) if isinstance(node, ast.Starred) else (self.evaluate(node),)

    def _lambda(self, node: ast.Lambda) -> Callable[..., Any]:
        names = [each.arg for each in node.args.args]
        if node.args.defaults or node.args.kwonlyargs or node.args.vararg or node.args.kwarg:
            raise UnsupportedExprError("a lambda with other parameters")
        outer = self._bound

        def call(*arguments: Any) -> Any:
            return self._evaluate_with([*outer, dict(zip(names, arguments, strict=True))], node.body)

        return call

    def _listcomp(self, node: ast.ListComp) -> list[Any]:
        return list(self._elements(node.generators, node.elt, self._bound))

    def _setcomp(self, node: ast.SetComp) -> set[Any]:
        return set(self._elements(node.generators, node.elt, self._bound))

    def _generatorexp(self, node: ast.GeneratorExp) -> Iterator[Any]:
        return self._elements(node.generators, node.elt, self._bound)

    def _dictcomp(self, node: ast.DictComp) -> dict[Any, Any]:
        return dict(self._elements(node.generators, ast.Tuple([node.key, node.value], ast.Load()), self._bound))

    def _elements(
        self, generators: list[ast.comprehension], element: ast.expr, bound: list[dict[str, Any]]
    ) -> Iterator[Any]:
        """Yield the values of `element` for the loops of a comprehension."""
        if not generators:
            yield self._evaluate_with(bound, element)
            return
        first = generators[0]
        for item in known(self._evaluate_with(bound, first.iter)):
            names: dict[str, Any] = {}
            _bind(first.target, item, names)
            inner = [*bound, names]
            if all(self._evaluate_with(inner, condition) for condition in first.ifs):
                yield from self._elements(generators[1:], element, inner)

    def _evaluate_with(self, bound: list[dict[str, Any]], node: ast.expr) -> Any:
        """Evaluate `node` with these variables; a generator may go on while others are in force."""
        self._bound, saved = bound, self._bound
        try:
            return self.evaluate(node)
        finally:
            self._bound = saved


def _bind(target: ast.expr, value: Any, names: dict[str, Any]) -> None:
    if isinstance(target, ast.Name):
        names[target.id] = value
    elif isinstance(target, ast.Tuple | ast.List) and not any(isinstance(each, ast.Starred) for each in target.elts):
        for each, item in zip(target.elts, tuple(known(value)), strict=True):
            _bind(each, item, names)
    else:
        raise UnsupportedExprError("another target of a loop")


def names_bound_in(node: ast.AST) -> set[str]:
    """Return the names that comprehensions and lambdas in `node` bind."""
    return {name.id for name in ast.walk(node) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)} | {
        each.arg for each in ast.walk(node) if isinstance(each, ast.arg)
    }


def is_supported(node: ast.AST, imports: Mapping[str, str]) -> bool:
    """Return whether the interpreter knows all that is in `node`; evaluating it may still fail."""
    bound = names_bound_in(node)
    called = {id(each.func) for each in ast.walk(node) if isinstance(each, ast.Call)}
    return all(_is_node_supported(each, imports, bound, id(each) in called) for each in ast.walk(node))


def _is_node_supported(node: ast.AST, imports: Mapping[str, str], bound: set[str], called: bool) -> bool:
    if isinstance(node, ast.Attribute):
        name = full_name(node, imports)
        known = name in CONSTANTS or is_host_function(name) or name in {f"numpy.{each}" for each in _NUMPY_MEMBERS}
        return known or node.attr in ATTRIBUTES or (called and node.attr in METHOD_NAMES)
    if type(node) is ast.Name:
        name = full_name(node, imports)
        return name in bound or name in TYPES or is_host_function(name) or name in _MODULES
    if isinstance(node, ast.Call):
        return type(node.func) in {ast.Name, ast.Attribute}
    return type(node) not in _PYTHON_EXPRESSIONS or hasattr(Interpreter, f"_{type(node).__name__.lower()}")


_MODULES = {"operator", "collections", "fractions", "math", "numpy", "numpy.linalg"}
_NUMPY_MEMBERS = (*NUMPY_CONSTANTS, *NUMPY_TYPE_NAMES, "linalg")
_PYTHON_EXPRESSIONS = frozenset(ast.expr.__subclasses__()) - {ast.Starred}
