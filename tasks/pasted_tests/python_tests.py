"""Python text as tests: asserts, functions of pytest and HumanEval, classes of unittest and pytest, loops of asserts.

Lines run in the order of Python: those of the module first, each where it stands, then pytest's functions and
unittest's methods. The body of a test function becomes steps and tests of its own, with its name as their scope; a
block that cannot be taken apart is one test that runs as a whole.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product

from common.parsing import dotted_name
from tasks.pasted_tests.binding import (
    CHECK,
    Bindings,
    Frame,
    Later,
    NameUse,
    bind,
    bind_arguments,
    can_inline,
    checked_functions,
    decorator_function,
    fold_literals,
    is_answer_module,
    is_pytest,
    is_stub,
    methods,
    note_sources,
    parametrize,
    statement_source,
    unroll,
)
from tasks.pasted_tests.rewrite import TEST_CASE, RaisesToTry, Rewriter, info_assignment, raises_call
from tasks.pasted_tests.script import MAX_TESTS, ScriptBuilder
from tasks.pasted_tests.text import is_literal, line_error, names, parse_source, truncate, walk
from tasks.problem import ENTRY_POINT, Outcome

MAX_DEPTH = 10  # of test functions that call each other
_RUNNERS = frozenset({"unittest.main", "pytest.main", "doctest.testmod"})
_NO_FIXTURES = "write its value into the test, because fixtures are not run here"
_REGEX_CHARACTERS = frozenset("\\^$.|?*+()[]{}")


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


@dataclass
class Stub:
    """A function without a body, which the answer must define, with its docstring and line."""

    docstring: str
    line: int


@dataclass
class PythonTests:
    """Reader of Python text, which may come in several parts; `finish` adds the functions that pytest would run."""

    builder: ScriptBuilder
    stubs: list[Stub] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)
    _functions: dict[str, ast.FunctionDef] = field(default_factory=dict)  # those with tests
    _cases: dict[str, ast.ClassDef] = field(default_factory=dict)
    _fixtures: set[str] = field(default_factory=set)
    _called: set[str] = field(default_factory=set)
    _references: set[str] = field(default_factory=set)  # functions of the text that the answer replaces
    _scopes: dict[str, int] = field(default_factory=dict)
    _bodies: dict[ast.FunctionDef, tuple[list[ast.stmt], NameUse]] = field(default_factory=dict)  # rewritten

    def read(self, text: str, line: int, replaced: Sequence[str] = ()) -> None:
        """Read a part whose first line is line `line`; definitions of the functions `replaced` are left out."""
        tree = parse_source(text, line)
        note_sources(tree, text)
        ast.increment_lineno(tree, line - 1)
        self._references |= {*replaced, *checked_functions(tree)}
        self._read_aliases(tree)
        body = Rewriter(self.aliases).statements(tree.body)
        self._run(fold_literals(body, local=False), Frame())

    def call_check(self, entry_point: str, line: int) -> None:
        """Add HumanEval's call of `check` with the function of this name."""
        self._call(ast.parse(f"{CHECK}({entry_point})").body[0], line, Frame())

    def finish(self) -> None:
        """Add the test functions and classes that nothing has called yet, as pytest and unittest do."""
        for name, function in list(self._functions.items()):
            if name not in self._called and name.startswith("test"):
                self._run_pytest_function(function)
        for case in self._cases.values():
            TestClass(self, case).run()
        for name, function in self._functions.items():
            if name in self._called:
                continue
            if name == CHECK and len(function.args.args) == 1:
                self.call_check(ENTRY_POINT, function.lineno)
            else:
                raise line_error(function.lineno, f"'{name}' has tests but nothing calls it: call it or name it test_…")

    def _read_aliases(self, tree: ast.Module) -> None:
        for node in walk(tree):
            if isinstance(node, ast.Import):
                self.aliases.update({each.asname: each.name for each in node.names if each.asname})
            elif isinstance(node, ast.ImportFrom) and node.module in {"pytest", "unittest", "doctest"}:
                self.aliases.update({each.asname or each.name: f"{node.module}.{each.name}" for each in node.names})

    def canonical(self, node: ast.expr) -> str:
        return Rewriter(self.aliases).canonical_name(node)

    def _run(self, body: Sequence[ast.stmt], frame: Frame, after: Later | None = None) -> None:
        later = Later(body, after)
        for later.at, statement in enumerate(body):
            self._statement(statement, later, frame)

    def _statement(self, node: ast.stmt, later: Later, frame: Frame) -> None:
        match node:
            case ast.Pass() | ast.Expr(value=ast.Constant()):
                pass
            case ast.Return(value=None) if not later:
                pass
            case ast.Import() | ast.ImportFrom():
                self._import(node, frame)
            case ast.FunctionDef() if not frame.scope:
                self._function(node)
            case ast.ClassDef() if not frame.scope and self._is_case(node):
                self._cases[node.name] = node
            case ast.AsyncFunctionDef() if self._has_test(node):
                raise line_error(
                    node.lineno, f"'{node.name}' is asynchronous, which is not run here: use asyncio.run in an assert"
                )
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                self.builder.add_step(statement_source(node), node.lineno, frame.scope)
            case ast.Assert():
                if not (frame.lenient and is_literal(node.test)):
                    self.builder.add_assert(statement_source(node), node.lineno, frame.scope)
            case ast.For():
                self._for(node, later, frame)
            case ast.With() if raises_call(node) is not None:
                self._raises(node, later, frame)
            case ast.If() if ast.unparse(node.test) in {"__name__ == '__main__'", "'__main__' == __name__"}:
                self._run(node.body, frame)
            case ast.Expr():
                self._expression(node, frame)
            case _ if self._has_test(node):
                self._whole(node, frame)
            case _:
                self.builder.add_step(statement_source(node), node.lineno, frame.scope)

    def _import(self, node: ast.Import | ast.ImportFrom, frame: Frame) -> None:
        """Add an import; one of the module that stands for the answer becomes one of the answer."""
        if isinstance(node, ast.ImportFrom):
            if node.module in {"pytest", "unittest", "doctest", "__future__"} and not node.level:
                return
            if node.level or is_answer_module(node.module or ""):
                renamed = [each for each in node.names if each.asname and each.asname != each.name]
                if renamed:
                    source = ast.unparse(ast.ImportFrom("candidate", renamed, 0))
                    self.builder.add_step(source, node.lineno, frame.scope)
                return
            self.builder.add_step(statement_source(node), node.lineno, frame.scope)
            return
        for each in node.names:
            if each.name in {"pytest", "unittest", "doctest"}:
                continue
            name = each.asname or each.name
            source = f"import {each.name}" + (f" as {each.asname}" if each.asname else "")
            if is_answer_module(each.name):
                source = f"import candidate as {name.partition('.')[0]}"
            self.builder.add_step(source, node.lineno, frame.scope, of_answer=is_answer_module(each.name))

    def _function(self, node: ast.FunctionDef) -> None:
        decorators = {self.canonical(decorator_function(each)) for each in node.decorator_list}
        if "pytest.fixture" in decorators:
            self._fixtures.add(node.name)
        elif self._has_test(node) or (node.name.startswith("test") and is_pytest(node)):
            self._functions[node.name] = node
            self._called.discard(node.name)
        elif is_stub(node):
            self.stubs.append(Stub(ast.get_docstring(node) or "", node.lineno))
        elif node.name not in self._references:
            self.builder.add_step(statement_source(node), node.lineno)

    def _is_case(self, node: ast.ClassDef) -> bool:
        bases = {self.canonical(base) for base in node.bases}
        if TEST_CASE in bases or any(base in self._cases for base in bases):
            return True
        return node.name.startswith("Test") and any(each.name.startswith("test") for each in methods(node))

    def _has_test(self, node: ast.AST) -> bool:
        for each in walk(node):
            if isinstance(each, ast.Assert) or (isinstance(each, ast.With) and raises_call(each) is not None):
                return True
            if isinstance(each, ast.Expr) and isinstance(each.value, ast.Call):
                name = dotted_name(each.value.func)
                if name in self._functions or name.rpartition(".")[2].startswith("assert"):
                    return True
        return False

    def _expression(self, node: ast.Expr, frame: Frame) -> None:
        value = node.value
        if isinstance(value, ast.Compare | ast.BoolOp) or (
            isinstance(value, ast.UnaryOp) and isinstance(value.op, ast.Not)
        ):
            raise line_error(
                node.lineno, f"'{truncate(statement_source(node))}' checks nothing: put 'assert' before it"
            )
        inner = value.args[0] if isinstance(value, ast.Call) and value.args else value
        if any(isinstance(each, ast.Call) and self.canonical(each.func) in _RUNNERS for each in (value, inner)):
            return
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id in self._functions:
            self._call(node, node.lineno, frame)
        elif isinstance(value, ast.Call) and dotted_name(value.func).rpartition(".")[2].startswith("assert"):
            self._whole(node, frame)
        elif isinstance(value, ast.Name | ast.Attribute) and not frame.lenient:
            raise line_error(node.lineno, f"'{truncate(statement_source(node))}' is not called, so it checks nothing")
        else:
            self.builder.add_step(statement_source(node), node.lineno, frame.scope)

    def _whole(self, node: ast.stmt, frame: Frame) -> None:
        """Add a statement as one test, which runs in the sandbox with all that it expects."""
        source = ast.unparse(ast.fix_missing_locations(RaisesToTry().visit(node)))
        if not any(isinstance(each, ast.Assert) for each in walk(node)):
            self.builder.refuse_independent(source, node.lineno)
            self.builder.add_assert(f"{source}\nassert True", node.lineno, frame.scope, checked=False)
        else:
            self.builder.add_assert(source, node.lineno, frame.scope)

    def _for(self, node: ast.For, later: Later, frame: Frame) -> None:
        if not self._has_test(node):
            self.builder.add_step(statement_source(node), node.lineno, frame.scope)
            return
        iterations = unroll(node, later)
        if iterations == []:
            raise line_error(node.lineno, "this loop has no items, so its asserts never run")
        if iterations is None or len(self.builder.tests) + len(iterations) > MAX_TESTS:
            self._whole(node, frame)
            return
        use = NameUse(node.body)
        for bindings in iterations:
            self.run_bound(node.body, bindings, node.lineno, frame, later, use=use)

    def run_bound(
        self,
        body: Sequence[ast.stmt],
        bindings: Bindings,
        line: int,
        frame: Frame,
        later: Later | None = None,
        *,
        use: NameUse,
    ) -> None:
        """Run the body of a function or loop with its parameters; `later` are the statements after a loop."""
        bound, left = bind(body, bindings, use)
        for name, value in left:
            self.builder.add_step(f"{name} = {ast.unparse(value)}", line, frame.scope)
        self._run(fold_literals(bound, local=bool(frame.scope), later=later), frame)

    def _raises(self, node: ast.With, later: Later, frame: Frame) -> None:
        """Add a block for an expected exception; its name and message stay outside of the sandbox."""
        call = raises_call(node)
        expected = call.args[0] if call is not None else node.items[0].context_expr
        listed = expected.elts if isinstance(expected, ast.Tuple) else [expected]
        found = [dotted_name(each).rpartition(".")[2] for each in listed]
        match = call.keywords[0].value if call is not None and call.keywords else ast.Constant("")
        plain = isinstance(match, ast.Constant) and isinstance(match.value, str)
        if not all(found) or not plain or set(str(match.value)) & _REGEX_CHARACTERS:  # type: ignore[attr-defined]
            self._whole(node, frame)
            return
        body: list[ast.stmt] = node.body
        bound = node.items[0].optional_vars
        if isinstance(bound, ast.Name) and later.uses(bound.id):
            handler = ast.ExceptHandler(
                ast.Name("BaseException", ast.Load()), "_raised", [info_assignment(bound.id), ast.Raise()]
            )
            body = [ast.Try(body, [handler], [], [])]
        source = "\n".join(ast.unparse(ast.fix_missing_locations(each)) for each in body)
        outcome = Outcome(error="|".join(found), match=str(match.value))  # type: ignore[attr-defined]
        self.builder.add_outcome(source, outcome, node.lineno, frame.scope)

    def _call(self, node: ast.stmt, line: int, frame: Frame) -> None:
        """Run the body of a test function for a call of it."""
        call = node.value if isinstance(node, ast.Expr) else None
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            return
        function = self._functions.get(call.func.id)
        if function is None:
            raise line_error(line, f"'{call.func.id}' is not defined: paste its definition too")
        self._called.add(function.name)
        bindings = bind_arguments(function, call)
        if bindings is None or not can_inline(function) or frame.depth >= MAX_DEPTH:
            self._whole_function(function, ast.unparse(call), line, frame)
            return
        lenient = function.name == CHECK
        inner = Frame(self.new_scope(function.name), lenient, frame.depth + 1)
        self._inline(function, bindings, line, inner)

    def _inline(self, function: ast.FunctionDef, bindings: Bindings, line: int, frame: Frame) -> None:
        if function not in self._bodies:
            body = Rewriter(self.aliases).statements(function.body)
            self._bodies[function] = (body, NameUse(body))
        body, use = self._bodies[function]
        self.run_bound(body, bindings, line, frame, use=use)

    def _whole_function(self, function: ast.FunctionDef, call: str, line: int, frame: Frame) -> None:
        definition = RaisesToTry().visit(Rewriter(self.aliases).statements([function])[0])
        definition.decorator_list = []
        source = ast.unparse(ast.fix_missing_locations(definition))
        self.builder.refuse_independent(source, line)
        self.builder.add_assert(f"{source}\n{call}\nassert True", line, frame.scope, checked=False)

    @contextmanager
    def must_test(self, function: ast.FunctionDef) -> Iterator[None]:
        """Raise DataError if nothing is added for the function inside of the block."""
        count = len(self.builder.tests)
        yield
        if len(self.builder.tests) == count:
            raise line_error(function.lineno, f"'{function.name}' asserts nothing: add an assert or remove it")

    def new_scope(self, name: str) -> str:
        self._scopes[name] = self._scopes.get(name, 0) + 1
        return name if self._scopes[name] == 1 else f"{name} {self._scopes[name]}"

    def _run_pytest_function(self, function: ast.FunctionDef) -> None:
        self._called.add(function.name)
        for bindings in self.parameter_sets(function, receiver=False):
            if can_inline(function):
                with self.must_test(function):
                    self._inline(function, bindings, function.lineno, Frame(self.new_scope(function.name)))
            else:
                arguments = ", ".join(f"{name}={ast.unparse(value)}" for name, value in bindings)
                self._whole_function(function, f"{function.name}({arguments})", function.lineno, Frame())

    def parameter_sets(self, function: ast.FunctionDef, *, receiver: bool) -> list[Bindings]:
        """Return the bindings of each run that pytest.mark.parametrize asks for; one without any for none."""
        columns: list[list[Bindings]] = []
        for decorator in reversed(function.decorator_list):
            name = self.canonical(decorator_function(decorator))
            if name == "pytest.mark.parametrize" and isinstance(decorator, ast.Call):
                columns.append(parametrize(decorator))
            elif not name.startswith("pytest.mark.") or name.endswith((".skip", ".skipif", ".xfail", ".usefixtures")):
                raise line_error(
                    function.lineno, f"'{function.name}' has the decorator {name!r}, which is not run here: remove it"
                )
        count = math.prod(map(len, columns))
        if count > MAX_TESTS:
            raise line_error(function.lineno, f"'{function.name}' has {count} cases: paste at most {MAX_TESTS} tests")
        sets = [[pair for part in parts for pair in part] for parts in product(*columns)]
        given = {name for name, _ in sets[0]} if sets else set()
        positional = function.args.args[1 if receiver else 0 :]
        required = positional[: len(positional) - len(function.args.defaults)]
        missing = next((each.arg for each in required if each.arg not in given), "")
        if missing:
            raise line_error(function.lineno, f"'{function.name}' takes the fixture {missing!r}: {_NO_FIXTURES}")
        defaults = zip(positional[len(required) :], function.args.defaults, strict=True)
        more = [(each.arg, value) for each, value in defaults if each.arg not in given]
        return [[*each, *more] for each in sets]
