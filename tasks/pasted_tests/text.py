"""Lines of pasted tests: Python sources with their line numbers, and the errors that name a line."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, TypeVar, overload

from common.parsing import parse_python
from errors import DataError

FORMAT_HINT = "write lines like 'assert f(2) == 4', '>>> f(2)' with the answer below, or 'input:' and 'output:' blocks"
_JSON_WORDS = {"null": None, "true": True, "false": False, "undefined": None}
_TRIPLE_QUOTE = re.compile(r'"""|' + "'''")
# Nodes of syntax trees, looked at once each time, and characters that are parsed. 20,000 characters of plain asserts
# take a fifth of it.
MAX_WORK = 1_200_000
_work: ContextVar[list[int] | None] = ContextVar("work", default=None)
_Node = TypeVar("_Node", bound=ast.AST)


@contextmanager
def limited_work() -> Iterator[None]:
    """Let the functions of this package look at MAX_WORK nodes and characters inside of the block.

    Loops and parameters can make a short text long: beyond the limit they raise DataError.
    """
    token = _work.set([0])
    try:
        yield
    finally:
        _work.reset(token)


def count_work(amount: int) -> None:
    """Add to the work of the block of `limited_work`; raises DataError beyond its limit."""
    work = _work.get()
    if work is not None:
        work[0] += amount
        if work[0] > MAX_WORK:
            raise DataError("These tests take too long to read: paste fewer lines, loops or cases at once.")


def parse_counted(source: str, mode: Literal["exec", "eval"] = "exec") -> Any:
    """Parse as `parse_python` does, within the limit of work."""
    count_work(len(source) + 50)
    return parse_python(source, mode)


def walk(node: ast.AST) -> list[ast.AST]:
    """Return the nodes of `ast.walk`, within the limit of work."""
    found = list(ast.walk(node))
    count_work(len(found))
    return found


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
        tree: ast.AST = parse_counted(source, mode)
        return tree
    except SyntaxError as error:
        quoted = f" ('{truncate(error.text)}')" if error.text and error.text.strip() else ""
        number = line + (error.lineno or 1) - 1
        reason = error.msg.partition(": ")[0]  # what follows is advice to programmers, on long numbers
        raise line_error(number, f"this is not Python, {reason}{quoted}: {FORMAT_HINT}") from None
    except (ValueError, MemoryError, RecursionError):
        raise line_error(line, f"this cannot be read as Python: {FORMAT_HINT}") from None


def parse_expression(source: str) -> ast.expr | None:
    """Return the expression that `source` is, or None if it is none."""
    try:
        body: ast.expr = parse_counted(source.strip(), "eval").body
        return body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


def is_python(source: str) -> bool:
    """Return whether the text is Python."""
    try:
        parse_counted(source)
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


def copy_tree(node: _Node) -> _Node:
    """Return a deep copy of the node, within the limit of work."""
    count_work(4)
    copied = type(node).__new__(type(node))
    for name, value in vars(node).items():
        setattr(copied, name, _copy_field(value))
    return copied


def _copy_field(value: Any) -> Any:
    if isinstance(value, ast.AST):
        return copy_tree(value)
    return [_copy_field(each) for each in value] if isinstance(value, list) else value


def substitute(node: ast.expr, values: Mapping[str, ast.expr]) -> ast.expr:
    """Return a copy of the expression in which the named variables are replaced."""
    found: ast.expr = _Substitution(values).visit(copy_tree(node))
    return ast.fix_missing_locations(found)


def substitute_statement(node: ast.stmt, values: Mapping[str, ast.expr]) -> ast.stmt:
    """Return a copy of the statement in which the named variables are replaced."""
    found: ast.stmt = _Substitution(values).visit(copy_tree(node))
    return ast.fix_missing_locations(found)


class _Substitution(ast.NodeTransformer):
    def __init__(self, values: Mapping[str, ast.expr]) -> None:
        self._values = values

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if isinstance(node.ctx, ast.Load) and node.id in self._values:
            return ast.copy_location(copy_tree(self._values[node.id]), node)
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
    return {each.id for each in walk(node) if isinstance(each, ast.Name) and isinstance(each.ctx, context)}
