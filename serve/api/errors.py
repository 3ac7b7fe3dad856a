"""API errors: HTTP status and OpenAI's error object, {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import json
import math
from typing import Any

from annotated_types import Ge, Le
from pydantic import BaseModel, ValidationError

from errors import AdapterError, BusyError, PromptOrTuneError, PromptTooLongError, UnknownNameError

# Tags of the union for the content of a message. pydantic adds them to an error's location; they name no parameter.
CONTENT_TAGS = ("text content", "list content")
_MAX_NAME_LENGTH = 200

# OpenAI clients retry after 408, 409, 429 and 5xx, unless a response has this header.
_NO_RETRY = {"x-should-retry": "false"}


class ApiError(PromptOrTuneError):
    """Error for the client: HTTP status, headers and the fields of OpenAI's error object."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.type, self.param, self.code = status, message, type, param, code
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        """Return OpenAI's error object."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def encoded(self) -> bytes:
        """Return the error object as JSON."""
        return json.dumps(self.body(), ensure_ascii=False).encode("utf-8", "replace")


def invalid_request(message: str, param: str | None = None, code: str | None = "invalid_value") -> ApiError:
    """Return 400 for a wrong value of `param`."""
    return ApiError(400, message, param=param, code=code)


def missing_field(name: str) -> ApiError:
    """Return 400 for a required parameter that is absent or empty."""
    return invalid_request(f"'{name}' is missing or empty: the request needs it.", name, "missing_required_parameter")


def model_not_found(message: str) -> ApiError:
    """Return 404 for a `model` that names no method and no adapter."""
    return ApiError(404, message, param="model", code="model_not_found")


def rate_limited(message: str, seconds: float, code: str) -> ApiError:
    """Return 429 with the seconds to wait in Retry-After."""
    wait = {"retry-after": str(max(1, math.ceil(seconds)))}
    return ApiError(429, message, type="rate_limit_error", code=code, headers=wait)


def not_ready(message: str, code: str) -> ApiError:
    """Return 503: the model is loading or could not be loaded, or the server is shutting down."""
    headers = {"retry-after": "5"} if code == "model_loading" else dict(_NO_RETRY)
    return ApiError(503, message, type="server_error", code=code, headers=headers)


def shutting_down() -> ApiError:
    """Return 503 for an answer that the end of the server cut off."""
    return not_ready("The server is about to end: ask again when it is back.", "shutting_down")


def timed_out(seconds: float) -> ApiError:
    """Return 504 for an answer that took too long; without retry, which would take as long again."""
    message = f"The answer took longer than {seconds:g} s: ask for fewer tokens or answers, or try when it is quieter."
    return ApiError(504, message, type="server_error", code="timeout", headers=dict(_NO_RETRY))


def internal_error() -> ApiError:
    """Return 500 for an unexpected exception, whose details are only in the server's log."""
    return ApiError(
        500,
        "The server met an internal error while answering: its log has the details, your request was not the cause.",
        type="server_error",
        code="internal_error",
        headers=dict(_NO_RETRY),
    )


def to_api_error(error: PromptOrTuneError, param: str | None = None) -> ApiError:
    """Return the HTTP error for an error of the project; `param` is the parameter that it most likely concerns."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, BusyError):
        return rate_limited(str(error), error.seconds, "server_busy")
    if isinstance(error, PromptTooLongError):
        return ApiError(400, str(error), param=param, code="context_length_exceeded")
    if isinstance(error, UnknownNameError):
        return model_not_found(str(error))
    return invalid_request(str(error), "model" if isinstance(error, AdapterError) else param)


def validation_error(model: type[BaseModel], error: ValidationError) -> ApiError:
    """Return 400 for the first wrong parameter of a body that does not fit `model`."""
    details = error.errors(include_url=False)[0]
    kind, value, context = details["type"], details["input"], details.get("ctx", {})
    name = context.get("param") or _parameter_name(details["loc"])
    match kind:
        case "extra_forbidden":
            name = name[:_MAX_NAME_LENGTH]
            message = f"Unknown parameter '{name}': leave it out, or see docs/serving.md for the supported ones."
            return ApiError(400, message, param=name, code="unknown_parameter")
        case "missing" | "too_short" | "string_too_short":
            return missing_field(name)
        case "string_type":
            problem = f"is {_describe_value(value)}: give a text"
        case "string_unicode":
            problem = "holds half a character (a lone surrogate): send valid Unicode"
        case "bool_type":
            problem = f"is {_describe_value(value)}: give true or false"
        case "int_type" | "float_type" | "finite_number" | "greater_than_equal" | "less_than_equal":
            problem = f"is {_describe_value(value)}: give {_describe_range(model, name)}"
        case "list_type":
            problem = f"is {_describe_value(value)}: give a list"
        case "too_long" | "string_too_long":
            unit = "characters" if isinstance(value, str) else "entries"
            problem = f"has {len(value)} {unit}: give at most {context['max_length']}"
        case "model_type":
            problem = f"is {_describe_value(value)}: give an object"
        case "literal_error":
            problem = "must be " + context["expected"].replace("'", "")
        case _:  # a PydanticCustomError of serve.api.protocol, whose type is the error code
            return invalid_request(details["msg"], name or None, kind)
    return invalid_request(f"'{name}' {problem}.", name)


def _parameter_name(location: tuple[int | str, ...]) -> str:
    """Return the parameter for a location in the body: with indices in messages, else the name of the field."""
    if location[:1] != ("messages",):
        return next((part for part in reversed(location) if isinstance(part, str)), "")
    name = ""
    for part in location:
        if isinstance(part, int):
            name += f"[{part}]"
        elif part not in CONTENT_TAGS:
            name += f".{part}" if name else part
    return name


def _describe_range(model: type[BaseModel], name: str) -> str:
    """Describe the numbers that a field takes; the limits of fields for fractions are given as floats."""
    limits = model.model_fields[name].metadata
    low = next(limit.ge for limit in limits if isinstance(limit, Ge))
    high = next(limit.le for limit in limits if isinstance(limit, Le))
    if isinstance(low, float):
        return f"a number from {low:g} to {high:g}"
    return f"a whole number from {low} to {high}"


def _describe_value(value: Any) -> str:
    """Describe a wrong value for a message; only numbers and truth values are repeated."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"{value:g}" if abs(value) < 1e15 else "a huge number"
    return {str: "a text", list: "a list", dict: "an object", type(None): "null"}[type(value)]
