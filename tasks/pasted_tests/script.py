"""Collector of a script's steps and tests, which refuses tests that test nothing of the answer."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import Any

from errors import DataError
from tasks.pasted_tests.text import FORMAT_HINT, line_error, names, parse_counted, truncate, walk
from tasks.problem import Outcome, ScriptTest, Step, Test

# Functions of constants that a person may write by mistake; an answer that defines one of them is tested by others.
_PURE: dict[str, Callable[..., Any]] = {
    each.__name__: each
    for each in (abs, all, any, bool, dict, float, int, len, list, max, min, repr, set, sorted, str, sum, tuple, type)
}
_TYPES = {each.__name__: each for each in (bool, bytes, complex, dict, float, frozenset, int, list, set, str, tuple)}
MAX_TESTS = 200
_MAX_COUNTED = 1_000  # where reading ends
_BUILTIN_NAMES = frozenset(vars(builtins))


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


@dataclass(frozen=True)
class _PendingStep:
    step: Step
    line: int
    optional: bool


class _SourceNames:
    """The names in code, collected in one pass."""

    def __init__(self, tree: ast.AST) -> None:
        self.loaded: set[str] = set()
        self.stored: set[str] = set()
        self.defined: set[str] = set()  # functions, classes and modules
        self.parameters: set[str] = set()
        for node in walk(tree):
            if isinstance(node, ast.Name):
                (self.loaded if isinstance(node.ctx, ast.Load) else self.stored).add(node.id)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                self.defined.add(node.name)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                self.defined |= {(each.asname or each.name).partition(".")[0] for each in node.names}
            elif isinstance(node, ast.arg):
                self.parameters.add(node.arg)


class _Group:
    """Names that are used together, directly or through others."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.unmarked: set[str] = set()


class ScriptBuilder:
    """The tests of a pasted text in the order in which they run."""

    def __init__(self) -> None:
        self.tests: list[Test] = []
        self._steps: list[_PendingStep] = []
        self._bound: set[str] = set()  # names that the steps define
        self._objects: set[str] = set()  # functions, classes and modules among them
        self._of_answer: set[str] = set()  # names among them whose value depends on the answer
        self._groups: dict[str, _Group] = {}  # of names in the same statement or function

    def add_step(
        self, source: str, line: int, scope: str = "", *, optional: bool = False, of_answer: bool = False
    ) -> None:
        """Add lines that test nothing; `optional` ones need not run after the last test.

        What they define depends on the answer if they are `of_answer` or use it.
        """
        self._steps.append(_PendingStep(Step(source, scope), line, optional))
        statements = [_SourceNames(statement) for statement in parse_counted(source).body]
        for used in statements:
            self._objects -= used.stored
        for used in statements:
            self._objects |= used.defined
            self._bound |= used.stored | used.defined
        for used in statements:
            self._link((used.loaded | used.stored | used.defined) & self._bound)
        if of_answer or any(map(self._uses_answer, statements)):
            for used in statements:
                self._of_answer |= used.stored | used.defined
                self._mark_changeable(used.loaded)

    def add_assert(self, source: str, line: int, scope: str = "", *, checked: bool = True) -> None:
        """Add an assert, or a statement with asserts. Raises DataError if it tests nothing (unless not `checked`)."""
        tree = parse_counted(source)
        used = _SourceNames(tree)
        if checked:
            self._refuse_empty(tree, used, source, line)
        self.add(ScriptTest(source, self._take_steps(), scope))
        if self._uses_answer(used):
            self._mark_changeable(used.loaded)

    def add_outcome(self, source: str, outcome: Outcome, line: int, scope: str = "", *, checked: bool = True) -> None:
        """Add statements that must display or raise something, as add_assert adds an assert."""
        tree = parse_counted(source)
        if checked:
            self._refuse_empty(tree, _SourceNames(tree), source, line)
        self.add(ScriptTest(source, self._take_steps(), scope, outcome))
        if any(isinstance(node, ast.Assign | ast.Call) for node in walk(tree)):
            self._bound |= names(tree, ast.Store)
            self._of_answer |= self._bound - self._objects

    def add(self, test: Test) -> None:
        """Add a test that is complete, such as a program run."""
        self.tests.append(test)
        if len(self.tests) > _MAX_COUNTED:
            raise DataError(f"There are more than {_MAX_COUNTED} tests: paste at most {MAX_TESTS}.")

    def finish(self) -> tuple[Test, ...]:
        """Return the tests. Raises DataError where the last lines do something that nothing tests."""
        for pending in self._steps:
            if not pending.optional and self.tests and not _is_harmless(pending.step.source):
                source = truncate(pending.step.source)
                raise line_error(
                    pending.line, f"'{source}' comes after the last test and checks nothing: add a test or remove it"
                )
        if len(self.tests) > MAX_TESTS:
            raise DataError(f"There are {len(self.tests)} tests: paste at most {MAX_TESTS}.")
        return tuple(self.tests)

    def _take_steps(self) -> tuple[Step, ...]:
        steps = tuple(pending.step for pending in self._steps)
        self._steps.clear()
        return steps

    def _link(self, together: set[str]) -> None:
        """Put the names into one group, with all names of the groups that they are in."""
        found = {id(group): group for group in map(self._groups.get, together) if group is not None}
        largest = max(found.values(), key=lambda group: len(group.names), default=_Group())
        for group in found.values():
            if group is not largest:
                largest.names |= group.names
                largest.unmarked |= group.unmarked
                self._groups.update(dict.fromkeys(group.names, largest))
        added = together - largest.names
        largest.names |= added
        largest.unmarked |= added
        self._groups.update(dict.fromkeys(added, largest))

    def _mark_changeable(self, loaded: set[str]) -> None:
        """Mark the variables that a call of the answer may have changed: its arguments, and what is used with these."""
        self._of_answer |= (loaded & self._bound) - self._objects
        for group in {id(group): group for group in map(self._groups.get, loaded) if group is not None}.values():
            marked = group.unmarked - self._objects
            self._of_answer |= marked
            group.unmarked -= marked

    def _uses_answer(self, used: _SourceNames) -> bool:
        """Return whether the code uses a name that only the answer can define, or a value that depends on it."""
        loaded = used.loaded - used.parameters - used.defined
        own = used.stored - self._bound
        return bool(loaded & self._of_answer or loaded - self._bound - own - _BUILTIN_NAMES)

    def _refuse_empty(self, tree: ast.Module, used: _SourceNames, source: str, line: int) -> None:
        statement = tree.body[-1]
        condition = statement.test if isinstance(statement, ast.Assert) else None
        loaded = names(condition, ast.Load) if condition is not None else set()
        if condition is not None and not loaded & self._bound & _BUILTIN_NAMES:
            unbound = loaded - self._bound - _BUILTIN_NAMES
            fixed = fixed_truth(condition, (self._objects | unbound | _BUILTIN_NAMES) - self._of_answer)
            if fixed is not None:
                always = "holds whatever the answer gives" if fixed else "can never hold"
                raise line_error(
                    line, f"'{truncate(source)}' {always}, so it tests nothing: compare a call with its value"
                )
        self._refuse_independent(used, source, line)

    def refuse_independent(self, source: str, line: int) -> None:
        """Raise DataError if the lines use nothing of the answer."""
        self._refuse_independent(_SourceNames(parse_counted(source)), source, line)

    def _refuse_independent(self, used: _SourceNames, source: str, line: int) -> None:
        if self._uses_answer(used):
            return
        quoted, defined = truncate(source), sorted(used.loaded & self._bound)
        if defined:
            raise line_error(
                line,
                f"'{quoted}' tests nothing of the answer, because the lines above define {defined[0]!r} "
                "themselves: remove that definition, or compare a call of the answer",
            )
        if not used.loaded:
            raise line_error(line, f"'{quoted}' calls nothing, so it tests nothing: compare a call with its value")


def no_test_error() -> DataError:
    """Return the error of a text without any test."""
    return DataError(f"There is no test in this text: {FORMAT_HINT}.")


def _is_harmless(source: str) -> bool:
    """Return whether the lines only define something or print a text."""
    return all(_is_harmless_statement(statement) for statement in parse_counted(source).body)


def _is_harmless_statement(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.FunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom | ast.Pass):
        return True
    calls: Sequence[ast.Call] = [node for node in walk(statement) if isinstance(node, ast.Call)]
    return all(isinstance(call.func, ast.Name) and call.func.id in _BUILTIN_NAMES for call in calls) and not isinstance(
        statement, ast.Delete | ast.Raise
    )
