"""Code inside of JSON: tool calls, and objects whose value under a key such as "code" is the program."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator

_CODE_KEYS = (
    "code",
    "python",
    "python_code",
    "script",
    "source",
    "source_code",
    "program",
    "solution",
    "answer",
    "input",
)
_NESTED_KEYS = ("arguments", "parameters", "args", "input", "function", "tool_input", "action_input")
_MAX_DEPTH = 4


def code_in_json(text: str) -> str | None:
    """Return the code of a JSON object, or list of objects, that holds code under a known key; else None."""
    text = text.strip()
    if not (text.startswith(("{", "[{")) and text.endswith(("}", "}]"))):
        return None
    return next(_find_code(_parse(text), _MAX_DEPTH), None)


def _parse(text: str) -> object:
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text) if len(text) < 100_000 else None
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _find_code(value: object, depth: int) -> Iterator[str]:
    if isinstance(value, list):
        for item in value[:8]:
            yield from _find_code(item, depth)
    if not isinstance(value, dict) or not depth:
        return
    yield from (value[key] for key in _CODE_KEYS if isinstance(value.get(key), str) and value[key].strip())
    for key in _NESTED_KEYS:
        nested = value.get(key)
        if isinstance(nested, str) and nested.lstrip().startswith("{"):
            nested = _parse(nested)
        yield from _find_code(nested, depth - 1)
