"""Parsing of JSON with the place of an error, and the types of its values in words."""

from __future__ import annotations

import json
from typing import Any

from errors import DataError


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
