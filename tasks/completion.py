"""Programs from answers to prompts that are the beginning of a program, as HumanEval's signature with a docstring.

An answer may be a whole program, which repeats the signature, or only the body of the function. An extracted body may
have lost the indentation of its first line, or of all lines.
"""

from __future__ import annotations

import ast
import textwrap

from common.parsing import parse_python

_INDENT = "    "
_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def complete_program(code: str, prompt: str, function: str | None) -> str:
    """Return the program that the answer `code` stands for; `code` itself without a prompt.

    A program that defines anything gets what the prompt has beside `function` (imports, helpers) before it. Other code
    is the function's body and follows the prompt. Code that is neither is returned as it is.
    """
    if not prompt or function is None:
        return code
    tree = _parse(code)
    if tree is not None and any(isinstance(node, _Definition) for node in tree.body):
        return _beside(prompt, function, tree) + code
    given = _body_length(_parse(prompt), function)
    for body in (code, _INDENT + code.lstrip(), textwrap.indent(code, _INDENT)):
        program = f"{prompt.rstrip()}\n{body}"
        if _body_length(_parse(program), function) > given:
            return program
    return code


def _beside(prompt: str, function: str, tree: ast.Module) -> str:
    """Return the statements of the prompt without the function; '' where the program must begin with its own lines."""
    if any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body):
        return ""
    parsed = _parse(prompt)
    nodes = [] if parsed is None else [node for node in parsed.body if getattr(node, "name", "") != function]
    return "".join(f"{ast.unparse(node)}\n" for node in nodes)


def _body_length(tree: ast.Module | None, function: str) -> int:
    """Return the number of statements in the last definition of the function; 0 if there is none."""
    found = [node for node in (tree.body if tree else ()) if isinstance(node, _Definition) and node.name == function]
    return len(found[-1].body) if found else 0


def _parse(code: str) -> ast.Module | None:
    try:
        return parse_python(code)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None
