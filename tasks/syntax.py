"""Whether an answer is Python at all.

Definition: the text is a non-empty program by `ast.parse` of the Python that runs this. Comments alone are empty.
"""

from __future__ import annotations

import ast
import warnings


def is_valid_python(code: str) -> bool:
    """Whether `code` is syntactically right and holds at least one statement. Never raises."""
    tree = syntax_tree(code)
    return tree is not None and bool(tree.body)


def syntax_tree(code: str) -> ast.Module | None:
    """The syntax tree of `code` after stripping it, or None where there is none. Never raises.

    CPython refuses nesting that it cannot hold with MemoryError or RecursionError, NUL bytes with SyntaxError or
    ValueError and lone surrogates with UnicodeEncodeError, a ValueError.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(code.strip())
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None
