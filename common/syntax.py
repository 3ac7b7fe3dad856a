"""Python syntax: thread-safe ast.parse, and names joined by dots."""

from __future__ import annotations

import ast
import warnings
from threading import Lock
from typing import Literal, overload

# CPython 3.11 counts the recursion of its AST constructor for the whole process: two threads that parse at once can end
# in "SystemError: AST constructor recursion depth mismatch". warnings.catch_warnings changes global state as well.
_lock = Lock()


@overload
def parse_python(source: str, mode: Literal["exec"] = "exec") -> ast.Module: ...
@overload
def parse_python(source: str, mode: Literal["eval"]) -> ast.Expression: ...
def parse_python(source: str, mode: Literal["exec", "eval"] = "exec") -> ast.AST:
    """Parse `source` without its syntax warnings.

    Raises SyntaxError, ValueError (NUL bytes, lone surrogates), or MemoryError or RecursionError for deep nesting.
    """
    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(source, mode=mode)


def dotted_name(node: ast.expr) -> str:
    """Return 'math.isclose' for that expression; '' for anything but names joined by dots."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        owner = dotted_name(node.value)
        return f"{owner}.{node.attr}" if owner else ""
    return ""
