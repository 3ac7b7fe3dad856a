"""Reading a JSON body field by field: what is wrong with one is said in a sentence that names it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from serve.api.errors import ApiError, invalid_request, unsupported_parameter

MAX_NAME_LENGTH = 200


def parse_json(body: bytes) -> dict[str, Any]:
    """The JSON object that `body` holds; ApiError 400 where it holds none."""
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as fault:
        raise _invalid_json("it is not UTF-8") from fault
    except RecursionError as fault:
        raise _invalid_json("it is nested too deeply") from fault
    except json.JSONDecodeError as fault:
        raise _invalid_json(f"{fault.msg} at line {fault.lineno}, column {fault.colno}") from fault
    except ValueError as fault:  # a number of thousands of digits
        raise _invalid_json("a number in it has too many digits or is no number") from fault
    if not isinstance(value, dict):
        raise _invalid_json("it must be an object with named fields")
    return value


def _invalid_json(reason: str) -> ApiError:
    return invalid_request(f"The body is not valid JSON for this request: {reason}.", code="invalid_json")


def _refuse_constant(name: str) -> float:
    raise ValueError(name)


class Fields:
    """The fields of one body. Each is taken once, null counts as left out, and `finish` refuses what nobody took."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._remaining = {name: value for name, value in body.items() if value is not None}

    def pop(self, name: str) -> Any:
        """The field as it came, or None."""
        return self._remaining.pop(name, None)

    def has(self, name: str) -> bool:
        """Whether the field is there and not taken yet."""
        return name in self._remaining

    def integer(self, name: str, low: int, high: int) -> int | None:
        """A whole number from `low` to `high`, or None."""
        value = self.pop(name)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise invalid_request(
                f"'{name}' is {describe_value(value)}: give a whole number from {low} to {high}.", name
            )
        return value

    def number(self, name: str, low: float, high: float) -> float | None:
        """A number from `low` to `high`, or None."""
        value = self.pop(name)
        if value is None:
            return None
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (number and low <= value <= high):
            raise invalid_request(f"'{name}' is {describe_value(value)}: give a number from {low:g} to {high:g}.", name)
        return float(value)

    def boolean(self, name: str) -> bool:
        """True or false; false where it is left out."""
        value = self.pop(name)
        if value is not None and not isinstance(value, bool):
            raise invalid_request(f"'{name}' is {describe_value(value)}: give true or false.", name)
        return bool(value)

    def text(self, name: str, max_length: int | None = None) -> str | None:
        """A text, at most `most` characters long, or None."""
        value = self.pop(name)
        return None if value is None else check_text(value, name, max_length)

    def required(self, name: str, max_length: int | None = None) -> str:
        """A text that must be there and not be empty."""
        value = self.text(name, max_length)
        if not value:
            raise missing_field(name)
        return value

    def texts(self, name: str, max_items: int) -> tuple[str, ...]:
        """One text or a list of at most `most`, none of them empty; () where it is left out."""
        value = self.pop(name)
        if value is None:
            return ()
        listed = value if isinstance(value, list) else [value]
        if len(listed) > max_items:
            raise invalid_request(f"'{name}' has {len(listed)} entries: give at most {max_items}.", name)
        found = tuple(check_text(each, name) for each in listed)
        if not all(found):
            raise invalid_request(f"'{name}' has an empty entry: leave it out.", name)
        return found

    def reject_unsupported(
        self, messages: Mapping[str, str], neutral: Sequence[Any] = (False, 0, "none", "auto", [], {})
    ) -> None:
        """Refuses fields that would change the answer, with their sentence, unless their value changes nothing."""
        for name, sentence in messages.items():
            value = self.pop(name)
            if value is not None and value not in neutral:
                raise unsupported_parameter(name, sentence)

    def reject_unknown(self, ignored: frozenset[str]) -> None:
        """Refuses what is left, but for fields that do not touch the answer."""
        for name in self._remaining:
            if name not in ignored:
                raise ApiError(
                    400,
                    f"Unknown parameter '{name[:MAX_NAME_LENGTH]}': leave it out, or see docs/serving.md for what is served.",
                    param=name[:MAX_NAME_LENGTH],
                    code="unknown_parameter",
                )


def missing_field(name: str) -> ApiError:
    """400: a field that must be there is not."""
    return invalid_request(f"'{name}' is missing or empty: the request needs it.", name, "missing_required_parameter")


def check_text(value: Any, name: str, max_length: int | None = None) -> str:
    """The text, if it is one that a model can read; ApiError 400 otherwise."""
    if not isinstance(value, str):
        raise invalid_request(f"'{name}' is {describe_value(value)}: give a text.", name)
    if max_length is not None and len(value) > max_length:
        raise invalid_request(f"'{name}' has {len(value)} characters: give at most {max_length}.", name)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as fault:
        raise invalid_request(
            f"'{name}' holds half a character (a lone surrogate): send valid Unicode.", name
        ) from fault
    return value


def describe_value(value: Any) -> str:
    """What kind of value came, for a sentence; only numbers and truth values are repeated."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"{value:g}" if abs(value) < 1e15 else "a huge number"
    return {str: "a text", list: "a list", dict: "an object", type(None): "null"}[type(value)]
