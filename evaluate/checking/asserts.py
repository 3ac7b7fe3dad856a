"""An `assert` taken apart: what the child evaluates, and what is compared with it on the host.

`assert f([1, 2]) == 4` becomes the call `f([1, 2])`, which goes to the child, and `<hole> == 4`, which stays here. More
exactly: the statement's expression is worked out on the host (evaluate/checking/constants.py), but for its *holes*, the
parts that depend on the candidate. A hole is as large as can be (`sorted(f(x))`, `f(x)[0].name` are one), for only the
child has the objects; yet no expected value goes with it:

- a comparison, `and`, `or`, `not`, `isinstance` and `math.isclose` are the host's, and one side of each pair that is
  compared must be a constant;
- so is arithmetic with a constant inside of an inequality (`abs(f(x) - 1.5) < 0.01`) or a difference to a number;
- what is compared with True or False, or with nothing at all (`assert f(x)`), must be a call of the candidate's own:
  `all(a == b for ...)` or `np.allclose(f(x), [1, 2])` would take the expected values along.

A statement that has not this form (`UnprotectedAssert`) runs whole inside of the child.
"""

from __future__ import annotations

import ast
import builtins
import sys
import textwrap
import warnings
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from evaluate.checking.constants import ISCLOSE_NAMES, Placeholder, dotted_name, is_constant, isinstance_types
from tasks.problem import AssertTest

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
    except (SyntaxError, ValueError, MemoryError, RecursionError) as fault:
        raise BrokenTestError(f"the test is no Python ({getattr(fault, 'msg', None) or fault})") from None
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
