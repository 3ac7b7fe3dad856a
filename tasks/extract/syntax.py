"""Python's strings as patterns, and syntax checks of generated code that raise for no text."""

from __future__ import annotations

import ast
import re

from common.parsing import parse_python

# A string on one line, from its quote on. An apostrophe behind a letter ("don't") begins no string, a prefix may.
SHORT_STRING = (
    r"(?:(?<![\w\\])|(?<=\b[rRbBfFuU])|(?<=\b[rRbBfF]{2}))(?!\"{3}|'{3})"
    r"(?:'(?:[^'\\\n]|\\.)*+'|\"(?:[^\"\\\n]|\\.)*+\")"
)
# What follows the quotes that open a string over several lines, up to those that close it.
REST_OF_LONG_STRING = {
    '"""': re.compile(r'(?:[^"\\]|\\.|"(?!""))*+"""', re.DOTALL),
    "'''": re.compile(r"(?:[^'\\]|\\.|'(?!''))*+'''", re.DOTALL),
}
STRING = rf"(?s:{'|'.join(opening + rest.pattern for opening, rest in REST_OF_LONG_STRING.items())})|{SHORT_STRING}"


def is_valid_python(code: str) -> bool:
    """Whether `code` is syntactically valid and has at least one statement. Never raises."""
    tree = syntax_tree(code)
    return tree is not None and bool(tree.body)


def syntax_tree(code: str) -> ast.Module | None:
    """Parse `code` after stripping it; None where it is not valid. Never raises.

    CPython raises MemoryError or RecursionError for deep nesting, SyntaxError or ValueError for NUL bytes, and
    UnicodeEncodeError, a ValueError, for lone surrogates.
    """
    try:
        return parse_python(code.strip())
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None
