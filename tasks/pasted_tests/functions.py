"""Syntax of test functions: how they are written, called and parametrized."""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass
from importlib.util import find_spec

from common.parsing import dotted_name
from tasks.pasted_tests.binding import Bindings
from tasks.pasted_tests.text import line_error, truncate, walk

CHECK = "check"  # HumanEval's function, which gets the candidate's


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
