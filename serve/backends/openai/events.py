"""Server-sent events, out of bytes as they come: bounded, and anything else is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from errors import PeftArenaError

MAX_LINE = 1 << 20
_DONE = "[DONE]"


class Events:
    """The JSON objects of one stream. `done` is set by OpenAI's end mark; nothing after it is read."""

    def __init__(self, host: str, max_bytes: int, clean: Callable[[str], str] = repr) -> None:
        self.done = False
        self._host = host
        self._clean = clean
        self._left = max_bytes
        self._open = bytearray()
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> Iterator[dict[str, Any]]:
        """The events that `chunk` completes; PeftArenaError for what is no such stream, or too much of it."""
        self._left -= len(chunk)
        self._open += chunk
        if self._left < 0 or len(self._open) - (self._open.rfind(b"\n") + 1) > MAX_LINE:
            raise PeftArenaError(f"The server at {self._host} sent far more than was asked for: it was cut off.")
        *lines, rest = bytes(self._open).split(b"\n")
        self._open = bytearray(rest)
        for line in lines:
            yield from self._line(line)

    def _line(self, raw: bytes) -> list[dict[str, Any]]:
        line = raw.decode("utf-8", "replace").removesuffix("\r")
        if self.done or line.startswith(":"):  # a comment keeps a silent connection open
            return []
        if line:
            name, _, value = line.partition(":")
            if name == "data":
                self._data.append(value.removeprefix(" "))
            elif name not in ("event", "id", "retry"):
                raise self._garbage(line)
            return []
        data, self._data = "\n".join(self._data), []
        if data.strip() == _DONE:
            self.done = True
        return [] if self.done or not data.strip() else [self._object(data)]

    def _object(self, data: str) -> dict[str, Any]:
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            raise self._garbage(data) from None
        if not isinstance(value, dict):
            raise self._garbage(data)
        return value

    def _garbage(self, text: str) -> PeftArenaError:
        sent = self._clean(text[:80])
        return PeftArenaError(
            f"The server at {self._host} does not speak OpenAI's stream (it sent {sent}): check --url."
        )
