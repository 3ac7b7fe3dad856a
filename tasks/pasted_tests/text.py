"""Lines of pasted tests: Python sources with their line numbers, and the errors that name a line."""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Mapping
from typing import Literal, overload

from common.syntax import parse_python
from errors import DataError

FORMAT_HINT = "write lines like 'assert f(2) == 4', '>>> f(2)' with the answer below, or 'input:' and 'output:' blocks"
_JSON_WORDS = {"null": None, "true": True, "false": False, "undefined": None}
_TRIPLE_QUOTE = re.compile(r'"""|' + "'''")


def line_error(line: int, message: str) -> DataError:
    """Return the error about one line of the pasted text; `message` ends without a full stop."""
    return DataError(f"Line {line}: {message}.")


def truncate(text: str) -> str:
    """Return `text` as one line of at most 60 characters."""
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:59]}…"


@overload
def parse_source(source: str, line: int, mode: Literal["exec"] = "exec") -> ast.Module: ...
@overload
def parse_source(source: str, line: int, mode: Literal["eval"]) -> ast.Expression: ...
def parse_source(source: str, line: int, mode: Literal["exec", "eval"] = "exec") -> ast.AST:
    """Parse `source`, whose first line is line `line` of the pasted text; raises DataError if it is not Python."""
    try:
        return parse_python(source, mode)
    except SyntaxError as error:
        quoted = f" ('{truncate(error.text)}')" if error.text and error.text.strip() else ""
        number = line + (error.lineno or 1) - 1
        raise line_error(number, f"this is not Python, {error.msg}{quoted}: {FORMAT_HINT}") from None
    except (ValueError, MemoryError, RecursionError):
        raise line_error(line, f"this cannot be read as Python: {FORMAT_HINT}") from None


def parse_expression(source: str) -> ast.expr | None:
    """Return the expression that `source` is, or None if it is none."""
    try:
        return parse_python(source.strip(), "eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


def is_python(source: str) -> bool:
    """Return whether the text is Python."""
    try:
        parse_python(source)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    return True


def is_literal(node: ast.expr) -> bool:
    """Return whether the expression is a literal of Python."""
    try:
        ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return False
    return True


def parse_value(text: str) -> ast.expr | None:
    """Return the literal of Python or JSON (null, true, false) that `text` is; None if it is none."""
    node = parse_expression(text)
    if node is None:
        return None
    words: dict[str, ast.expr] = {name: ast.Constant(value) for name, value in _JSON_WORDS.items()}
    node = substitute(node, words)
    return node if is_literal(node) else None


def substitute(node: ast.expr, values: Mapping[str, ast.expr]) -> ast.expr:
    """Return a copy of the expression in which the named variables are replaced."""
    found: ast.expr = _Substitution(values).visit(copy.deepcopy(node))
    return ast.fix_missing_locations(found)


def substitute_statement(node: ast.stmt, values: Mapping[str, ast.expr]) -> ast.stmt:
    """Return a copy of the statement in which the named variables are replaced."""
    found: ast.stmt = _Substitution(values).visit(copy.deepcopy(node))
    return ast.fix_missing_locations(found)


class _Substitution(ast.NodeTransformer):
    def __init__(self, values: Mapping[str, ast.expr]) -> None:
        self._values = values

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if isinstance(node.ctx, ast.Load) and node.id in self._values:
            return ast.copy_location(copy.deepcopy(self._values[node.id]), node)
        return node


def string_lines(lines: list[str]) -> list[bool]:
    """Return for each line whether it begins inside of a triple-quoted string."""
    inside, quote = [], ""
    for line in lines:
        inside.append(bool(quote))
        for match in _TRIPLE_QUOTE.findall(line.partition("#")[0] if not quote else line):
            quote = "" if match == quote else (quote or match)
    return inside


def names(node: ast.AST, context: type[ast.expr_context]) -> set[str]:
    """Return the names that are loaded or stored anywhere in `node`."""
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name) and isinstance(each.ctx, context)}
