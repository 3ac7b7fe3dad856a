"""Values of names that a text fixes: parameters, loop variables and expected values that are literals.

They are written into the asserts where that changes nothing, so that each assert stands for itself and its expected
value need not enter the sandbox.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Sequence

from tasks.pasted_tests.text import is_literal, names, substitute_statement

MAX_UNROLLED = 100  # iterations of a loop
Bindings = Sequence[tuple[str, ast.expr]]


def bind(body: Sequence[ast.stmt], bindings: Bindings) -> tuple[list[ast.stmt], list[tuple[str, ast.expr]]]:
    """Write the values of the names into the body; return it with the bindings for which that is not possible."""
    values: dict[str, ast.expr] = {}
    left: list[tuple[str, ast.expr]] = []
    for name, value in bindings:
        if _can_substitute(body, name, value):
            values[name] = value
        else:
            left.append((name, value))
    return [substitute_statement(each, values) for each in body] if values else list(body), left


def _can_substitute(body: Sequence[ast.stmt], name: str, value: ast.expr) -> bool:
    if name in rebound_names(body):
        return False
    if isinstance(value, ast.Name):
        return value.id not in rebound_names(body)
    if not is_literal(value):
        return False
    return _is_immutable(value) or _loads(body)[name] == 1 or _only_expected(body, name)


def rebound_names(body: Sequence[ast.stmt]) -> set[str]:
    """Return the names that the statements assign, delete, import, define or take as parameters."""
    found: set[str] = set()
    for node in (each for statement in body for each in ast.walk(statement)):
        match node:
            case ast.Name(ctx=ast.Store() | ast.Del()):
                found.add(node.id)
            case ast.arg():
                found.add(node.arg)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                found.add(node.name)
            case ast.Import() | ast.ImportFrom():
                found |= {(each.asname or each.name).partition(".")[0] for each in node.names}
            case ast.ExceptHandler(name=str(name)):
                found.add(name)
            case ast.Global() | ast.Nonlocal():
                found |= set(node.names)
    return found


def _loads(body: Sequence[ast.stmt]) -> Counter[str]:
    """Count the loads of each name; one in a loop, a comprehension or a function counts as several."""
    counts: Counter[str] = Counter()

    def visit(node: ast.AST, weight: int) -> None:
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            counts[node.id] += weight
        repeated = isinstance(
            node,
            ast.For | ast.While | ast.comprehension | ast.Lambda | ast.FunctionDef | ast.ListComp | ast.GeneratorExp
            | ast.SetComp | ast.DictComp,
        )  # fmt: skip
        for child in ast.iter_child_nodes(node):
            visit(child, 2 if repeated else weight)

    for statement in body:
        visit(statement, 1)
    return counts


def _is_immutable(value: ast.expr) -> bool:
    return not any(isinstance(node, ast.List | ast.Set | ast.Dict | ast.Call) for node in ast.walk(value))


def _only_expected(body: Sequence[ast.stmt], name: str) -> bool:
    """Return whether the name is used as a side of comparisons in asserts only."""
    expected = Counter[str]()
    for node in (each for statement in body for each in ast.walk(statement)):
        if isinstance(node, ast.Assert):
            for compare in (each for each in ast.walk(node.test) if isinstance(each, ast.Compare)):
                sides = [compare.left, *compare.comparators]
                expected.update(side.id for side in sides if isinstance(side, ast.Name))
    loads = Counter(
        node.id
        for statement in body
        for node in ast.walk(statement)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    )
    return expected[name] == loads[name] > 0


def fold_literals(body: Sequence[ast.stmt], *, local: bool, later: Sequence[ast.stmt] = ()) -> list[ast.stmt]:
    """Write names that are assigned one literal, once, into the statements after that, and leave the assignment out.

    In the namespace of the answer (not `local`) only names of expected values and of lists of cases are, because the
    answer may use others. Names that the statements `later` use keep their assignment.
    """
    used_later = {name for statement in later for name in names(statement, ast.Load)}
    folded, at = list(body), 0
    while at < len(folded):
        before, after = folded[:at], folded[at + 1 :]
        match folded[at]:
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if is_literal(value):
                used_before = {each for statement in before for each in names(statement, ast.Load)}
                is_fixed = name not in used_later | used_before | rebound_names([*before, *after])
                fits = _only_expected(after, name) or _only_iterated(after, name) or (local and _is_immutable(value))
                if is_fixed and fits:
                    folded = [*before, *(substitute_statement(each, {name: value}) for each in after)]
                    continue
        at += 1
    return folded


def _only_iterated(body: Sequence[ast.stmt], name: str) -> bool:
    """Return whether the name is used as the cases of loops with asserts and of parametrize alone."""
    iterated = Counter[str]()
    loads = Counter[str]()
    for node in (each for statement in body for each in ast.walk(statement)):
        if isinstance(node, ast.For) and any(isinstance(each, ast.Assert) for each in ast.walk(node)):
            iterated.update(names(node.iter, ast.Load))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("parametrize"):
            iterated.update(name for each in node.args for name in names(each, ast.Load))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            loads[node.id] += 1
    return iterated[name] == loads[name] > 0


def unroll(node: ast.For, later: Sequence[ast.stmt]) -> list[Bindings] | None:
    """Return the bindings of each iteration of a loop over constants; None for other loops."""
    values = _iterated_values(node.iter)
    flat = isinstance(node.target, ast.Name) or (
        isinstance(node.target, ast.Tuple | ast.List) and all(isinstance(e, ast.Name) for e in node.target.elts)
    )
    jumps = any(isinstance(each, ast.Break | ast.Continue | ast.Return) for each in ast.walk(node))
    if values is None or not flat or jumps or node.orelse or len(values) > MAX_UNROLLED:
        return None
    targets = names(node.target, ast.Store)
    if targets & {name for statement in later for name in names(statement, ast.Load)}:
        return None
    if isinstance(node.iter, ast.Call) and not targets & {n for each in node.body for n in names(each, ast.Load)}:
        return None  # a repetition, such as of random cases
    iterations = [_unpack(node.target, value) for value in values]
    return [each for each in iterations if each is not None] if None not in iterations else None


def _unpack(target: ast.expr, value: ast.expr) -> Bindings | None:
    if isinstance(target, ast.Name):
        return [(target.id, value)]
    if not isinstance(target, ast.Tuple | ast.List) or not isinstance(value, ast.Tuple | ast.List):
        return None
    if len(value.elts) != len(target.elts):
        return None
    return [(name.id, item) for name, item in zip(target.elts, value.elts, strict=True) if isinstance(name, ast.Name)]


def _iterated_values(node: ast.expr) -> list[ast.expr] | None:  # noqa: PLR0911 - one return for each form
    match node:
        case ast.List() | ast.Tuple():
            return None if any(isinstance(each, ast.Starred) for each in node.elts) else list(node.elts)
        case ast.Call(func=ast.Name(id="range"), keywords=[]) if all(is_literal(each) for each in node.args):
            try:
                return [
                    ast.Constant(each) for each in range(*(ast.literal_eval(a) for a in node.args))[: MAX_UNROLLED + 1]
                ]
            except (TypeError, ValueError):
                return None
        case ast.Call(func=ast.Name(id="zip"), keywords=[]):
            columns = [_iterated_values(each) for each in node.args]
            if not columns or None in columns:
                return None
            return [
                ast.Tuple(list(row), ast.Load()) for row in zip(*(c for c in columns if c is not None), strict=False)
            ]
        case ast.Call(func=ast.Name(id="enumerate"), args=[items], keywords=[]):
            values = _iterated_values(items)
            if values is None:
                return None
            return [ast.Tuple([ast.Constant(at), value], ast.Load()) for at, value in enumerate(values)]
        case ast.Call(func=ast.Attribute(value=ast.Dict() as table, attr="items"), args=[], keywords=[]):
            pairs = zip(table.keys, table.values, strict=True)
            return [ast.Tuple([key, value], ast.Load()) for key, value in pairs if key is not None]
        case ast.Constant(value=str(text)):
            return [ast.Constant(each) for each in text]
    return None
