"""Collector of a script's steps and tests, which refuses tests that test nothing of the answer."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Sequence
from dataclasses import dataclass

from common.syntax import parse_python
from errors import DataError
from tasks.pasted_tests.text import FORMAT_HINT, line_error, names, truncate
from tasks.pasted_tests.truth import fixed_truth
from tasks.problem import Outcome, ScriptTest, Step, Test

MAX_TESTS = 200
_MAX_COUNTED = 1_000  # where reading ends
_BUILTIN_NAMES = frozenset(vars(builtins))


@dataclass(frozen=True)
class _PendingStep:
    step: Step
    line: int
    optional: bool


class ScriptBuilder:
    """The tests of a pasted text in the order in which they run."""

    def __init__(self) -> None:
        self.tests: list[Test] = []
        self._steps: list[_PendingStep] = []
        self._bound: set[str] = set()  # names that the steps define
        self._objects: set[str] = set()  # functions, classes and modules among them
        self._of_answer: set[str] = set()  # names among them whose value depends on the answer
        self._used_with: dict[str, set[str]] = {}  # for each of them, those in the same statement or function

    def add_step(
        self, source: str, line: int, scope: str = "", *, optional: bool = False, of_answer: bool = False
    ) -> None:
        """Add lines that test nothing; `optional` ones need not run after the last test.

        What they define depends on the answer if they are `of_answer` or use it.
        """
        self._steps.append(_PendingStep(Step(source, scope), line, optional))
        tree = parse_python(source)
        loaded, stored = names(tree, ast.Load), names(tree, ast.Store) | _defined_names(tree)
        self._objects = (self._objects - names(tree, ast.Store)) | _defined_names(tree)
        self._bound |= stored
        for statement in tree.body:
            together = (
                names(statement, ast.Load) | names(statement, ast.Store) | _defined_names(statement)
            ) & self._bound
            for name in together:
                self._used_with.setdefault(name, set()).update(together)
        if of_answer or self._uses_answer(tree):
            self._of_answer |= stored
            self._mark_changeable(loaded)

    def add_assert(self, source: str, line: int, scope: str = "", *, checked: bool = True) -> None:
        """Add an assert, or a statement with asserts. Raises DataError if it tests nothing (unless not `checked`)."""
        if checked:
            self._refuse_empty(source, line)
        self.add(ScriptTest(source, self._take_steps(), scope))
        tree = parse_python(source)
        if self._uses_answer(tree):
            self._mark_changeable(names(tree, ast.Load))

    def add_outcome(self, source: str, outcome: Outcome, line: int, scope: str = "", *, checked: bool = True) -> None:
        """Add statements that must display or raise something, as add_assert adds an assert."""
        if checked:
            self._refuse_empty(source, line)
        self.add(ScriptTest(source, self._take_steps(), scope, outcome))
        if any(isinstance(node, ast.Assign | ast.Call) for node in ast.walk(parse_python(source))):
            self._bound |= names(parse_python(source), ast.Store)
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

    def _mark_changeable(self, loaded: set[str]) -> None:
        """Mark the variables that a call of the answer may have changed: its arguments, and what is used with these."""
        reached: set[str] = set()
        pending = loaded & self._bound
        while pending:
            reached |= pending
            pending = {other for name in pending for other in self._used_with.get(name, ())} - reached
        self._of_answer |= reached - self._objects

    def _uses_answer(self, tree: ast.AST) -> bool:
        """Return whether the code uses a name that only the answer can define, or a value that depends on it."""
        inner = {each.arg for each in ast.walk(tree) if isinstance(each, ast.arg)} | _defined_names(tree)
        loaded = names(tree, ast.Load) - inner
        own = names(tree, ast.Store) - self._bound
        return bool(loaded & self._of_answer or loaded - self._bound - own - _BUILTIN_NAMES)

    def _refuse_empty(self, source: str, line: int) -> None:
        tree = parse_python(source)
        statement = tree.body[-1]
        condition = statement.test if isinstance(statement, ast.Assert) else None
        quoted = truncate(source)
        if condition is not None and not names(condition, ast.Load) & self._bound & _BUILTIN_NAMES:
            unbound = names(condition, ast.Load) - self._bound - _BUILTIN_NAMES
            fixed = fixed_truth(condition, (self._objects | unbound | _BUILTIN_NAMES) - self._of_answer)
            if fixed is not None:
                always = "holds whatever the answer gives" if fixed else "can never hold"
                raise line_error(line, f"'{quoted}' {always}, so it tests nothing: compare a call with its value")
        self.refuse_independent(source, line)

    def refuse_independent(self, source: str, line: int) -> None:
        """Raise DataError if the lines use nothing of the answer."""
        tree, quoted = parse_python(source), truncate(source)
        if not self._uses_answer(tree):
            defined = sorted(names(tree, ast.Load) & self._bound)
            if defined:
                raise line_error(
                    line,
                    f"'{quoted}' tests nothing of the answer, because the lines above define {defined[0]!r} "
                    "themselves: remove that definition, or compare a call of the answer",
                )
            if not names(tree, ast.Load):
                raise line_error(line, f"'{quoted}' calls nothing, so it tests nothing: compare a call with its value")


def no_test_error() -> DataError:
    """Return the error of a text without any test."""
    return DataError(f"There is no test in this text: {FORMAT_HINT}.")


def _defined_names(tree: ast.AST) -> set[str]:
    defined: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            defined |= {(each.asname or each.name).partition(".")[0] for each in node.names}
    return defined


def _is_harmless(source: str) -> bool:
    """Return whether the lines only define something or print a text."""
    return all(_is_harmless_statement(statement) for statement in parse_python(source).body)


def _is_harmless_statement(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.FunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom | ast.Pass):
        return True
    calls: Sequence[ast.Call] = [node for node in ast.walk(statement) if isinstance(node, ast.Call)]
    return all(isinstance(call.func, ast.Name) and call.func.id in _BUILTIN_NAMES for call in calls) and not isinstance(
        statement, ast.Delete | ast.Raise
    )
