"""Bodies of requests to the pages: size, time, and the bytes of uploads that are stored on disk."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.formparsers import MultiPartException
from starlette.types import Message, Receive

from common.format import format_bytes

MAX_JSON_BYTES = 1_000_000
MAX_LOGIN_BYTES = 16_384
MAX_FILES = 20  # in one upload
BODY_SECONDS = 30.0
UPLOAD_SECONDS = 3600.0
# Bytes that a multipart form adds to its files.
MULTIPART_OVERHEAD = 64 << 10
# What a file takes on disk beside its bytes: a folder, and the rest of its last block.
FILE_BYTES = 8 << 10
# One address without logins may take this part of the total.
ADDRESS_SHARE = 4
_HOUR = 3600.0
_STORED_HOURS = 25  # Gradio keeps an upload for a day, and looks once an hour
_MAX_VISITORS = 10_000
_BOUNDARY = re.compile(r'boundary="?([^";,]{1,200})"?', re.IGNORECASE)


class BodyError(Exception):
    """A body that is refused, with the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def content_length(headers: Headers) -> int:
    """Return the size that the request declares; 0 if it declares none."""
    text = headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0


async def read_body(headers: Headers, receive: Receive, max_bytes: int) -> bytes:
    """Return the body; raises BodyError 413 beyond `max_bytes` and 408 if it takes longer than BODY_SECONDS."""
    too_large = BodyError(413, f"A request may have {format_bytes(max_bytes)} here and this one has more: send less.")
    if content_length(headers) > max_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise BodyError(400, "The request ended before its body was complete: send it again.")
                body += message.get("body", b"")
                if len(body) > max_bytes:
                    raise too_large
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise BodyError(408, f"The body did not arrive within {BODY_SECONDS:g} s: send it at once.") from None


def replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the body once more, then what follows it."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return messages.pop() if messages else await receive()

    return replayed


@dataclass
class StoredUploads:
    """Bytes of uploads that are on disk, by visitor and in all, as far as this process knows. Thread-safe.

    `max_bytes` bounds one visitor, `max_total` all of them, and a part of it one address, as cookies can be made up;
    zero or less: no limit. `address` is that of a visitor without a login, '' with one.
    """

    max_bytes: int
    max_total: int
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._total = 0
        self._cleaned = 0
        # The bytes of each visitor, and of each address, by the hour in which they came.
        self._hours: dict[str, dict[int, int]] = {}
        self._address_hours: dict[str, dict[int, int]] = {}

    def refusal(self, visitor: str, size: int, address: str = "") -> str | None:
        """Return why `size` more bytes of the visitor are not stored; None if they may be."""
        with self._lock:
            self._remove_old()
            if 0 < self.max_total < self._total + size:
                return (
                    f"The uploads of the last day have {format_bytes(self._total)} and "
                    f"{format_bytes(self.max_total)} is the limit here: try again later."
                )
            own = sum(self._hours.get(visitor, {}).values())
            if 0 < self.max_bytes < own + size:
                return (
                    f"Your uploads of the last day have {format_bytes(own)} and {format_bytes(self.max_bytes)} is the "
                    "limit for one person: try again later."
                )
            share = self.max_total // ADDRESS_SHARE
            if address and 0 < share < sum(self._address_hours.get(address, {}).values()) + size:
                return (
                    f"The uploads of the last day from your address have {format_bytes(share)} and more, the limit for "
                    "one address: log in, or try again later."
                )
        return None

    def add(self, visitor: str, size: int, address: str = "") -> None:
        """Count `size` bytes (less than zero: they are gone again)."""
        with self._lock:
            hour = int(self.clock() // _HOUR)
            for name, table in ((visitor, self._hours), (address, self._address_hours)):
                if name or table is self._hours:
                    hours = table.setdefault(name, {})
                    hours[hour] = hours.get(hour, 0) + size
            self._total += size

    def _remove_old(self) -> None:
        now = int(self.clock() // _HOUR)
        if now == self._cleaned and len(self._hours) <= _MAX_VISITORS:
            return
        self._cleaned = now
        self._address_hours = {
            address: recent
            for address, hours in self._address_hours.items()
            if (recent := {hour: size for hour, size in hours.items() if hour > now - _STORED_HOURS})
        }
        for visitor in list(self._hours):
            hours = self._hours[visitor]
            for hour in [hour for hour in hours if hour <= now - _STORED_HOURS]:
                self._total -= hours.pop(hour)
            if not hours:
                del self._hours[visitor]
        for visitor in list(self._hours)[: max(0, len(self._hours) - _MAX_VISITORS // 2)]:
            others = self._hours.setdefault("", {})
            for hour, size in self._hours.pop(visitor).items() if visitor else ():
                others[hour] = others.get(hour, 0) + size


class UploadReceiver:
    """The `receive` of one upload: counts bytes and files while they arrive.

    Beyond a limit, after BODY_SECONDS without a byte, and when the client leaves it raises MultiPartException: Gradio
    then deletes the files that it has begun. With the words "maximum allowed size" Gradio answers 413.
    """

    def __init__(
        self,
        headers: Headers,
        receive: Receive,
        max_bytes: int,
        stored: StoredUploads,
        visitor: str,
        address: str = "",
    ) -> None:
        self._receive = receive
        self._max_bytes = max_bytes
        self._stored = stored
        self._visitor, self._address = visitor, address
        match = _BOUNDARY.search(headers.get("content-type", ""))
        self._delimiter = b"--" + (match[1] if match else "").encode("latin-1")
        self._tail = b""
        self._parts = 0
        self._deadline = time.monotonic() + UPLOAD_SECONDS
        self.size = 0
        self._stored_size = 0

    def forget(self) -> None:
        """Count nothing of this upload, whose files are deleted."""
        self._stored.add(self._visitor, -self._stored_size, self._address)
        self._stored_size = 0

    def _store(self, size: int) -> None:
        self._stored_size += size
        self._stored.add(self._visitor, size, self._address)

    async def __call__(self) -> Message:
        try:
            async with asyncio.timeout(min(BODY_SECONDS, max(0.0, self._deadline - time.monotonic()))):
                message = await self._receive()
        except TimeoutError:
            raise MultiPartException("The upload stopped for too long: send it again.") from None
        if message["type"] == "http.disconnect":
            raise MultiPartException("The upload ended before it was complete: send it again.")
        chunk = message.get("body", b"")
        self.size += len(chunk)
        self._store(len(chunk))
        if 0 < self._max_bytes < self.size - MULTIPART_OVERHEAD:
            raise MultiPartException(
                f"The files of one upload have more than {format_bytes(self._max_bytes)}, the maximum allowed size: "
                "make them smaller, or run Prompt or Tune on a machine of your own."
            )
        if refusal := self._stored.refusal(self._visitor, 0, self._address):
            raise MultiPartException(f"{refusal[:-1]} (the maximum allowed size).")
        self._count_parts(chunk)
        return message

    def _count_parts(self, chunk: bytes) -> None:
        text = self._tail + chunk
        parts = text.count(self._delimiter)
        self._parts += parts
        self._store(parts * FILE_BYTES)
        self._tail = text[-(len(self._delimiter) - 1) :]
        # The last delimiter ends the form.
        if self._parts > MAX_FILES + 1:
            raise MultiPartException(f"One upload may have {MAX_FILES} files: send the others in a further one.")
