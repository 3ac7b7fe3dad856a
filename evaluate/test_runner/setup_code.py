"""Set-up of a test: which names it defines, what of it the child needs, and whether a constant in it stays out.

A test's set-up runs in the child, where a candidate can read its names. So what only the host uses (a helper that
compares, a constant that is expected) is left out of the child's set-up, and `for_child` says whether all constants
in the rest are arguments of the candidate's own calls.
"""

from __future__ import annotations

import ast
import builtins
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from common.parsing import parse_python
from evaluate.test_runner.interpreter import Interpreter, full_name, is_host_function, names_bound_in
from tasks.datasets.leetcode import NODE_HELPERS
from tasks.problem import CALL_HELPERS

LIBRARIES = frozenset({"np", "pd", "numpy", "pandas", "scipy", "torch", "sympy", "pytest", *sys.stdlib_module_names})
# Set-ups of data sets whose functions call or convert what the candidate returns; they hold no expected value.
_DATASET_HELPERS = frozenset({CALL_HELPERS, NODE_HELPERS})
MAX_INLINED = 20  # helpers inside of helpers
# Calls that configure a library: their arguments are no expected values.
_CONFIGURING_METHODS = frozenset(["seed", "setrecursionlimit", "set_int_max_str_digits", "filterwarnings", "getLogger"])
_HARMLESS_CONSTANTS = (None, True, False, Ellipsis, 0, 1, "")


class UnprotectedAssert(Exception):  # noqa: N818 - not an error: the assert then runs as a whole
    """Why an assert cannot be split, worded as the end of a sentence."""


@dataclass(frozen=True)
class _Statement:
    """A top-level statement of a set-up.

    `names_in_calls` are the names that own calls in it load, `other_names` all others that it loads. `is_definition`
    is True if all that it does is to define the names in `binds`; `is_droppable` if the host can do without it.
    """

    node: ast.stmt
    source: str
    binds: frozenset[str]
    names_in_calls: frozenset[str]
    other_names: frozenset[str]
    is_definition: bool = False
    is_droppable: bool = False


@dataclass(frozen=True)
class TestSetup:
    """What is known of a test's set-up (`source`) and of what ran before it."""

    __test__ = False  # keeps pytest from collecting it

    source: str
    imports: Mapping[str, str] = field(default_factory=dict)
    helpers: Mapping[str, ast.FunctionDef] = field(default_factory=dict)  # of one `return`
    constants: Mapping[str, ast.expr] = field(default_factory=dict)
    definitions: frozenset[str] = frozenset()  # other functions and classes
    results: frozenset[str] = frozenset()  # variables with what an own function returned
    captured: frozenset[str] = frozenset()  # names that functions load
    rebound: frozenset[str] = frozenset()  # names that functions assign, as globals
    statements: tuple[_Statement, ...] = ()

    @property
    def names_with_constants(self) -> frozenset[str]:
        """Names whose value in the child may hold constants."""
        return frozenset([*self.helpers, *self.constants, *self.definitions])

    def without_changed(self, expr: ast.expr) -> TestSetup:
        """Return the set-up in which what own calls in `expr` may change is no constant."""
        changed = {name for call in own_calls(expr, self) for name in _loaded_names(call)}
        unchanged = {name: each for name, each in self.constants.items() if name not in changed or _is_immutable(each)}
        return replace(self, constants=unchanged)

    def inline(self, expr: ast.expr) -> ast.expr:
        """Return `expr` with the set-up's constants, and the bodies of its helpers, in the place of their names.

        Raises UnprotectedAssert where a helper's parameters and variables are mixed up.
        """
        return _Inliner(self).visit(expr) if self.helpers or self.constants else expr

    def for_child(
        self, calls: Iterable[ast.expr], others: Iterable[ast.expr], names_used_later: frozenset[str]
    ) -> tuple[str, bool]:
        """Return the set-up for the child, and whether no constant in it is beside arguments of own calls.

        `calls` are the own calls that the child evaluates, `others` its other expressions.
        """
        if self.source in _DATASET_HELPERS:
            return self.source, True
        needed, is_protected = self.needed_statements(calls, others, names_used_later)
        if all(needed):
            return self.source, is_protected
        return "\n".join(each.source for each, need in zip(self.statements, needed, strict=True) if need), is_protected

    def needed_statements(
        self, calls: Iterable[ast.expr], others: Iterable[ast.expr], names_used_later: frozenset[str] = frozenset()
    ) -> tuple[list[bool], bool]:
        """Return which statements the child needs, and whether all constants in these are arguments of own calls."""
        others = list(others)
        in_calls = {name for call in calls for name in _loaded_names(call)}
        in_calls |= {name for other in others for call in own_calls(other, self) for name in _loaded_names(call)}
        elsewhere = {name for other in others for name in _loose_names(other, self)}
        needed: list[bool] = []
        is_protected = True
        for statement in reversed(self.statements):
            used = statement.binds & (in_calls | elsewhere | names_used_later)
            needed.insert(0, bool(used) or not statement.is_droppable)
            if not needed[0]:
                continue
            if statement.is_definition and statement.binds & in_calls and not statement.binds & elsewhere:
                in_calls |= statement.names_in_calls | statement.other_names  # all of it builds arguments
                continue
            in_calls |= statement.names_in_calls
            elsewhere |= statement.other_names
            is_protected = is_protected and not _has_loose_constant(statement.node, self)
        return needed, is_protected


def is_own_call(node: ast.AST, setup: TestSetup) -> bool:
    """Return whether `node` calls a function of the candidate, or a method of one of its classes or objects.

    A method of what a function returned is none: `f(2).compare(4)` may pass what it expects to any object.
    """
    if not isinstance(node, ast.Call):
        return False
    function = node.func
    if isinstance(function, ast.Name):
        return _is_own_name(function.id, setup)
    if isinstance(function, ast.Call):
        return is_own_call(function, setup)
    if not isinstance(function, ast.Attribute) or is_host_function(full_name(function, setup.imports)):
        return False
    owner = function.value
    while isinstance(owner, ast.Attribute):
        owner = owner.value
    if isinstance(owner, ast.Name):
        return _is_own_name(owner.id, setup) and owner.id not in setup.results
    return _is_own_object(owner, setup)


def _is_own_object(node: ast.expr, setup: TestSetup) -> bool:
    """Return whether this is a new object of a class (`Stack()`), or comes from its methods (`Stack().push(1)`)."""
    if not isinstance(node, ast.Call):
        return False
    if isinstance(node.func, ast.Name):
        return _is_own_name(node.func.id, setup) and node.func.id.lstrip("_")[:1].isupper()
    return isinstance(node.func, ast.Attribute) and is_own_call(node, setup)


def _is_own_name(name: str, setup: TestSetup) -> bool:
    imported = setup.imports.get(name, name).partition(".")[0]
    return not (
        hasattr(builtins, name)
        or imported in LIBRARIES
        or is_host_function(full_name(ast.Name(name), setup.imports))
        or name in setup.names_with_constants
    )


def own_calls(node: ast.AST, setup: TestSetup) -> list[ast.expr]:
    """Return the outermost own calls in `node`."""
    if isinstance(node, ast.expr) and is_own_call(node, setup):
        return [node]
    return [each for child in ast.iter_child_nodes(node) for each in own_calls(child, setup)]


def written_source(node: ast.expr, code: str) -> str:
    """Return the text of `node` in `code`, or that of an equal expression if parts of it come from the set-up."""
    if any(hasattr(each, "is_inlined") for each in ast.walk(node)):
        return ast.unparse(node)
    return ast.get_source_segment(code, node) or ast.unparse(node)


def _loaded_names(node: ast.AST) -> set[str]:
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Load)}


def _loose_names(node: ast.AST, setup: TestSetup) -> set[str]:
    """Return the names that `node` loads, deletes, or changes by `+=`, outside of own calls."""
    if is_own_call(node, setup):
        return set()
    if isinstance(node, ast.Name):
        return set() if isinstance(node.ctx, ast.Store) else {node.id}
    found = {name for child in ast.iter_child_nodes(node) for name in _loose_names(child, setup)}
    return found | {node.target.id} if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name) else found


def _has_loose_constant(node: ast.AST, setup: TestSetup) -> bool:
    """Return whether a constant that could be an expected value is outside of the own calls in `node`."""
    if is_own_call(node, setup) or isinstance(node, ast.Import | ast.ImportFrom):
        return False
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _CONFIGURING_METHODS:
        return False
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return not isinstance(node.value.value, str)  # a docstring
    if isinstance(node, ast.Constant):
        harmless = (each for each in _HARMLESS_CONSTANTS if type(each) is type(node.value))
        return not any(node.value == each for each in harmless)
    return any(_has_loose_constant(each, setup) for each in ast.iter_child_nodes(node))


@lru_cache(maxsize=1024)
def analyze_setup(source: str, earlier: str = "") -> TestSetup:
    """Analyze a set-up; `earlier` ran before it. Raises UnprotectedAssert if either is not Python."""
    if not source and not earlier:
        return TestSetup("")
    found = TestSetup(source)
    try:
        for statement in parse_python(earlier).body:
            found = _add_statement(found, statement, earlier)
        found = replace(found, statements=())
        for statement in parse_python(source).body:
            found = _add_statement(found, statement, source)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise UnprotectedAssert("its set-up cannot be read") from None
    return found


def _add_statement(setup: TestSetup, node: ast.stmt, code: str) -> TestSetup:
    binds = _bound_names(node)
    imports = {name: each for name, each in setup.imports.items() if name not in binds}
    helpers = {name: each for name, each in setup.helpers.items() if name not in binds}
    constants = {name: each for name, each in setup.constants.items() if name not in binds}
    definitions, results = set(setup.definitions - binds), set(setup.results - binds)
    is_definition = is_droppable = False
    captured, rebound = setup.captured | _captured_names(node), setup.rebound | _global_names(node)
    match node:
        case ast.Import() | ast.ImportFrom():
            imports |= _imported_names(node)
        case ast.FunctionDef(name=name) if _is_inlinable(node):
            helpers[name], is_definition, is_droppable = node, True, True
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            is_definition, is_droppable = True, isinstance(node, ast.FunctionDef)
            if code not in _DATASET_HELPERS:
                definitions.add(name)
        case ast.Assign(targets=[ast.Name(id=name)], value=value) if _is_host_constant(value, imports):
            is_definition, is_droppable = True, True
            if name not in rebound and (name not in captured or _is_immutable(value)):
                constants[name] = value
        case ast.Assign(targets=[ast.Name(id=name)], value=value) if not own_calls(value, setup):
            is_definition = True
            results.add(name)
        case ast.Assign(targets=[ast.Name()], value=value) if _is_own_object(value, setup):
            pass
        case _:
            results |= binds
    calls = own_calls(node, setup)
    in_calls = {name for call in calls for name in _loaded_names(call)}
    for name in _changeable_names(node, constants) - binds:
        constants.pop(name, None)
    statement = _Statement(
        node,
        _source_of(node, code),
        frozenset(binds),
        frozenset(in_calls),
        frozenset(_loose_names(node, setup)),
        is_definition,
        is_droppable,
    )
    return TestSetup(
        setup.source,
        imports,
        helpers,
        constants,
        frozenset(definitions),
        frozenset(results),
        captured,
        rebound,
        (*setup.statements, statement),
    )


# Built-in functions that neither change nor keep their arguments.
_READING_FUNCTIONS = frozenset(
    {
        *("abs", "all", "any", "bool", "dict", "float", "frozenset", "int", "isinstance", "len", "list", "max", "min"),
        *("repr", "round", "set", "sorted", "str", "sum", "tuple"),
    }
)


def _changeable_names(node: ast.AST, constants: Mapping[str, ast.expr]) -> frozenset[str]:
    """Return the names of constants of which `node` may change the value, now or when a function in it is called.

    A mutable value may be changed wherever its name is used otherwise than in a comparison or, if no part of the value
    is mutable, an index, a loop or a function that only reads it.
    """
    mutable = {name for name, value in constants.items() if not _is_immutable(value)}
    flat = {name for name in mutable if all(_is_immutable(part) for part in ast.iter_child_nodes(constants[name]))}
    compared: set[int] = set()
    read: set[int] = set()
    for each in ast.walk(node):
        match each:
            case ast.Compare():
                compared |= {id(side) for side in (each.left, *each.comparators)}
            case ast.Subscript(ctx=ast.Load()):
                read.add(id(each.value))
            case ast.For() | ast.comprehension():
                read.add(id(each.iter))
            case ast.Call(func=ast.Name(id=function)) if function in _READING_FUNCTIONS:
                read |= {id(argument) for argument in each.args}
    return _global_names(node) | {
        each.id
        for each in ast.walk(node)
        if isinstance(each, ast.Name)
        and each.id in mutable
        and id(each) not in compared
        and not (each.id in flat and id(each) in read)
    }


def _captured_names(node: ast.AST) -> frozenset[str]:
    """Return the names that functions and classes in `node` load: what calls them may change their values."""
    scopes = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    return frozenset(name for each in ast.walk(node) if isinstance(each, scopes) for name in _loaded_names(each))


def _global_names(node: ast.AST) -> frozenset[str]:
    return frozenset(name for each in ast.walk(node) if isinstance(each, ast.Global) for name in each.names)


def _source_of(node: ast.stmt, code: str) -> str:
    """Return the text of a statement, with its decorators, which are no part of its segment."""
    segment = None if getattr(node, "decorator_list", None) else ast.get_source_segment(code, node)
    return segment or ast.unparse(node)


def _bound_names(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return set(_imported_names(node))
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name) and not isinstance(each.ctx, ast.Load)}


def _imported_names(node: ast.Import | ast.ImportFrom) -> dict[str, str]:
    """Return the full names by the names that an import defines: {'np': 'numpy'}, {'dist': 'math.dist'}."""
    if isinstance(node, ast.ImportFrom):
        return {each.asname or each.name: f"{node.module or ''}.{each.name}" for each in node.names}
    return {
        each.asname or each.name.partition(".")[0]: each.name if each.asname else each.name.partition(".")[0]
        for each in node.names
    }


def _is_host_constant(node: ast.expr, imports: Mapping[str, str]) -> bool:
    try:
        Interpreter(imports).evaluate(node)
    except Exception:  # noqa: BLE001 - an expression that raises is no constant
        return False
    return True


def _is_immutable(node: ast.AST) -> bool:
    kinds = (ast.Constant, ast.Tuple, ast.UnaryOp, ast.BinOp, ast.Load, ast.operator, ast.unaryop)
    return all(isinstance(each, kinds) for each in ast.walk(node))


def _is_inlinable(node: ast.FunctionDef) -> bool:
    """Return whether a function only returns an expression over parameters without * or keyword-only ones.

    The defaults of its parameters must be immutable constants, because Python evaluates them once.
    """
    body = [each for each in node.body if not (isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant))]
    simple = not (node.args.vararg or node.args.kwarg or node.args.kwonlyargs or node.decorator_list)
    simple = simple and all(map(_is_immutable, node.args.defaults))
    return simple and len(body) == 1 and isinstance(body[0], ast.Return) and body[0].value is not None


class _Inliner(ast.NodeTransformer):
    """Replaces names of constants and calls of helpers; own calls stay the same nodes."""

    def __init__(self, setup: TestSetup, depth: int = 0) -> None:
        self._setup, self._depth = setup, depth

    def visit(self, node: ast.AST) -> Any:
        if is_own_call(node, self._setup):
            return node
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in self._setup.helpers:
            return self._inline_call(node, self._setup.helpers[node.func.id])
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in self._setup.constants:
            return _marked_copy(self._setup.constants[node.id], {})
        return self.generic_visit(node)

    def generic_visit(self, node: ast.AST) -> ast.AST:
        """Copy the node: plans share the trees of set-ups."""
        return copy_tree(node, self.visit)

    def _inline_call(self, node: ast.Call, helper: ast.FunctionDef) -> ast.expr:
        if self._depth >= MAX_INLINED:
            raise UnprotectedAssert("a helper of its set-up calls itself")
        names = [each.arg for each in (*helper.args.posonlyargs, *helper.args.args)]
        defaults = helper.args.defaults
        given: dict[str, ast.expr] = dict(zip(names[len(names) - len(defaults) :], defaults, strict=True))
        given |= dict(zip(names, map(self.visit, node.args), strict=False))
        given |= {each.arg: self.visit(each.value) for each in node.keywords if each.arg}
        (returned,) = (each.value for each in helper.body if isinstance(each, ast.Return) and each.value is not None)
        if given.keys() != set(names) or len(node.args) > len(names) or any(each.arg is None for each in node.keywords):
            raise UnprotectedAssert("a helper of its set-up gets other arguments")
        if names_bound_in(returned) & {name for each in given.values() for name in _loaded_names(each)} or (
            names_bound_in(returned) & set(names)
        ):
            raise UnprotectedAssert("a helper of its set-up uses the same names")
        return _Inliner(self._setup, self._depth + 1).visit(_marked_copy(returned, given))


def _marked_copy(node: ast.AST, parameters: Mapping[str, ast.expr]) -> Any:
    """Return a copy of `node`, marked as inlined, with the arguments themselves in the place of the parameters."""

    def visit(each: ast.AST) -> ast.AST:
        if isinstance(each, ast.Name) and each.id in parameters:
            return parameters[each.id]
        copied = copy_tree(each, visit)
        copied.is_inlined = True  # type: ignore[attr-defined]
        return copied

    return visit(node)


def copy_tree(node: ast.AST, visit: Callable[[ast.AST], Any]) -> ast.AST:
    """Return a copy of `node`, the children of which are what `visit` returns for them."""
    fields: dict[str, Any] = {}
    for name, value in ast.iter_fields(node):
        if isinstance(value, list):
            fields[name] = [visit(each) if isinstance(each, ast.AST) else each for each in value]
        else:
            fields[name] = visit(value) if isinstance(value, ast.AST) else value
    copied = ast.copy_location(type(node)(**fields), node)
    if hasattr(node, "is_inlined"):
        copied.is_inlined = True  # type: ignore[attr-defined]
    return copied
