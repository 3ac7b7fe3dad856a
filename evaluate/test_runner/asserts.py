"""Assert splitting, host-side evaluation.

An `assert` taken apart: what the child evaluates, and what is compared with it on the host.

`assert f([1, 2]) == 4` becomes the call `f([1, 2])`, which goes to the child, and `<hole> == 4`, which stays here. More
exactly: the statement's expression is worked out on the host (evaluate/test_runner/asserts.py), but for its *holes*, the
parts that depend on the candidate. A hole is as large as can be (`sorted(f(x))`, `f(x)[0].name` are one), for only the
child has the objects; yet no expected value goes with it:

- a comparison, `and`, `or`, `not`, `isinstance` and `math.isclose` are the host's, and one side of each pair that is
  compared must be a constant;
- so is arithmetic with a constant inside of an inequality (`abs(f(x) - 1.5) < 0.01`) or a difference to a number;
- what is compared with True or False, or with nothing at all (`assert f(x)`), must be a call of the candidate's own:
  `all(a == b for ...)` or `np.allclose(f(x), [1, 2])` would take the expected values along.

A statement that has not this form (`UnprotectedAssert`) runs whole inside of the child.

The part of an assert that the host works out: constants, and plain operations on values that a child sent.

An interpreter of a small part of Python over syntax trees, as `ast.literal_eval` is: literals, arithmetic, comparisons,
and the functions named below. Names that a test may use but that are not here belong to the child. Everything is
bounded: a test comes from a data set or from a person, and neither may hang the host.
"""

from __future__ import annotations

import ast
import builtins
import math
import operator
import sys
import textwrap
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import Any

from tasks.problem import AssertTest

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


_EVALUATED_IN_CHILD = {
    *(
        "startswith",
        "endswith",
        "issubset",
        "issuperset",
        "isdisjoint",
        "equals",
        "all",
        "any",
        "__eq__",
        "__contains__",
    )
}
_COMPARISON_FUNCTIONS = {*ISCLOSE_NAMES, "isclose", "allclose", "array_equal", "assert_allclose", "approx"}
_MODULES = {"np", "pd", "numpy", "pandas", "scipy", "torch", *sys.stdlib_module_names}


class UnprotectedAssert(Exception):  # noqa: N818 - no error: another way to run a test
    """Why an assert cannot be taken apart, as the end of a sentence."""


class BrokenTestError(ValueError):
    """A test that is no Python."""


@dataclass(frozen=True)
class AssertPlan:
    """How one assert is checked.

    `setup` runs before, `holes` are the expressions that the child evaluates (`shown` is how they were written),
    `template` is the assert's expression with a `Placeholder` for each of them, and `source` that expression as it was
    written. `whole` is the statement itself where it cannot be taken apart, because of `why`; then there are no holes.
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
    """The plan for a test; BrokenTestError where it is no Python or asserts nothing."""
    code = textwrap.dedent(test.code).strip()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            body = ast.parse(code).body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise BrokenTestError(f"the test is no Python ({getattr(error, 'msg', None) or error})") from None
    asserts = [each for each in ast.walk(ast.Module(body, [])) if isinstance(each, ast.Assert)]
    if not asserts:
        raise BrokenTestError("the test asserts nothing")
    last, before = body[-1], body[:-1]
    if not isinstance(last, ast.Assert):
        return AssertPlan(test.setup, (), (), asserts[-1].test, code, code, "it does not end with its assert")
    source = ast.get_source_segment(code, last.test) or ast.unparse(last.test)
    split = _TemplateBuilder(code)
    try:
        if any(isinstance(each, ast.Assert | ast.Compare) for one in before for each in ast.walk(one)):
            raise UnprotectedAssert("it compares before its last line")
        template = split.visit_truth(last.test)
        if not split.child_expressions:
            raise UnprotectedAssert("it calls nothing of the candidate")
    except (UnprotectedAssert, RecursionError) as why:
        return AssertPlan(test.setup, (), (), last.test, source, code, str(why))
    lead = code.encode()[: _byte_offset(code, last)].decode().rstrip().removesuffix(";")
    setup = "\n".join(part for part in (test.setup, lead) if part.strip())
    return AssertPlan(setup, tuple(split.child_expressions), tuple(split.source_expressions), template, source)


def _byte_offset(code: str, node: ast.stmt) -> int:
    """Where the statement begins, in bytes."""
    lines = code.encode().splitlines(keepends=True)
    return sum(len(line) for line in lines[: node.lineno - 1]) + node.col_offset


class _TemplateBuilder:
    """Builds the template of an expression, and gathers its holes."""

    def __init__(self, code: str) -> None:
        self.child_expressions: list[str] = []
        self.source_expressions: list[str] = []
        self._code = code

    def visit_truth(self, node: ast.expr) -> ast.expr:
        """An expression of which only the truth counts."""
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
        known = [is_constant(each) for each in sides]
        if not all(left or right for left, right in pairwise(known)):
            raise UnprotectedAssert("no side of its comparison is a constant")
        constants = [ast.unparse(each) for each, constant in zip(sides, known, strict=True) if constant]
        judged = all(text in {"True", "False"} for text in constants) and not all(known)
        loose = any(isinstance(op, ast.Lt | ast.LtE | ast.Gt | ast.GtE) for op in node.ops)
        made = [
            each if constant else (self._visit_boolean_comparison(each) if judged else self.visit_value(each, loose))
            for each, constant in zip(sides, known, strict=True)
        ]
        return ast.Compare(made[0], node.ops, made[1:])

    def _visit_boolean_comparison(self, node: ast.expr) -> ast.expr:
        """What is compared with True or False: a call, or a comparison between objects that only the child has."""
        match node:
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                constants = (is_constant(left), is_constant(right))
                inside = isinstance(op, ast.In | ast.NotIn) and not constants[1]
                if inside or not any(constants):
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
        """An expression whose value is compared; `loose` where an inequality says how near it must come."""
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
            raise UnprotectedAssert("it asks for a type that is not one of Python's own") from None
        return node

    def _add_placeholder(self, node: ast.expr, *, as_bool: bool = False) -> Placeholder:
        source = ast.get_source_segment(self._code, node) or ast.unparse(node)
        self.source_expressions.append(source)
        self.child_expressions.append(f"True if ({source}\n) else False" if as_bool else f"({source}\n)")
        return Placeholder(id=str(len(self.child_expressions) - 1))


def _has_number(*nodes: ast.expr) -> bool:
    """Whether the constant among both is a number: `f(x) - 1.5`, not `f(x) - {2}`."""
    return any(isinstance(each, ast.Constant | ast.UnaryOp) and is_constant(each) for each in nodes)


def _is_predicate_call(node: ast.expr) -> bool:
    """Whether this may be a call of the candidate's that says yes or no, without a value to compare inside of it."""
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
