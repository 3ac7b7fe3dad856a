"""What goes wrong, as an HTTP status and OpenAI's error object: {"error": {message, type, param, code}}."""

from __future__ import annotations

import json
import math
from typing import Any

from errors import AdapterError, BusyError, PromptOrTuneError, PromptTooLongError, UnknownNameError

# Clients of OpenAI ask again by themselves after 408, 409, 429 and 5xx, unless this header says no.
_NO_RETRY = {"x-should-retry": "false"}


class ApiError(PromptOrTuneError):
    """A refusal that a client reads: an error with its HTTP status and the fields of OpenAI's error object."""

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
        """OpenAI's error object."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def encoded(self) -> bytes:
        """The error object as JSON."""
        return json.dumps(self.body(), ensure_ascii=False).encode("utf-8", "replace")


def invalid_request(message: str, param: str | None = None, code: str | None = "invalid_value") -> ApiError:
    """400: the request itself is wrong, in the parameter `param`."""
    return ApiError(400, message, param=param, code=code)


def unsupported_parameter(name: str, message: str) -> ApiError:
    """400: a parameter that would change the answer and is not served."""
    return ApiError(400, message, param=name, code="unsupported_parameter")


def model_not_found(message: str) -> ApiError:
    """404: `model` names no method and no adapter that is served."""
    return ApiError(404, message, param="model", code="model_not_found")


def rate_limited(message: str, seconds: float, code: str) -> ApiError:
    """429 with how long to wait."""
    wait = {"retry-after": str(max(1, math.ceil(seconds)))}
    return ApiError(429, message, type="rate_limit_error", code=code, headers=wait)


def not_ready(message: str, code: str) -> ApiError:
    """503: the model is loading, has failed to load, or the server is about to end."""
    headers = {"retry-after": "5"} if code == "model_loading" else dict(_NO_RETRY)
    return ApiError(503, message, type="server_error", code=code, headers=headers)


def shutting_down() -> ApiError:
    """503: the server ends before the answer does."""
    return not_ready("The server is about to end: ask again when it is back.", "shutting_down")


def timed_out(seconds: float) -> ApiError:
    """504: the answer took longer than the server allows; asking again would take as long."""
    message = f"The answer took longer than {seconds:g} s: ask for fewer tokens or answers, or try when it is quieter."
    return ApiError(504, message, type="server_error", code="timeout", headers=dict(_NO_RETRY))


def internal_error() -> ApiError:
    """500: a defect of ours; what it was stands in the server's log and not in the answer."""
    return ApiError(
        500,
        "The server met an internal error while answering: its log says which, your request was not at fault.",
        type="server_error",
        code="internal_error",
        headers=dict(_NO_RETRY),
    )


def to_api_error(error: PromptOrTuneError, param: str | None = None) -> ApiError:
    """The refusal for an error whose sentence is meant for a person."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, BusyError):
        return rate_limited(str(error), error.seconds, "server_busy")
    if isinstance(error, PromptTooLongError):
        return ApiError(400, str(error), param=param, code="context_length_exceeded")
    if isinstance(error, UnknownNameError):
        return model_not_found(str(error))
    return invalid_request(str(error), "model" if isinstance(error, AdapterError) else param)
