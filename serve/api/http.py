"""HTTP bodies: reads requests within limits of size and time, and sends responses with a write timeout."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from serve.api.errors import ApiError, invalid_request
from serve.api.serving import ClientGoneError

# Limits on what is read of a body that is refused, before the connection is closed.
_DRAIN_BYTES = 16_000_000
_DRAIN_SECONDS = 2.0
_CLOSE_HEADERS = {"connection": "close"}


async def read_body(scope: Scope, receive: Receive, max_bytes: int, seconds: float) -> bytes:
    """Return the body of a request; raises ApiError 413, 415 or 408, or ClientGoneError.

    The content type must be JSON. A web page of another origin can send this type only after a preflight request,
    which is refused; so a page cannot use the API in the name of a person who visits it.
    """
    headers = Headers(scope=scope)
    content_type = headers.get("content-type", "").partition(";")[0].strip().casefold()
    declared = headers.get("content-length", "0")
    if (declared.isdigit() and int(declared) > max_bytes) or headers.get("content-encoding", "identity") != "identity":
        await _drain(receive)
        raise _too_large(max_bytes)
    if content_type != "application/json":
        await _drain(receive)
        raise ApiError(
            415, "The body must be JSON: send it with 'Content-Type: application/json'.", headers=_CLOSE_HEADERS
        )
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in _body_chunks(receive):
                body += chunk
                if len(body) > max_bytes:
                    await _drain(receive)
                    raise _too_large(max_bytes)
    except TimeoutError as error:
        message = f"The body did not arrive within {seconds:g} s: send it at once."
        raise ApiError(408, message, code="timeout", headers=_CLOSE_HEADERS) from error
    return bytes(body)


def _too_large(max_bytes: int) -> ApiError:
    message = f"The body is larger than {max_bytes} bytes, or compressed: send less, as plain JSON."
    return ApiError(413, message, code="request_too_large", headers=_CLOSE_HEADERS)


async def _body_chunks(receive: Receive) -> AsyncIterator[bytes]:
    """Yield the body as it arrives; raises ClientGoneError."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return


async def _drain(receive: Receive) -> None:
    """Read on for a moment: a client that is still sending reads no response from a connection that is closed."""
    remaining = _DRAIN_BYTES
    try:
        async with asyncio.timeout(_DRAIN_SECONDS):
            async for chunk in _body_chunks(receive):
                remaining -= len(chunk)
                if remaining < 0:
                    return
    except TimeoutError:
        return


def parse_body(body: bytes) -> dict[str, Any]:
    """Return the JSON object in `body`; raises ApiError 400 if it is not one."""
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise _invalid_json("it is not UTF-8") from error
    except RecursionError as error:
        raise _invalid_json("it is nested too deeply") from error
    except json.JSONDecodeError as error:
        raise _invalid_json(f"{error.msg} at line {error.lineno}, column {error.colno}") from error
    except ValueError as error:  # a number of thousands of digits
        raise _invalid_json("a number in it has too many digits or is no number") from error
    if not isinstance(value, dict):
        raise _invalid_json("it must be an object with named fields")
    return value


def _invalid_json(reason: str) -> ApiError:
    return invalid_request(f"The body is not valid JSON for this request: {reason}.", code="invalid_json")


def _refuse_constant(name: str) -> float:
    raise ValueError(name)


class ApiResponse(JSONResponse):
    """A JSON response. Lone surrogates, which a model may generate, are replaced instead of failing."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, ensure_ascii=False).encode("utf-8", "replace")


class ErrorResponse(ApiResponse):
    """OpenAI's error object with its status and headers."""

    def __init__(self, error: ApiError) -> None:
        super().__init__(error.body(), error.status, error.headers)


class EventStreamResponse(StreamingResponse):
    """A stream of server-sent events: `first`, then those of a generator, which is closed however the response ends.

    Unlike its base class it does not watch for the client's disconnect: InFlightRequests does, and ends the generator.
    """

    def __init__(self, first: bytes, events: AsyncGenerator[bytes]) -> None:
        # x-accel-buffering keeps a proxy from collecting the events before it forwards them.
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(_prepend(first, events), headers=headers, media_type="text/event-stream")
        self._events = events
        # Without the charset that Starlette would append.
        self.headers["content-type"] = "text/event-stream"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        try:
            await self.stream_response(send)
        finally:
            await self._events.aclose()


async def _prepend(first: bytes, events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for event in events:
        yield event


class ResponseSender:
    """The `send` of one response: adds the common headers and `headers`; a client that does not read counts as gone.

    `started` tells whether the status has been sent. Raises ClientGoneError if one message takes longer than
    `write_timeout_s`.
    """

    def __init__(self, send: Send, write_timeout_s: float, headers: Mapping[str, str]) -> None:
        self._send = send
        self._headers = headers
        self._write_timeout_s = write_timeout_s
        self._request_id = secrets.token_hex(12)
        self.started = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = f"req_{self._request_id}"
            headers["x-content-type-options"] = "nosniff"
            headers.update(self._headers)
        try:
            async with asyncio.timeout(self._write_timeout_s):
                await self._send(message)
        except TimeoutError as error:
            raise ClientGoneError from error
