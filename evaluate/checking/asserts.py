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

A statement that has not this form (`Unprotected`) runs whole inside of the child.
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

from evaluate.checking.constants import ISCLOSE, Hole, dotted, is_constant, types_of
from tasks.problem import AssertTest

_COMPARED_IN_CHILD = {
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
_COMPARING = {*ISCLOSE, "isclose", "allclose", "array_equal", "assert_allclose", "approx"}
_MODULES = {"np", "pd", "numpy", "pandas", "scipy", "torch", *sys.stdlib_module_names}


class Unprotected(Exception):  # noqa: N818 - no error: another way to run a test
    """Why an assert cannot be taken apart, as the end of a sentence."""


class BrokenTestError(ValueError):
    """A test that is no Python."""


@dataclass(frozen=True)
class Plan:
    """How one assert is checked.

    `setup` runs before, `holes` are the expressions that the child evaluates (`shown` is how they were written),
    `template` is the assert's expression with a `Hole` for each of them, and `source` that expression as it was
    written. `whole` is the statement itself where it cannot be taken apart, because of `why`; then there are no holes.
    """

    setup: str
    holes: tuple[str, ...]
    shown: tuple[str, ...]
    template: ast.expr
    source: str
    whole: str = ""
    why: str = ""


@lru_cache(maxsize=4096)
def plan_of(test: AssertTest) -> Plan:
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
        return Plan(test.setup, (), (), asserts[-1].test, code, code, "it does not end with its assert")
    source = ast.get_source_segment(code, last.test) or ast.unparse(last.test)
    split = _Split(code)
    try:
        if any(isinstance(each, ast.Assert | ast.Compare) for one in before for each in ast.walk(one)):
            raise Unprotected("it compares before its last line")
        template = split.judged(last.test)
        if not split.holes:
            raise Unprotected("it calls nothing of the candidate")
    except (Unprotected, RecursionError) as why:
        return Plan(test.setup, (), (), last.test, source, code, str(why))
    lead = code.encode()[: _offset(code, last)].decode().rstrip().removesuffix(";")
    setup = "\n".join(part for part in (test.setup, lead) if part.strip())
    return Plan(setup, tuple(split.holes), tuple(split.shown), template, source)


def _offset(code: str, node: ast.stmt) -> int:
    """Where the statement begins, in bytes."""
    lines = code.encode().splitlines(keepends=True)
    return sum(len(line) for line in lines[: node.lineno - 1]) + node.col_offset


class _Split:
    """Builds the template of an expression, and gathers its holes."""

    def __init__(self, code: str) -> None:
        self.holes: list[str] = []
        self.shown: list[str] = []
        self._code = code

    def judged(self, node: ast.expr) -> ast.expr:
        """An expression of which only the truth counts."""
        match node:
            case ast.BoolOp():
                return ast.BoolOp(node.op, [self.judged(each) for each in node.values])
            case ast.UnaryOp(op=ast.Not()):
                return ast.UnaryOp(node.op, self.judged(node.operand))
            case ast.Compare():
                return self._compared(node)
            case ast.Call() if dotted(node.func) in ISCLOSE:
                return self._close(node)
            case ast.Call(args=[value, types]) if dotted(node.func) == "isinstance" and not node.keywords:
                return ast.Call(node.func, [self.measured(value), self._types(types)], [])
        if is_constant(node):
            return node
        if not _is_own_call(node):
            raise Unprotected("what it expects is part of the call")
        return self._hole(node, truth=True)

    def _compared(self, node: ast.Compare) -> ast.expr:
        sides = [node.left, *node.comparators]
        known = [is_constant(each) for each in sides]
        if not all(left or right for left, right in pairwise(known)):
            raise Unprotected("no side of its comparison is a constant")
        constants = [ast.unparse(each) for each, constant in zip(sides, known, strict=True) if constant]
        judged = all(text in {"True", "False"} for text in constants) and not all(known)
        loose = any(isinstance(op, ast.Lt | ast.LtE | ast.Gt | ast.GtE) for op in node.ops)
        made = [
            each if constant else (self._compared_with_truth(each) if judged else self.measured(each, loose))
            for each, constant in zip(sides, known, strict=True)
        ]
        return ast.Compare(made[0], node.ops, made[1:])

    def _compared_with_truth(self, node: ast.expr) -> ast.expr:
        """What is compared with True or False: a call, or a comparison between objects that only the child has."""
        match node:
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                constants = (is_constant(left), is_constant(right))
                inside = isinstance(op, ast.In | ast.NotIn) and not constants[1]
                if inside or not any(constants):
                    return self._hole(node)
                return self._compared(node)
            case ast.Compare() | ast.BoolOp() | ast.UnaryOp(op=ast.Not()):
                return self.judged(node)
            case ast.Call() if dotted(node.func) in {*ISCLOSE, "isinstance"}:
                return self.judged(node)
        if not _is_own_call(node):
            raise Unprotected("what it expects is part of the call")
        return self._hole(node)

    def measured(self, node: ast.expr, loose: bool = False) -> ast.expr:
        """An expression whose value is compared; `loose` where an inequality says how near it must come."""
        if is_constant(node):
            return node
        match node:
            case ast.UnaryOp(op=ast.USub()):
                return ast.UnaryOp(node.op, self.measured(node.operand, loose))
            case ast.BinOp() if is_constant(node.left) != is_constant(node.right):
                number = isinstance(node.op, ast.Sub) and _is_number(node.left, node.right)
                if loose or number:
                    return ast.BinOp(self.measured(node.left, loose), node.op, self.measured(node.right, loose))
            case ast.Call(func=ast.Name(id="abs" | "round" | "float")) if node.args and not node.keywords:
                first, rest = node.args[0], node.args[1:]
                if isinstance(first, ast.BinOp | ast.Call) and all(is_constant(each) for each in rest):
                    inner = self.measured(first, loose)
                    if not isinstance(inner, Hole):
                        return ast.Call(node.func, [inner, *rest], [])
                    self.holes.pop()
                    self.shown.pop()
        return self._hole(node)

    def _close(self, node: ast.Call) -> ast.expr:
        if len(node.args) != 2 or not any(is_constant(each) for each in node.args):
            raise Unprotected("no side of its comparison is a constant")
        if not all(each.arg and is_constant(each.value) for each in node.keywords):
            raise Unprotected("its tolerance is no constant")
        return ast.Call(node.func, [self.measured(each, loose=True) for each in node.args], node.keywords)

    def _types(self, node: ast.expr) -> ast.expr:
        try:
            types_of(node)
        except ValueError:
            raise Unprotected("it asks for a type that is not one of Python's own") from None
        return node

    def _hole(self, node: ast.expr, *, truth: bool = False) -> Hole:
        source = ast.get_source_segment(self._code, node) or ast.unparse(node)
        self.shown.append(source)
        self.holes.append(f"True if ({source}\n) else False" if truth else f"({source}\n)")
        return Hole(id=str(len(self.holes) - 1))


def _is_number(*nodes: ast.expr) -> bool:
    """Whether the constant among both is a number: `f(x) - 1.5`, not `f(x) - {2}`."""
    return any(isinstance(each, ast.Constant | ast.UnaryOp) and is_constant(each) for each in nodes)


def _is_own_call(node: ast.expr) -> bool:
    """Whether this may be a call of the candidate's that says yes or no, without a value to compare inside of it."""
    match node:
        case ast.Name():
            return True
        case ast.Attribute() | ast.Subscript() | ast.Await():
            return _is_own_call(node.value)
        case ast.Call(func=ast.Name(id=name)):
            return name not in _COMPARING and not hasattr(builtins, name)
        case ast.Call(func=ast.Attribute() as function):
            root = dotted(function).partition(".")[0]
            if root in _MODULES or function.attr in _COMPARED_IN_CHILD | _COMPARING:
                return False
            return _is_own_call(function.value)
        case ast.Call(func=ast.Call() as inner):
            return _is_own_call(inner)
    return False
