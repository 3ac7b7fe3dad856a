"""One question to the engine and its events in an event loop's time, until the answer, the client or the server ends.

No thread waits for a call: the engine rings when there is news, and the loop fetches it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from starlette.types import Receive

from serve.api.errors import closing, timed_out, too_many
from serve.rows import Answer, Partial

if TYPE_CHECKING:
    from serve.scheduling.mailbox import Stream

# Starts the engine's work; is given what to call, from any thread, when there is news.
Start = Callable[[Callable[[], None]], "Stream"]


class ClientGoneError(Exception):
    """The client has closed its connection: nobody is left to answer."""


class Call:
    """A call that runs. It ends with its last answer, or with what `end` is given."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._fault: Exception | None = None

    async def events(self, start: Start) -> AsyncGenerator[Partial | Answer]:
        """Partials as they come, of each answer the newest, and one Answer a request; raises what ended it.

        However it is left, the rows are stopped within a step.
        """
        stream = await asyncio.to_thread(start, self._ring)
        try:
            while not stream.over:
                if self._fault is not None:
                    raise self._fault
                for event in stream.ready():
                    yield event
                if not stream.over:
                    await self._news.wait()
                    self._news.clear()
        finally:
            stream.close()

    def end(self, fault: Exception) -> None:
        """Ends it in this loop's thread: the reader gets `fault` raised."""
        if self._fault is None:
            self._fault = fault
        self._news.set()

    def _ring(self) -> None:
        self._loop.call_soon_threadsafe(self._news.set)


class Calls:
    """All calls of a server: how many there may be, how long one may take, and their end with the server's."""

    def __init__(self, most: int, seconds: float) -> None:
        self._most = most
        self._seconds = seconds
        self._open: set[Call] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing = False

    def __len__(self) -> int:
        return len(self._open)

    @asynccontextmanager
    async def open(self, receive: Receive) -> AsyncIterator[Call]:
        """A call that ends when the client goes (`receive` says so), at its time limit, or with the server.

        ApiError where there are too many already, or the server is about to end.
        """
        if self._closing:
            raise closing()
        if len(self._open) >= self._most:
            message = f"{len(self._open)} requests are being answered: ask again in a few seconds."
            raise too_many(message, 3, "server_busy")
        call = Call()
        self._loop = asyncio.get_running_loop()
        self._open.add(call)
        watcher = asyncio.create_task(_watch(call, receive))
        limit = asyncio.get_running_loop().call_later(self._seconds, call.end, timed_out(self._seconds))
        try:
            yield call
        finally:
            limit.cancel()
            watcher.cancel()
            self._open.discard(call)

    def close(self) -> None:
        """Ends all calls and takes no more, in the loop's thread: the server is about to end."""
        self._closing = True
        for call in self._open:
            call.end(closing())

    def stop(self, seconds: float) -> None:
        """As `close`, from another thread; waits for the calls to have ended, at most so long."""
        if self._loop is None or self._loop.is_closed():
            return
        self._loop.call_soon_threadsafe(self.close)
        end = time.monotonic() + seconds
        while self._open and time.monotonic() < end:
            time.sleep(0.02)


async def _watch(call: Call, receive: Receive) -> None:
    """Ends the call when its client goes; the body has been read, so nothing else can come."""
    while (await receive())["type"] != "http.disconnect":
        pass
    call.end(ClientGoneError())
