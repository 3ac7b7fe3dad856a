"""Parsing of Python and JSON: thread-safe ast.parse, names joined by dots, and errors that name their location."""

from __future__ import annotations

import ast
import json
import warnings
from threading import Lock
from typing import Any, Literal, overload

from errors import DataError

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


def parse_json(text: str, location: str, **options: Any) -> Any:
    """Parse JSON; raises DataError with `location`. `options` are passed to json.loads."""
    try:
        return json.loads(text, **options)
    except json.JSONDecodeError as error:
        raise DataError(f"{location}: not JSON ({error.msg} at character {error.pos + 1}).") from error
    except (ValueError, RecursionError) as error:  # a number too long for Python, or deep nesting
        raise DataError(f"{location}: not JSON that Python can read ({error}).") from error


def json_type(value: object) -> str:
    """Return the type of a JSON value in words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    names: dict[type, str] = {str: "text", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)
