"""Reading a JSON body field by field: what is wrong with one is said in a sentence that names it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from serve.api.errors import ApiError, invalid, unsupported

MAX_NAME = 200


def parse_json(body: bytes) -> dict[str, Any]:
    """The JSON object that `body` holds; ApiError 400 where it holds none."""
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as fault:
        raise _no_json("it is not UTF-8") from fault
    except RecursionError as fault:
        raise _no_json("it is nested too deeply") from fault
    except json.JSONDecodeError as fault:
        raise _no_json(f"{fault.msg} at line {fault.lineno}, column {fault.colno}") from fault
    except ValueError as fault:  # a number of thousands of digits
        raise _no_json("a number in it has too many digits or is no number") from fault
    if not isinstance(value, dict):
        raise _no_json("it must be an object with named fields")
    return value


def _no_json(reason: str) -> ApiError:
    return invalid(f"The body is not valid JSON for this request: {reason}.", code="invalid_json")


def _refuse_constant(name: str) -> float:
    raise ValueError(name)


class Fields:
    """The fields of one body. Each is taken once, null counts as left out, and `finish` refuses what nobody took."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._left = {name: value for name, value in body.items() if value is not None}

    def take(self, name: str) -> Any:
        """The field as it came, or None."""
        return self._left.pop(name, None)

    def has(self, name: str) -> bool:
        """Whether the field is there and not taken yet."""
        return name in self._left

    def integer(self, name: str, low: int, high: int) -> int | None:
        """A whole number from `low` to `high`, or None."""
        value = self.take(name)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise invalid(f"'{name}' is {shown(value)}: give a whole number from {low} to {high}.", name)
        return value

    def number(self, name: str, low: float, high: float) -> float | None:
        """A number from `low` to `high`, or None."""
        value = self.take(name)
        if value is None:
            return None
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (number and low <= value <= high):
            raise invalid(f"'{name}' is {shown(value)}: give a number from {low:g} to {high:g}.", name)
        return float(value)

    def boolean(self, name: str) -> bool:
        """True or false; false where it is left out."""
        value = self.take(name)
        if value is not None and not isinstance(value, bool):
            raise invalid(f"'{name}' is {shown(value)}: give true or false.", name)
        return bool(value)

    def text(self, name: str, most: int | None = None) -> str | None:
        """A text, at most `most` characters long, or None."""
        value = self.take(name)
        return None if value is None else clean_text(value, name, most)

    def required(self, name: str, most: int | None = None) -> str:
        """A text that must be there and not be empty."""
        value = self.text(name, most)
        if not value:
            raise missing(name)
        return value

    def texts(self, name: str, most: int) -> tuple[str, ...]:
        """One text or a list of at most `most`, none of them empty; () where it is left out."""
        value = self.take(name)
        if value is None:
            return ()
        listed = value if isinstance(value, list) else [value]
        if len(listed) > most:
            raise invalid(f"'{name}' has {len(listed)} entries: give at most {most}.", name)
        found = tuple(clean_text(each, name) for each in listed)
        if not all(found):
            raise invalid(f"'{name}' has an empty entry: leave it out.", name)
        return found

    def refuse(self, refused: Mapping[str, str], neutral: Sequence[Any] = (False, 0, "none", "auto", [], {})) -> None:
        """Refuses fields that would change the answer, with their sentence, unless their value changes nothing."""
        for name, sentence in refused.items():
            value = self.take(name)
            if value is not None and value not in neutral:
                raise unsupported(name, sentence)

    def finish(self, harmless: frozenset[str]) -> None:
        """Refuses what is left, but for fields that do not touch the answer."""
        for name in self._left:
            if name not in harmless:
                raise ApiError(
                    400,
                    f"Unknown parameter '{name[:MAX_NAME]}': leave it out, or see docs/serving.md for what is served.",
                    param=name[:MAX_NAME],
                    code="unknown_parameter",
                )


def missing(name: str) -> ApiError:
    """400: a field that must be there is not."""
    return invalid(f"'{name}' is missing or empty: the request needs it.", name, "missing_required_parameter")


def clean_text(value: Any, name: str, most: int | None = None) -> str:
    """The text, if it is one that a model can read; ApiError 400 otherwise."""
    if not isinstance(value, str):
        raise invalid(f"'{name}' is {shown(value)}: give a text.", name)
    if most is not None and len(value) > most:
        raise invalid(f"'{name}' has {len(value)} characters: give at most {most}.", name)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as fault:
        raise invalid(f"'{name}' holds half a character (a lone surrogate): send valid Unicode.", name) from fault
    return value


def shown(value: Any) -> str:
    """What kind of value came, for a sentence; only numbers and truth values are repeated."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"{value:g}" if abs(value) < 1e15 else "a huge number"
    return {str: "a text", list: "a list", dict: "an object", type(None): "null"}[type(value)]
