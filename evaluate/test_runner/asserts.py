"""Assert splitting: which expressions of an assert the child evaluates, and the host's evaluation of the rest.

`assert f([1, 2]) == 4` is split into the call `f([1, 2])`, which the child evaluates, and `<placeholder> == 4`, which
the host evaluates. Placeholders stand for the parts that depend on the candidate. Each is as large as possible
(`sorted(f(x))` and `f(x)[0].name` are one each), because only the child has the objects, but contains no expected
value:

- the host evaluates comparisons, `and`, `or`, `not`, `isinstance` and `math.isclose`, and one side of each compared
  pair must be a constant;
- the host also evaluates arithmetic with a constant inside an inequality (`abs(f(x) - 1.5) < 0.01`), or a difference
  to a number;
- what is compared with True or False, or not compared at all (`assert f(x)`), must be a call of the candidate's own
  function: `all(a == b for ...)` or `np.allclose(f(x), [1, 2])` would contain the expected values.

A statement that does not have this form (`UnprotectedAssert`) runs as a whole in the child.

The host's evaluator interprets a small part of Python over syntax trees, as `ast.literal_eval` does: literals,
arithmetic, comparisons, and the functions in CALLABLES. The child evaluates everything else. All of it is bounded in
size, because tests come from data sets and users and must not hang the host.
"""

from __future__ import annotations

import ast
import builtins
import math
import operator
import sys
import textwrap
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import Any

from common.syntax import parse_python
from tasks.problem import AssertTest

MAX_BITS = 100_000  # of a whole number
MAX_DIGITS = 400  # to round to; a float has fewer
MAX_ITEMS = 1_000_000  # of a sequence
NUMBER_TYPES = (int, float, complex, Fraction, Decimal)
ISINSTANCE_TYPES: dict[str, type] = {
    kind.__name__: kind for kind in (int, float, str, bool, list, tuple, dict, set, frozenset, bytes, complex)
}
MATH_CONSTANTS: dict[str, Any] = {f"math.{name}": getattr(math, name) for name in ("pi", "e", "tau", "inf", "nan")}


class UnsupportedExprError(ValueError):
    """An expression that the host does not evaluate, or whose value is too large."""


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
    """A node for a value that a child sends: `Placeholder(id=str(index))`."""


def dotted_name(node: ast.expr) -> str:
    """Return 'math.isclose' for that expression; '' for anything but names joined by dots."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        owner = dotted_name(node.value)
        return f"{owner}.{node.attr}" if owner else ""
    return ""


def evaluate_expr(node: ast.expr, values: Mapping[str, Any] | None = None) -> Any:
    """Evaluate `node`, with `values` for its placeholders, by their ids.

    Raises UnsupportedExprError for expressions that are not supported, and what Python raises for the others
    (TypeError for 1 < 'a').
    """
    return _ExprEvaluator(values or {}).evaluate(node)


def is_constant(node: ast.expr) -> bool:
    """Return whether the host can evaluate `node` without any value from a child."""
    try:
        evaluate_expr(node)
    except Exception:  # noqa: BLE001 - an expression that raises is no constant
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
        raise UnsupportedExprError(f"a {type(node).__name__} is not evaluated on the host")

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
            raise UnsupportedExprError(f"{name or 'this call'} is not evaluated on the host")
        return function(*(self.evaluate(each) for each in node.args), **named)


def isinstance_types(node: ast.expr) -> tuple[type, ...]:
    """Return the types in the second argument of isinstance. Raises UnsupportedExprError for unsupported ones."""
    named = node.elts if isinstance(node, ast.Tuple) else [node]
    if not all(isinstance(each, ast.Name) and each.id in ISINSTANCE_TYPES for each in named):
        raise UnsupportedExprError("an unsupported type")
    return tuple(ISINSTANCE_TYPES[each.id] for each in named if isinstance(each, ast.Name))


def apply_binary_op(op: ast.operator, left: Any, right: Any) -> Any:
    """Compute `left op right` for numbers, sequences and sets of bounded size."""
    if isinstance(left, set | frozenset) and isinstance(op, ast.BitOr | ast.BitAnd | ast.Sub | ast.BitXor):
        bits = {ast.BitOr: operator.or_, ast.BitAnd: operator.and_, ast.Sub: operator.sub, ast.BitXor: operator.xor}
        return bits[type(op)](left, right)
    if type(op) not in _BINARY_OPS:
        raise UnsupportedExprError(f"{type(op).__name__} is not evaluated on the host")
    numbers = isinstance(left, NUMBER_TYPES) and isinstance(right, NUMBER_TYPES)
    if not numbers and not isinstance(op, ast.Add | ast.Mult):
        raise UnsupportedExprError("arithmetic on a value that is not a number")
    if _result_size(op, left, right) > MAX_ITEMS:
        raise UnsupportedExprError("a value too large to evaluate")
    return _BINARY_OPS[type(op)](left, right)


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
            if isinstance(many, str | bytes | list | tuple) and isinstance(times, int):
                return len(many) * max(times, 0)
    return 0


def _is_identical(left: Any, right: Any) -> bool:
    """Compute `is` for decoded values: identity for None, True and False, else equality with the same type."""
    if left is None or right is None or isinstance(left, bool) or isinstance(right, bool):
        return left is right
    return type(left) is type(right) and bool(left == right)


_EVALUATED_IN_CHILD = {
    "__contains__",
    "__eq__",
    "all",
    "any",
    "endswith",
    "equals",
    "isdisjoint",
    "issubset",
    "issuperset",
    "startswith",
}
_COMPARISON_FUNCTIONS = {*ISCLOSE_NAMES, "isclose", "allclose", "array_equal", "assert_allclose", "approx"}
_MODULES = {"np", "pd", "numpy", "pandas", "scipy", "torch", *sys.stdlib_module_names}


class UnprotectedAssert(Exception):  # noqa: N818 - not an error: the assert then runs as a whole
    """Why an assert cannot be split, worded as the end of a sentence."""


class BrokenTestError(ValueError):
    """A test that is not Python, or contains no assert."""


@dataclass(frozen=True)
class AssertPlan:
    """How one assert is checked.

    `setup` runs first; `child_expressions` are what the child evaluates, `source_expressions` the same as written in
    the test; `template` is the assert's expression with a `Placeholder` for each, `source` that expression as
    written. If the assert cannot be split, `whole_statement` is the statement, `unprotected_reason` says why, and
    there are no child expressions.
    """

    setup: str
    child_expressions: tuple[str, ...]
    source_expressions: tuple[str, ...]
    template: ast.expr
    source: str
    whole_statement: str = ""
    unprotected_reason: str = ""


@lru_cache(maxsize=4096)
def plan_assert(test: AssertTest) -> AssertPlan:
    """Plan how to check a test. Raises BrokenTestError if it is not Python or contains no assert."""
    code = textwrap.dedent(test.code).strip()
    try:
        body = parse_python(code).body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise BrokenTestError(f"the test is not Python ({getattr(error, 'msg', None) or error})") from None
    asserts = [node for node in ast.walk(ast.Module(body, [])) if isinstance(node, ast.Assert)]
    if not asserts:
        raise BrokenTestError("the test asserts nothing")
    last, earlier = body[-1], body[:-1]
    if not isinstance(last, ast.Assert):
        return AssertPlan(test.setup, (), (), asserts[-1].test, code, code, "it does not end with its assert")
    source = ast.get_source_segment(code, last.test) or ast.unparse(last.test)
    builder = _TemplateBuilder(code)
    try:
        if any(isinstance(node, ast.Assert | ast.Compare) for statement in earlier for node in ast.walk(statement)):
            raise UnprotectedAssert("it compares before its last line")
        template = builder.visit_truth(last.test)
        if not builder.child_expressions:
            raise UnprotectedAssert("it calls nothing of the candidate")
    except (UnprotectedAssert, RecursionError) as reason:
        return AssertPlan(test.setup, (), (), last.test, source, code, str(reason))
    preceding = code.encode()[: _byte_offset(code, last)].decode().rstrip().removesuffix(";")
    setup = "\n".join(part for part in (test.setup, preceding) if part.strip())
    return AssertPlan(setup, tuple(builder.child_expressions), tuple(builder.source_expressions), template, source)


def _byte_offset(code: str, node: ast.stmt) -> int:
    """Return the offset of the statement in bytes."""
    lines = code.encode().splitlines(keepends=True)
    return sum(len(line) for line in lines[: node.lineno - 1]) + node.col_offset


class _TemplateBuilder:
    """Builder of an expression's template, which collects the expressions for the child."""

    def __init__(self, code: str) -> None:
        self.child_expressions: list[str] = []
        self.source_expressions: list[str] = []
        self._code = code

    def visit_truth(self, node: ast.expr) -> ast.expr:
        """Build the template of an expression of which only the truth value matters."""
        match node:
            case ast.BoolOp():
                return ast.BoolOp(node.op, [self.visit_truth(each) for each in node.values])
            case ast.UnaryOp(op=ast.Not()):
                return ast.UnaryOp(node.op, self.visit_truth(node.operand))
            case ast.Compare():
                return self._visit_comparison(node)
            case ast.Call() if dotted_name(node.func) in ISCLOSE_NAMES:
                return self._visit_isclose(node)
            case ast.Call(args=[value, types]) if dotted_name(node.func) == "isinstance" and not node.keywords:
                return ast.Call(node.func, [self.visit_value(value), self._visit_types(types)], [])
        if is_constant(node):
            return node
        if not _is_predicate_call(node):
            raise UnprotectedAssert("what it expects is part of the call")
        return self._add_placeholder(node, as_bool=True)

    def _visit_comparison(self, node: ast.Compare) -> ast.expr:
        sides = [node.left, *node.comparators]
        constant = [is_constant(side) for side in sides]
        if not all(left or right for left, right in pairwise(constant)):
            raise UnprotectedAssert("no side of its comparison is a constant")
        constants = [ast.unparse(side) for side, fixed in zip(sides, constant, strict=True) if fixed]
        boolean = all(text in {"True", "False"} for text in constants) and not all(constant)
        approximate = any(isinstance(op, ast.Lt | ast.LtE | ast.Gt | ast.GtE) for op in node.ops)

        def visit(side: ast.expr) -> ast.expr:
            return self._visit_boolean_comparison(side) if boolean else self.visit_value(side, approximate)

        templates = [side if fixed else visit(side) for side, fixed in zip(sides, constant, strict=True)]
        return ast.Compare(templates[0], node.ops, templates[1:])

    def _visit_boolean_comparison(self, node: ast.expr) -> ast.expr:
        """Build the template of an expression compared with True or False.

        It must be a call, or a comparison between objects that only the child has.
        """
        match node:
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                constants = (is_constant(left), is_constant(right))
                in_child_object = isinstance(op, ast.In | ast.NotIn) and not constants[1]
                if in_child_object or not any(constants):
                    return self._add_placeholder(node)
                return self._visit_comparison(node)
            case ast.Compare() | ast.BoolOp() | ast.UnaryOp(op=ast.Not()):
                return self.visit_truth(node)
            case ast.Call() if dotted_name(node.func) in {*ISCLOSE_NAMES, "isinstance"}:
                return self.visit_truth(node)
        if not _is_predicate_call(node):
            raise UnprotectedAssert("what it expects is part of the call")
        return self._add_placeholder(node)

    def visit_value(self, node: ast.expr, approximate: bool = False) -> ast.expr:
        """Build the template of an expression whose value is compared; `approximate` inside an inequality."""
        if is_constant(node):
            return node
        match node:
            case ast.UnaryOp(op=ast.USub()):
                return ast.UnaryOp(node.op, self.visit_value(node.operand, approximate))
            case ast.BinOp() if is_constant(node.left) != is_constant(node.right):
                number = isinstance(node.op, ast.Sub) and _has_number(node.left, node.right)
                if approximate or number:
                    return ast.BinOp(
                        self.visit_value(node.left, approximate), node.op, self.visit_value(node.right, approximate)
                    )
            case ast.Call(func=ast.Name(id="abs" | "round" | "float")) if node.args and not node.keywords:
                first, rest = node.args[0], node.args[1:]
                if isinstance(first, ast.BinOp | ast.Call) and all(is_constant(each) for each in rest):
                    inner = self.visit_value(first, approximate)
                    if not isinstance(inner, Placeholder):
                        return ast.Call(node.func, [inner, *rest], [])
                    self.child_expressions.pop()
                    self.source_expressions.pop()
        return self._add_placeholder(node)

    def _visit_isclose(self, node: ast.Call) -> ast.expr:
        if len(node.args) != 2 or not any(is_constant(each) for each in node.args):
            raise UnprotectedAssert("no side of its comparison is a constant")
        if not all(each.arg and is_constant(each.value) for each in node.keywords):
            raise UnprotectedAssert("its tolerance is no constant")
        return ast.Call(node.func, [self.visit_value(each, approximate=True) for each in node.args], node.keywords)

    def _visit_types(self, node: ast.expr) -> ast.expr:
        try:
            isinstance_types(node)
        except ValueError:
            raise UnprotectedAssert("it names a type that is not built in") from None
        return node

    def _add_placeholder(self, node: ast.expr, *, as_bool: bool = False) -> Placeholder:
        source = ast.get_source_segment(self._code, node) or ast.unparse(node)
        self.source_expressions.append(source)
        self.child_expressions.append(f"True if ({source}\n) else False" if as_bool else f"({source}\n)")
        return Placeholder(id=str(len(self.child_expressions) - 1))


def _has_number(*nodes: ast.expr) -> bool:
    """Return whether a constant among the nodes is a number, as in `f(x) - 1.5`, unlike `f(x) - {2}`."""
    return any(isinstance(each, ast.Constant | ast.UnaryOp) and is_constant(each) for each in nodes)


def _is_predicate_call(node: ast.expr) -> bool:
    """Return whether this may call the candidate's own function and contains no expected value."""
    match node:
        case ast.Name():
            return True
        case ast.Attribute() | ast.Subscript() | ast.Await():
            return _is_predicate_call(node.value)
        case ast.Call(func=ast.Name(id=name)):
            return name not in _COMPARISON_FUNCTIONS and not hasattr(builtins, name)
        case ast.Call(func=ast.Attribute() as function):
            root = dotted_name(function).partition(".")[0]
            if root in _MODULES or function.attr in _EVALUATED_IN_CHILD | _COMPARISON_FUNCTIONS:
                return False
            return _is_predicate_call(function.value)
        case ast.Call(func=ast.Call() as inner):
            return _is_predicate_call(inner)
    return False
