"""Test functions and the values of names that a text fixes: parameters, loop variables, literal expected values.

They are written into the asserts where that changes nothing, so that each assert stands for itself and its expected
value need not enter the sandbox.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from common.parsing import dotted_name
from tasks.pasted_tests.text import count_work, is_literal, line_error, names, substitute_statement, truncate, walk

MAX_UNROLLED = 100  # iterations of a loop
Bindings = Sequence[tuple[str, ast.expr]]
CHECK = "check"  # HumanEval's function, which gets the candidate's


class NameUse:
    """How the statements of a body use names, counted in one pass."""

    def __init__(self, body: Sequence[ast.stmt]) -> None:
        self.first_load: dict[str, int] = {}  # the index of the statement
        self.last_load: dict[str, int] = {}
        self.rebound = Counter[str]()  # statements that assign, delete, import or define it, or take it as a parameter
        self._loads = Counter[str]()
        self._repeated_loads = Counter[str]()  # one in a loop, a comprehension or a function counts as several
        self._expected = Counter[str]()  # loads as a side of a comparison in an assert
        self._iterated = Counter[str]()  # loops with asserts, and uses of parametrize, that take their cases from it
        for at, statement in enumerate(body):
            self._rebound_here: set[str] = set()
            self._visit(statement, at, weight=1, in_assert=False)
            self.rebound.update(self._rebound_here)

    def can_substitute(self, name: str, value: ast.expr) -> bool:
        """Return whether the value can be written wherever the body loads the name."""
        if name in self.rebound:
            return False
        if isinstance(value, ast.Name):
            return value.id not in self.rebound
        if not is_literal(value):
            return False
        return _is_immutable(value) or self._repeated_loads[name] == 1 or self._is_only(self._expected, name)

    def can_fold(self, name: str, at: int, value: ast.expr, *, local: bool) -> bool:
        """Return whether the assignment of a literal, which is statement `at`, can be left out."""
        if self.rebound[name] != 1 or self.first_load.get(name, at + 1) <= at:
            return False
        fits = self._is_only(self._expected, name) or self._is_only(self._iterated, name)
        return fits or (local and _is_immutable(value))

    def _is_only(self, uses: Counter[str], name: str) -> bool:
        return uses[name] == self._loads[name] > 0

    def _visit(self, node: ast.AST, at: int, *, weight: int, in_assert: bool) -> bool:
        """Count the names in the node; return whether there is an assert in it."""
        count_work(2)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            self._loads[node.id] += 1
            self._repeated_loads[node.id] += weight
            self.first_load.setdefault(node.id, at)
            self.last_load[node.id] = at
        self._rebound_here |= _bound_here(node)
        if in_assert and isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            self._expected.update(side.id for side in sides if isinstance(side, ast.Name))
        if isinstance(node, ast.Call) and dotted_name(node.func).endswith("parametrize"):
            self._iterated.update(name for each in node.args for name in names(each, ast.Load))
        weight = 2 if isinstance(node, _REPEATED) else weight
        found = isinstance(node, ast.Assert)
        for field, value in ast.iter_fields(node):
            inside = in_assert or (isinstance(node, ast.Assert) and field == "test")
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    found |= self._visit(child, at, weight=weight, in_assert=inside)
        if found and isinstance(node, ast.For):
            self._iterated.update(names(node.iter, ast.Load))
        return found


_REPEATED = (
    ast.For, ast.While, ast.comprehension, ast.Lambda, ast.FunctionDef, ast.ListComp, ast.GeneratorExp, ast.SetComp,
    ast.DictComp,
)  # fmt: skip


def _bound_here(node: ast.AST) -> set[str]:
    match node:
        case ast.Name(ctx=ast.Store() | ast.Del(), id=name) | ast.arg(arg=name):
            return {name}
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return {node.name}
        case ast.Import() | ast.ImportFrom():
            return {(each.asname or each.name).partition(".")[0] for each in node.names}
        case ast.ExceptHandler(name=str(name)):
            return {name}
        case ast.Global() | ast.Nonlocal():
            return set(node.names)
    return set()


class Later:
    """The statements of a body after one of them, and those that run after the whole body."""

    def __init__(self, body: Sequence[ast.stmt], after: Later | None = None) -> None:
        self.at = 0
        self._body = body
        self._after = after
        self._use: NameUse | None = None

    def __bool__(self) -> bool:
        return self.at + 1 < len(self._body)

    def uses(self, name: str) -> bool:
        """Return whether one of them loads the name."""
        if self._use is None and self:
            self._use = NameUse(self._body)
        here = self._use is not None and self._use.last_load.get(name, -1) > self.at
        return here or (self._after is not None and self._after.uses(name))


def bind(
    body: Sequence[ast.stmt], bindings: Bindings, use: NameUse
) -> tuple[list[ast.stmt], list[tuple[str, ast.expr]]]:
    """Write the values of the names into the body; return it with the bindings for which that is not possible."""
    values: dict[str, ast.expr] = {}
    left: list[tuple[str, ast.expr]] = []
    for name, value in bindings:
        if use.can_substitute(name, value):
            values[name] = value
        else:
            left.append((name, value))
    return [substitute_statement(each, values) for each in body] if values else list(body), left


def _is_immutable(value: ast.expr) -> bool:
    return not any(isinstance(node, ast.List | ast.Set | ast.Dict | ast.Call) for node in walk(value))


def fold_literals(body: Sequence[ast.stmt], *, local: bool, later: Later | None = None) -> list[ast.stmt]:
    """Write names that are assigned one literal, once, into the statements after that, and leave the assignment out.

    In the namespace of the answer (not `local`) only names of expected values and of lists of cases are, because the
    answer may use others. Names that the statements `later` use keep their assignment.
    """
    use = NameUse(body)
    values: dict[str, ast.expr] = {}
    rest: list[ast.stmt] = []
    for at, statement in enumerate(body):
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if (
                is_literal(value) and use.can_fold(name, at, value, local=local) and not (later and later.uses(name))
            ):
                values[name] = value
            case _:
                rest.append(statement)
    return [substitute_statement(each, values) for each in rest] if values else rest


def unroll(node: ast.For, later: Later) -> list[Bindings] | None:
    """Return the bindings of each iteration of a loop over constants; None for other loops."""
    values = _iterated_values(node.iter)
    flat = isinstance(node.target, ast.Name) or (
        isinstance(node.target, ast.Tuple | ast.List) and all(isinstance(e, ast.Name) for e in node.target.elts)
    )
    jumps = any(isinstance(each, ast.Break | ast.Continue | ast.Return) for each in walk(node))
    if values is None or not flat or jumps or node.orelse or len(values) > MAX_UNROLLED:
        return None
    targets = names(node.target, ast.Store)
    if any(map(later.uses, targets)):
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


@dataclass(frozen=True)
class Frame:
    """Where statements run: their scope, and whether HumanEval's constant asserts are left out."""

    scope: str = ""
    lenient: bool = False
    depth: int = 0


def note_sources(tree: ast.Module, text: str) -> None:
    """Store with each statement that is not inside of a block how it is written."""
    lines = text.encode().split(b"\n")
    for node in tree.body:
        if not getattr(node, "decorator_list", None) and node.end_lineno is not None:
            part = lines[node.lineno - 1 : node.end_lineno]
            part[-1] = part[-1][: node.end_col_offset]
            part[0] = part[0][node.col_offset :]
            node.pasted_source = b"\n".join(part).decode()  # type: ignore[attr-defined]
            node.pasted_dump = ast.dump(node)  # type: ignore[attr-defined]


def statement_source(node: ast.stmt) -> str:
    """Return the statement as it was pasted, or as code if it has been changed since."""
    if getattr(node, "pasted_dump", "") == ast.dump(node):
        return str(node.pasted_source)  # type: ignore[attr-defined]
    return ast.unparse(ast.fix_missing_locations(node))


def is_answer_module(name: str) -> bool:
    """Return whether a module is neither Python's nor installed, so that it must be the one with the answer."""
    root = name.partition(".")[0]
    if root in sys.stdlib_module_names:
        return False
    try:
        spec = find_spec(root)
    except (ImportError, ValueError, AttributeError):
        return True
    return spec is None or "-packages" not in (spec.origin or str(spec.submodule_search_locations or ""))


def methods(case: ast.ClassDef) -> list[ast.FunctionDef]:
    """Return the methods that the class itself defines."""
    return [each for each in case.body if isinstance(each, ast.FunctionDef)]


def decorator_function(decorator: ast.expr) -> ast.expr:
    """Return the decorator without its arguments."""
    return decorator.func if isinstance(decorator, ast.Call) else decorator


def is_pytest(node: ast.FunctionDef) -> bool:
    """Return whether pytest would run the function, whatever its body is."""
    return node.name.startswith("test_") and not node.args.args


def is_stub(node: ast.FunctionDef) -> bool:
    """Return whether the function has no body but a docstring, as in a problem's prompt."""
    return all(
        isinstance(each, ast.Pass)
        or (isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant))
        or (isinstance(each, ast.Raise) and "NotImplemented" in ast.unparse(each))
        for each in node.body
    )


def checked_functions(tree: ast.Module) -> set[str]:
    """Return the names of functions that HumanEval's `check(...)` is called with."""
    return {
        node.value.args[0].id
        for node in tree.body
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and dotted_name(node.value.func) == CHECK
        and node.value.args
        and isinstance(node.value.args[0], ast.Name)
    }


def can_inline(function: ast.FunctionDef) -> bool:
    """Return whether the body means the same outside of its function."""
    last = function.body[-1]
    inner = {
        id(each)
        for node in walk(function)
        if node is not function and isinstance(node, ast.FunctionDef | ast.Lambda | ast.AsyncFunctionDef)
        for each in walk(node)
    }
    helpers = (each for each in walk(function) if isinstance(each, ast.FunctionDef) and each is not function)
    if any(isinstance(node, ast.Assert) for helper in helpers for node in walk(helper)):
        return False
    return not any(
        isinstance(node, ast.Global | ast.Nonlocal | ast.Yield | ast.YieldFrom | ast.Await)
        or (isinstance(node, ast.Return) and not (node is last and node.value is None) and id(node) not in inner)
        for node in walk(function)
    )


def bind_arguments(function: ast.FunctionDef, call: ast.Call) -> Bindings | None:
    """Return the function's parameters with the arguments of the call; None where that takes more than a list."""
    arguments = function.args
    if arguments.vararg or arguments.kwarg or arguments.kwonlyargs or arguments.posonlyargs:
        return None
    if any(isinstance(each, ast.Starred) for each in call.args) or not all(each.arg for each in call.keywords):
        return None
    parameters = [each.arg for each in arguments.args]
    defaults = arguments.defaults
    values = dict(zip(parameters[len(parameters) - len(defaults) :], defaults, strict=True))
    values.update(zip(parameters, call.args, strict=False))
    values.update({each.arg: each.value for each in call.keywords if each.arg})
    return list(values.items()) if set(values) == set(parameters) and len(call.args) <= len(parameters) else None


def parametrize(decorator: ast.Call) -> list[Bindings]:
    """Return the bindings of each case of pytest.mark.parametrize."""
    named = {each.arg: each.value for each in decorator.keywords}
    arguments = [*decorator.args, *(named[name] for name in ("argnames", "argvalues") if name in named)]
    line = decorator.lineno
    try:
        listed = ast.literal_eval(arguments[0])
        cases = arguments[1]
    except (ValueError, IndexError, SyntaxError):
        raise line_error(line, "the names of parametrize must be a text, as in parametrize('x, y', [(1, 2)])") from None
    parameters = [name.strip() for name in listed.split(",")] if isinstance(listed, str) else [str(n) for n in listed]
    if not isinstance(cases, ast.List | ast.Tuple):
        raise line_error(line, "the cases of parametrize must be written as a list, as in parametrize('x', [1, 2])")
    found: list[Bindings] = []
    for case in cases.elts:
        values = [case]
        if isinstance(case, ast.Call) and dotted_name(case.func).endswith("param"):
            values = list(case.args)
        elif len(parameters) > 1:
            values = list(case.elts) if isinstance(case, ast.Tuple | ast.List) else []
        if len(values) != len(parameters):
            raise line_error(case.lineno, f"'{truncate(ast.unparse(case))}' is no case for {', '.join(parameters)}")
        found.append(list(zip(parameters, values, strict=True)))
    return found
