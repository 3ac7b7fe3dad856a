"""Tests made of `assert` statements: which function of the reference they call."""

from __future__ import annotations

import ast
from collections.abc import Iterable


def find_entry_point(code: str, tests: Iterable[str]) -> str | None:
    """The function or class at the top of `code` that the tests call first, or None when they call none of it."""
    try:
        defined = {
            node.name
            for node in ast.parse(code).body
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        }
        trees = [ast.parse(test.strip()) for test in tests]
    except (SyntaxError, ValueError):  # ValueError: a null byte, on Python before 3.12
        return None
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in defined:
                return node.func.id
    return None
