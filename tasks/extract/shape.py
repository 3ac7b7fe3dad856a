"""What kind of code a block has: a program, imports only, a signature, a literal, and the names that it defines."""

from __future__ import annotations

import ast
import re
from enum import Enum, auto
from typing import NamedTuple

from tasks.extract.syntax import is_valid_python, syntax_tree


class Shape(Enum):
    """The kinds of code; all but INVALID, INSTALL and SIGNATURE are valid Python."""

    EMPTY = auto()  # nothing, or comments only
    INSTALL = auto()  # commands of a shell
    IMPORTS = auto()
    SIGNATURE = auto()  # the first line of a function or class
    STUB = auto()  # functions and classes without a body
    LITERAL = auto()  # constants, as a program prints them
    EXPRESSION = auto()  # names, attributes and operators, without a call
    PROGRAM = auto()
    INVALID = auto()


ANSWERS = (Shape.PROGRAM, Shape.EXPRESSION, Shape.LITERAL, Shape.INVALID)


class CodeInfo(NamedTuple):
    """The shape of code, the names that its top level defines, and all names that it reads."""

    shape: Shape
    defined: frozenset[str] = frozenset()
    used: frozenset[str] = frozenset()


_COMMAND = re.compile(
    r"[ \t]*[$!%]?[ \t]*(?:pip3?|conda|mamba|poetry|uv|apt|apt-get|brew|npm|git|cd|mkdir|sudo"
    r"|python3?[ \t]+(?:-m|\S+\.py))\b(?![ \t]*[=.(\[])"
)


def describe(code: str) -> CodeInfo:
    """Return the shape and the names of `code`. Never raises."""
    lines = [line for line in code.split("\n") if line.strip()]
    if not lines:
        return CodeInfo(Shape.EMPTY)
    tree = syntax_tree(code)
    if tree is None:
        if all(_COMMAND.match(line) or line.lstrip().startswith("#") for line in lines):
            return CodeInfo(Shape.INSTALL)
        if lines and lines[-1].rstrip().endswith(":") and _is_signature(code):
            return CodeInfo(Shape.SIGNATURE, _defined(syntax_tree(code.rstrip() + " pass")))
        return CodeInfo(Shape.INVALID, frozenset(re.findall(r"(?m)^(?:async def|def|class)[ \t]+(\w+)", code)))
    used = frozenset(
        node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    )
    return CodeInfo(_shape(tree), _defined(tree), used)


def _shape(tree: ast.Module) -> Shape:
    body = [node for node in tree.body if not _is_docstring(node)]
    if not body:
        return Shape.LITERAL if tree.body else Shape.EMPTY
    if all(isinstance(node, ast.Import | ast.ImportFrom) for node in body):
        return Shape.IMPORTS
    definitions = [node for node in body if not isinstance(node, ast.Import | ast.ImportFrom)]
    if all(_is_stub(node) for node in definitions):
        return Shape.STUB
    if all(isinstance(node, ast.Expr) for node in body):
        nodes = [inner for node in body for inner in ast.walk(node)]
        if not any(isinstance(node, _ACTIVE) for node in nodes):
            names = any(isinstance(node, ast.Name) for node in nodes)
            return Shape.EXPRESSION if names else Shape.LITERAL
    return Shape.PROGRAM


_ACTIVE = (
    *(ast.Call, ast.Subscript, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp),
    *(ast.Await, ast.Yield, ast.YieldFrom, ast.NamedExpr, ast.JoinedStr, ast.IfExp),
)


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _is_stub(node: ast.stmt) -> bool:
    """Whether a function has no body: `pass`, `...`, or raising NotImplementedError."""
    if isinstance(node, ast.ClassDef):
        return all(_is_docstring(inner) or _is_nothing(inner) or _is_stub(inner) for inner in node.body)
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return False
    return all(_is_docstring(inner) or _is_nothing(inner) for inner in node.body)


def _is_nothing(node: ast.stmt) -> bool:
    if isinstance(node, ast.Raise):
        return "NotImplementedError" in ast.dump(node)
    is_ellipsis = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and node.value.value is ...
    return is_ellipsis or isinstance(node, ast.Pass)


def _is_signature(code: str) -> bool:
    source = code.rstrip()
    last = source.rpartition("\n")[2]
    tree = syntax_tree(source + " pass") if is_valid_python(source + " pass") else None
    return (
        tree is not None
        and not last[:1].isspace()
        and isinstance(tree.body[-1], ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    )


def _defined(tree: ast.Module | None) -> frozenset[str]:
    names: set[str] = set()
    for node in tree.body if tree else ():
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names.update(inner.id for target in targets for inner in ast.walk(target) if isinstance(inner, ast.Name))
    return frozenset(names)
