"""Server-sent events, out of bytes as they come: bounded, and anything else is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from errors import PromptOrTuneError

MAX_LINE_BYTES = 1 << 20
_DONE = "[DONE]"


class SSEDecoder:
    """The JSON objects of one stream. `done` is set by OpenAI's end mark; nothing after it is read."""

    def __init__(self, host: str, max_bytes: int, sanitize: Callable[[str], str] = repr) -> None:
        self.done = False
        self._host = host
        self._sanitize = sanitize
        self._bytes_left = max_bytes
        self._buffer = bytearray()
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> Iterator[dict[str, Any]]:
        """The events that `chunk` completes; PromptOrTuneError for what is no such stream, or too much of it."""
        self._bytes_left -= len(chunk)
        self._buffer += chunk
        if self._bytes_left < 0 or len(self._buffer) - (self._buffer.rfind(b"\n") + 1) > MAX_LINE_BYTES:
            raise PromptOrTuneError(f"The server at {self._host} sent far more than was asked for: it was cut off.")
        *lines, rest = bytes(self._buffer).split(b"\n")
        self._buffer = bytearray(rest)
        for line in lines:
            yield from self._decode_line(line)

    def _decode_line(self, raw: bytes) -> list[dict[str, Any]]:
        line = raw.decode("utf-8", "replace").removesuffix("\r")
        if self.done or line.startswith(":"):  # a comment keeps a silent connection open
            return []
        if line:
            name, _, value = line.partition(":")
            if name == "data":
                self._data.append(value.removeprefix(" "))
            elif name not in ("event", "id", "retry"):
                raise self._invalid_stream_error(line)
            return []
        data, self._data = "\n".join(self._data), []
        if data.strip() == _DONE:
            self.done = True
        return [] if self.done or not data.strip() else [self._parse_object(data)]

    def _parse_object(self, data: str) -> dict[str, Any]:
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            raise self._invalid_stream_error(data) from None
        if not isinstance(value, dict):
            raise self._invalid_stream_error(data)
        return value

    def _invalid_stream_error(self, text: str) -> PromptOrTuneError:
        sent = self._sanitize(text[:80])
        return PromptOrTuneError(
            f"The server at {self._host} does not speak OpenAI's stream (it sent {sent}): check --url."
        )
