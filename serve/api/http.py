"""Bytes in and out: a body within its limits of size and time, and a response that stalls no longer than it may."""

from __future__ import annotations

import asyncio
import json
import secrets
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from serve.api.errors import ApiError
from serve.api.serving import ClientGoneError

# What a client that sends too much may still send before it is cut off, so that it can read why.
_DRAIN_BYTES = 16_000_000
_DRAIN_SECONDS = 2.0
_CLOSE_HEADERS = {"connection": "close"}


async def read_body(scope: Scope, receive: Receive, max_bytes: int, seconds: float) -> bytes:
    """The JSON text of a request; ApiError 413, 415 or 408, ClientGoneError.

    JSON must be declared as such: a page of another origin cannot do that without asking first, and is then refused.
    """
    headers = Headers(scope=scope)
    kind = headers.get("content-type", "").partition(";")[0].strip().casefold()
    declared = headers.get("content-length", "0")
    if (declared.isdigit() and int(declared) > max_bytes) or headers.get("content-encoding", "identity") != "identity":
        await _drain(receive)
        raise _too_large(max_bytes)
    if kind != "application/json":
        await _drain(receive)
        raise ApiError(
            415, "The body must be JSON: send it with 'Content-Type: application/json'.", headers=_CLOSE_HEADERS
        )
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for piece in _body_chunks(receive):
                body += piece
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


async def _body_chunks(receive: Receive) -> Any:
    """The body as it arrives."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return


async def _drain(receive: Receive) -> None:
    """Reads on for a moment: who is still sending would not see the refusal of a connection that is closed."""
    left = _DRAIN_BYTES
    try:
        async with asyncio.timeout(_DRAIN_SECONDS):
            async for piece in _body_chunks(receive):
                left -= len(piece)
                if left < 0:
                    return
    except TimeoutError:
        return


class ResponseWriter:
    """The response. `started` says whether its status is on its way."""

    def __init__(self, send: Send, write_timeout_s: float) -> None:
        self._send = send
        self._write_timeout_s = write_timeout_s
        self.started = False
        self._request_id = secrets.token_hex(12)

    async def send_json(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        """A whole response of JSON."""
        await self.send(status, json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"), headers=headers)

    async def send(
        self,
        status: int,
        body: bytes,
        content_type: str = "application/json",
        headers: dict[str, str] | None = None,
    ) -> None:
        """A whole response."""
        await self._start(status, content_type, {"content-length": str(len(body)), **(headers or {})})
        await self._write({"type": "http.response.body", "body": body})

    async def send_error(self, error: ApiError) -> None:
        """A refusal, unless a response is on its way already."""
        if not self.started:
            await self.send(error.status, error.encoded(), headers=error.headers)

    async def send_event(self, data: bytes) -> None:
        """A piece of a stream of server-sent events, which the first piece begins."""
        if not self.started:
            # The last header keeps a proxy from collecting the stream before it passes it on.
            await self._start(200, "text/event-stream", {"cache-control": "no-cache", "x-accel-buffering": "no"})
        await self._write({"type": "http.response.body", "body": data, "more_body": True})

    async def end_stream(self) -> None:
        """The end of a stream."""
        await self._write({"type": "http.response.body", "body": b""})

    async def _start(self, status: int, content_type: str, headers: dict[str, str]) -> None:
        self.started = True
        own = {"x-request-id": f"req_{self._request_id}", "x-content-type-options": "nosniff"}
        known = {"content-type": content_type, **own, **headers}
        raw = [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in known.items()]
        await self._write({"type": "http.response.start", "status": status, "headers": raw})

    async def _write(self, message: dict[str, Any]) -> None:
        """Sends; a client that does not read for too long counts as gone."""
        try:
            async with asyncio.timeout(self._write_timeout_s):
                await self._send(message)
        except TimeoutError as error:
            raise ClientGoneError from error
