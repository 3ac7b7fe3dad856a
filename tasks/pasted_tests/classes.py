"""Test classes of unittest and pytest: each method becomes a test function with `self` and what sets it up."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from tasks.pasted_tests.binding import NameUse
from tasks.pasted_tests.functions import Frame, can_inline, methods
from tasks.pasted_tests.rewrite import TEST_CASE, RaisesToTry, Rewriter
from tasks.pasted_tests.text import line_error, names, walk

if TYPE_CHECKING:
    from tasks.pasted_tests.python_tests import PythonTests


class TestClass:
    """The methods of one test class."""

    def __init__(self, tests: PythonTests, case: ast.ClassDef) -> None:
        self._tests = tests
        self._case = case
        self._is_unittest = bool(case.bases)

    def run(self) -> None:
        """Add the class without its tests, and each test with what sets it up."""
        found = {each.name: self._rewrite(each) for each in methods(self._case)}
        tested = [name for name in found if name.startswith("test")]
        inlined = [name for name in tested if can_inline(found[name])]
        used = _receiver_attributes(found.values()) - set(found)
        base = self._is_unittest and bool(used & set(dir(_unittest_case())))
        others = [each for each in self._case.body if not (isinstance(each, ast.FunctionDef) and each.name in tested)]
        builder, line = self._tests.builder, self._case.lineno
        for each in self._case.decorator_list:
            raise line_error(line, f"'{self._case.name}' has the decorator '{ast.unparse(each)}': remove it")
        if base:
            builder.add_step("import unittest", line)
        if tested:
            builder.add_step(self._definition([found.get(getattr(e, "name", ""), e) for e in others], base=base), line)
        self._class_hook(found, ("setUpClass", "setup_class"), line)
        for name in sorted(tested) if self._is_unittest else tested:
            whole = None if name in inlined else self._definition([*others, found[name]], base=base)
            self._run_method(found, found[name], whole)
        self._class_hook(found, ("tearDownClass", "teardown_class"), line, optional=True)

    def _rewrite(self, method: ast.FunctionDef) -> ast.FunctionDef:
        receiver = method.args.args[0].arg if method.args.args else ""
        return Rewriter(self._tests.aliases, receiver).function(method)

    def _definition(self, body: Sequence[ast.stmt], *, base: bool) -> str:
        bases = [each for each in self._case.bases if self._tests.canonical(each) != TEST_CASE]
        if base and len(bases) < len(self._case.bases):
            bases.append(ast.parse(TEST_CASE, mode="eval").body)
        statements = [RaisesToTry().visit(each) for each in body] or [ast.Pass()]
        definition = ast.parse(f"class {self._case.name}: pass").body[0]
        if isinstance(definition, ast.ClassDef):
            definition.bases, definition.body = bases, statements
        return ast.unparse(ast.fix_missing_locations(definition))

    def _class_hook(
        self, found: dict[str, ast.FunctionDef], hooks: Sequence[str], line: int, *, optional: bool = False
    ) -> None:
        for hook in hooks:
            if hook in found:
                self._tests.builder.add_step(f"{self._case.name}.{hook}()", line, optional=optional)

    def _run_method(self, found: dict[str, ast.FunctionDef], method: ast.FunctionDef, whole: str | None) -> None:
        tests, builder, line = self._tests, self._tests.builder, method.lineno
        receiver = method.args.args[0].arg if method.args.args else "self"
        use = NameUse(method.body)
        for bindings in tests.parameter_sets(method, receiver=True):
            scope = tests.new_scope(f"{self._case.name}.{method.name}")
            create = f"{receiver} = {self._case.name}()"
            hooks = [hook for hook in ("setUp", "setup_method") if hook in found]
            if whole is not None:
                setup = "".join(f"\n{receiver}.{hook}()" for hook in hooks)
                arguments = ", ".join(f"{name}={ast.unparse(value)}" for name, value in bindings)
                code = f"{whole}\n{create}{setup}\n{receiver}.{method.name}({arguments})\nassert True"
                builder.refuse_independent(code, line)
                builder.add_assert(code, line, scope, checked=False)
                continue
            if hooks or receiver in {name for each in method.body for name in names(each, ast.Load)}:
                builder.add_step(create, line, scope, of_answer=bool(hooks))
            for hook in hooks:
                arguments = "None" if len(found[hook].args.args) > 1 else ""
                builder.add_step(f"{receiver}.{hook}({arguments})", line, scope)
            with tests.must_test(method):
                tests.run_bound(method.body, bindings, line, Frame(scope), use=use)
            for cleanup in ("tearDown", "teardown_method"):
                if cleanup in found:
                    builder.add_step(f"{receiver}.{cleanup}()", line, scope, optional=True)


def _unittest_case() -> type:
    from unittest import TestCase

    return TestCase


def _receiver_attributes(defined: Iterable[ast.FunctionDef]) -> set[str]:
    return {
        node.attr
        for method in defined
        for node in walk(method)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
