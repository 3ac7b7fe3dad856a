"""Assert splitting: which expressions of an assert the child evaluates, and the host's evaluation of the rest.

`assert f([1, 2]) == 4` is split into the call `f([1, 2])`, which the child evaluates, and `<placeholder> == 4`, which
the host evaluates (interpreter.py). The child gets the calls of the candidate's own functions, with the constants that
are their arguments, and no other constant: everything around a call (`abs(f(x) - 1.5) < 0.01`, `sorted(f(x))`,
`f(x)[0]`, `math.isclose(f(x), 1.5)`) is evaluated on the host, with the values that the child sent. Helper functions
that consist of one `return`, and constants that the test's set-up assigns, are put into the expression first.

- An expression without a constant (`[each.name for each in f(x)]`) also goes to the child as `wider`, which it
  evaluates if the host would not know all of the call's value.
- A comparison without a constant on any side, a function that the host does not know with a constant beside the
  calls, and a constant in what the set-up leaves in the child make the assert unprotected.
- An assert that cannot be split (`UnprotectedAssert`) runs as a whole in the child. So does, afterwards, one whose
  values the host turned out not to know.
"""

from __future__ import annotations

import ast
import builtins
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any

from common.parsing import parse_python
from evaluate.test_runner.child import VALUE_NAME
from evaluate.test_runner.host_functions import ATTRIBUTES, METHOD_NAMES
from evaluate.test_runner.interpreter import (
    Interpreter,
    full_name,
    is_host_function,
    is_supported,
    names_bound_in,
)
from evaluate.test_runner.setup_code import (
    LIBRARIES,
    TestSetup,
    UnprotectedAssert,
    analyze_setup,
    copy_tree,
    is_own_call,
    written_source,
)
from tasks.problem import AssertTest

_SCOPES = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.Lambda)
_TRUTH_TEMPLATE = "True if ({}\n) else False"


class Placeholder(ast.Name):
    """A node for a value that a child sends: `Placeholder(id=str(index of its expression))`."""

    def __init__(self, id: str, ctx: ast.expr_context | None = None) -> None:
        super().__init__(id=id, ctx=ctx or ast.Load())


class SourcedExpr(ast.expr):
    """A node for an expression over one or more placeholders that messages name as a whole.

    `inner` is that expression, `source` its text in the test, `wider` the index of the placeholder with the value of
    the whole expression, where the child can send it, else None.
    """

    _fields = ()

    def __init__(self, inner: ast.expr, source: str, wider: str | None) -> None:
        super().__init__()
        self.inner, self.source, self.wider = inner, source, wider


class BrokenTestError(ValueError):
    """A test that is not Python, or contains no assert."""


@dataclass(frozen=True)
class ChildExpression:
    """An expression that the child evaluates; `wider` contains it as VALUE_NAME, '' if there is none.

    `optional` is True where Python may not come to it, because it is the right side of an `or`.
    """

    source: str
    wider: str = ""
    optional: bool = False


@dataclass(frozen=True)
class AssertPlan:
    """How one assert is checked.

    `setup` runs first; `expressions` are what the child evaluates; `template` is the assert's expression, with a
    `Placeholder` for each and `sources` as its parts that messages name; `source` is that expression as written.
    `statement` is the statement itself, and `whole_setup` all that precedes it. If the assert cannot be split,
    `unprotected_reason` says why, and there are no expressions. If it can and `is_protected` is False, a constant is
    in what the set-up leaves in the child. `tolerance` is that of the test.
    """

    setup: str
    whole_setup: str
    template: ast.expr
    source: str
    statement: str
    expressions: tuple[ChildExpression, ...] = ()
    sources: tuple[SourcedExpr | Placeholder, ...] = ()
    source_expressions: tuple[str, ...] = ()
    imports: Mapping[str, str] = field(default_factory=dict)
    is_protected: bool = True
    tolerance: float = 0.0
    unprotected_reason: str = ""

    @property
    def child_expressions(self) -> tuple[str, ...]:
        """What the child evaluates first, in order."""
        return tuple(each.source for each in self.expressions)


def is_constant(node: ast.expr, imports: Mapping[str, str] | None = None) -> bool:
    """Return whether the host can evaluate `node` without any value from a child."""
    try:
        Interpreter(imports).evaluate(node)
    except Exception:  # noqa: BLE001 - an expression that raises is no constant
        return False
    return True


@lru_cache(maxsize=4096)
def plan_assert(
    test: AssertTest, earlier_setup: str = "", names_used_later: frozenset[str] = frozenset()
) -> AssertPlan:
    """Plan how to check a test. Raises BrokenTestError if it is not Python or contains no assert.

    `earlier_setup` ran in the same child before the test's own set-up; `names_used_later` are names that later tests
    need, which the set-up must define in the child.
    """
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
        reason = "it does not end with its assert"
        return AssertPlan(test.setup, test.setup, asserts[-1].test, code, code, unprotected_reason=reason)
    source = ast.get_source_segment(code, last.test) or ast.unparse(last.test)
    preceding = code.encode()[: _byte_offset(code, last)].decode().rstrip().removesuffix(";")
    setup = "\n".join(part for part in (test.setup, preceding) if part.strip())
    try:
        if any(isinstance(node, ast.Assert | ast.Compare) for statement in earlier for node in ast.walk(statement)):
            raise UnprotectedAssert("it compares before its last line")
        plan = _split(last.test, code, source, analyze_setup(setup, earlier_setup), names_used_later)
        return replace(plan, tolerance=test.tolerance)
    except (UnprotectedAssert, RecursionError) as reason:
        return AssertPlan(
            test.setup, test.setup, last.test, source, code, unprotected_reason=str(reason) or "it is nested too deeply"
        )


def _split(expr: ast.expr, code: str, source: str, setup: TestSetup, names_used_later: frozenset[str]) -> AssertPlan:
    """Split the assert's expression. Raises UnprotectedAssert if that is impossible."""
    hidden = {
        name for name in (*setup.definitions, *setup.results) if is_host_function(name) or hasattr(builtins, name)
    }
    if hidden:
        raise UnprotectedAssert(f"its set-up defines {min(hidden)}")
    setup = setup.without_changed(expr)
    expr = setup.inline(expr)
    builder = _TemplateBuilder(code, setup)
    if not builder.child_values(expr):  # perhaps a function that is named like a built-in one: `sum(10, 15) == 6`
        builder = _TemplateBuilder(code, setup, own_builtins=True)
    template = builder.visit_truth(expr)
    if not builder.expressions:
        raise UnprotectedAssert("it calls nothing of the candidate")
    child_setup, is_protected = setup.for_child(builder.nodes, builder.wider_nodes, names_used_later)
    return AssertPlan(
        child_setup,
        setup.source,
        template,
        source,
        f"assert {source}" if "\n" not in source else f"assert ({source}\n)",
        tuple(builder.expressions),
        tuple(builder.sources),
        tuple(builder.source_texts),
        setup.imports,
        is_protected,
    )


def _byte_offset(code: str, node: ast.stmt) -> int:
    """Return the offset of the statement in bytes."""
    lines = code.encode().splitlines(keepends=True)
    return sum(len(line) for line in lines[: node.lineno - 1]) + node.col_offset


def _are_repeated(calls: Sequence[ast.expr], node: ast.expr) -> bool:
    """Return whether Python may evaluate one of the calls in `node` another number of times than once."""
    parts: list[ast.AST] = []
    for each in ast.walk(node):
        match each:
            case ast.Lambda():
                parts.append(each.body)
            case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
                first = each.generators[0]
                parts += [child for child in ast.iter_child_nodes(each) if child is not first]
                parts += [child for child in ast.iter_child_nodes(first) if child is not first.iter]
            case ast.BoolOp():
                parts += each.values[1:]
            case ast.IfExp():
                parts += [each.body, each.orelse]
            case ast.Compare():
                parts += each.comparators[1:]
    repeated = {id(inner) for part in parts for inner in ast.walk(part)}
    return any(id(call) in repeated and isinstance(call, ast.Call) for call in calls)


class _TemplateBuilder:
    """Builder of an expression's template, which collects the expressions for the child."""

    def __init__(self, code: str, setup: TestSetup, own_builtins: bool = False) -> None:
        self.expressions: list[ChildExpression] = []
        self.nodes: list[ast.expr] = []  # of the own calls
        self.wider_nodes: list[ast.expr] = []  # of all else that the child evaluates
        self.sources: list[SourcedExpr | Placeholder] = []
        self.source_texts: list[str] = []
        self._code, self._setup, self._own_builtins = code, setup, own_builtins
        self._optional = False
        self._placeholders: dict[tuple[int, str], Placeholder] = {}

    def visit_truth(self, node: ast.expr) -> ast.expr:
        """Build the template of an expression of which only the truth value matters."""
        match node:
            case ast.BoolOp():
                return ast.BoolOp(node.op, self._visit_operands(node, self.visit_truth))
            case ast.UnaryOp(op=ast.Not()):
                return ast.UnaryOp(node.op, self.visit_truth(node.operand))
            case ast.Compare():
                return self._visit_comparison(node)
        if self._is_constant(node):
            return node
        if self._is_child_value(node):
            return self._add_call(node, _TRUTH_TEMPLATE)
        return self._visit_whole(node, _TRUTH_TEMPLATE)

    def _visit_operands(self, node: ast.BoolOp, visit: Any) -> list[ast.expr]:
        """Visit the operands; those after the first of an `or` are optional."""
        saved, operands = self._optional, []
        for each in node.values:
            operands.append(visit(each))
            self._optional = self._optional or isinstance(node.op, ast.Or)
        self._optional = saved
        return operands

    def _visit_comparison(self, node: ast.Compare) -> ast.expr:
        sides = [node.left, *node.comparators]
        constant = [self._is_constant(side) for side in sides]
        if not all(left or right for left, right in pairwise(constant)):
            raise UnprotectedAssert("no side of its comparison is a constant")
        visited = []
        for at, side in enumerate(sides):
            searched = at > 0 and isinstance(node.ops[at - 1], ast.In | ast.NotIn)
            visited.append(side if constant[at] else self.visit_value(side, searched))
        return ast.Compare(visited[0], node.ops, visited[1:])

    def visit_value(self, node: ast.expr, searched: bool = False) -> ast.expr:
        """Build the template of an expression whose value is used; `searched` if it is the right side of an `in`."""
        if self._is_constant(node):
            return node
        if self._is_child_value(node):
            return self._add_call(node, wider=f"list({VALUE_NAME})" if searched else "")
        if not self._has_constant(node):
            return self._visit_whole(node)
        match node:
            case ast.UnaryOp():
                return ast.UnaryOp(node.op, self.visit_value(node.operand))
            case ast.BinOp():
                return ast.BinOp(self.visit_value(node.left), node.op, self.visit_value(node.right))
            case ast.BoolOp():
                return ast.BoolOp(node.op, self._visit_operands(node, self.visit_value))
            case ast.Compare():
                return self._visit_comparison(node)
        return self._visit_whole(node)

    def _visit_whole(self, node: ast.expr, truth: str = "") -> ast.expr:
        """Build the template of another expression.

        If it has no constant beside the arguments of own calls, messages name it as a whole, and the child evaluates
        what the host cannot. Otherwise messages name its calls, and the host evaluates all the rest.
        """
        calls = self.child_values(node)
        if not calls:
            raise UnprotectedAssert("it calls nothing of the candidate")
        bound = names_bound_in(node)
        free = not any(bound & {each.id for each in ast.walk(call) if isinstance(each, ast.Name)} for call in calls)
        free = free and not _are_repeated(calls, node)
        unknown = {id(call): Placeholder(id="") for call in calls}
        on_host = free and is_supported(_replace(node, calls, unknown), self._setup.imports)
        if self._has_constant(node) or _is_isinstance(node):
            if not on_host:
                raise UnprotectedAssert("what it expects is part of the call")
            return _replace(node, calls, {id(call): self._add_call(call) for call in calls})
        compares = any(isinstance(each, ast.Compare) for each in ast.walk(node))  # perhaps objects that the child has
        if not on_host or compares:
            return self._add_call(node, truth, is_whole=True)
        wider = ast.unparse(_replace(node, calls)) if len(calls) == 1 else ""
        placeholders = {
            id(call): self._add_placeholder(call, wider=_fill(truth, wider) if truth and wider else wider)
            for call in calls
        }
        self.wider_nodes.append(node)
        inner = _replace(node, calls, placeholders)
        found = SourcedExpr(inner, self._text(node), placeholders[id(calls[0])].id if wider else None)
        self.sources.append(found)
        self.source_texts.append(found.source)
        return found

    def _add_call(self, node: ast.expr, truth: str = "", wider: str = "", is_whole: bool = False) -> Placeholder:
        """Let the child evaluate `node`, which messages name; `is_whole` if more than own calls is in it."""
        found = self._add_placeholder(node, truth, wider)
        self.sources.append(found)
        self.source_texts.append(self._text(node))
        if is_whole:
            self.wider_nodes.append(self.nodes.pop())
        return found

    def _add_placeholder(self, node: ast.expr, truth: str = "", wider: str = "") -> Placeholder:
        if (id(node), truth) in self._placeholders:  # an argument that a helper uses twice
            return self._placeholders[id(node), truth]
        source = _fill(truth or "({}\n)", self._text(node))
        self.expressions.append(ChildExpression(source, wider, self._optional))
        self.nodes.append(node)
        found = self._placeholders[id(node), truth] = Placeholder(id=str(len(self.expressions) - 1))
        return found

    def _text(self, node: ast.expr) -> str:
        return written_source(node, self._code)

    def _is_constant(self, node: ast.expr) -> bool:
        return not (self._own_builtins and self.child_values(node)) and is_constant(node, self._setup.imports)

    def child_values(self, node: ast.AST, bound: frozenset[str] = frozenset()) -> list[ast.expr]:
        """Return the largest parts of `node` of which the child has the value, in order; `bound` are loop variables."""
        if isinstance(node, ast.expr) and self._is_child_value(node):
            return [] if isinstance(node, ast.Name) and node.id in bound else [node]
        bound |= names_bound_in(node) if isinstance(node, _SCOPES) else frozenset()
        return [each for child in ast.iter_child_nodes(node) for each in self.child_values(child, bound)]

    def _is_child_value(self, node: ast.expr) -> bool:
        """Return whether `node` is an own call, a variable of the child, or an attribute or method of such a value.

        Attributes and methods that the host knows are none, nor are methods with a constant argument.
        """
        match node:
            case ast.Name():
                return isinstance(node.ctx, ast.Load) and self._is_variable(node)
            case ast.Attribute(value=owner, attr=name) if name not in ATTRIBUTES | METHOD_NAMES:
                return self._is_child_value(owner)
            case ast.Call(func=ast.Attribute(value=owner, attr=name)) if name not in METHOD_NAMES:
                if self._is_child_value(owner) and not any(map(self._has_constant, [*node.args, *node.keywords])):
                    return True
        return self._is_own(node)

    def _is_variable(self, node: ast.Name) -> bool:
        known = hasattr(builtins, node.id) or is_host_function(full_name(node, self._setup.imports))
        return not known and self._setup.imports.get(node.id, node.id).partition(".")[0] not in LIBRARIES

    def _is_own(self, node: ast.expr) -> bool:
        if self._own_builtins and isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            return hasattr(builtins, node.func.id)
        return is_own_call(node, self._setup)

    def _has_constant(self, node: ast.AST) -> bool:
        """Return whether a constant, or a name that stands for some, is outside of the own calls in `node`."""
        if isinstance(node, ast.expr) and self._is_own(node):
            return False
        if isinstance(node, ast.Constant):
            return True
        if isinstance(node, ast.Name) and node.id in self._setup.names_with_constants:
            return True
        return any(map(self._has_constant, ast.iter_child_nodes(node)))


def _fill(template: str, source: str) -> str:
    return template.replace("{}", source)


def _is_isinstance(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance"


def _replace(node: ast.expr, calls: list[ast.expr], by: Mapping[int, ast.expr] | None = None) -> ast.expr:
    """Return a copy of `node` with the calls replaced, by the name VALUE_NAME if `by` is None."""
    value_name = ast.Name(VALUE_NAME, ast.Load())
    replaced = {id(call): value_name if by is None else by[id(call)] for call in calls}

    def visit(each: ast.AST) -> ast.AST:
        return replaced.get(id(each)) or copy_tree(each, visit)

    return visit(node)  # type: ignore[return-value]
