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

from serve.api.errors import rate_limited, shutting_down, timed_out
from serve.rows import PartialOutput, RequestOutput

if TYPE_CHECKING:
    from serve.scheduling.mailbox import OutputStream

# Starts the engine's work; is given what to call, from any thread, when there is news.
StartFn = Callable[[Callable[[], None]], "OutputStream"]


class ClientGoneError(Exception):
    """The client has closed its connection: nobody is left to answer."""


class InFlightRequest:
    """A call that runs. It ends with its last answer, or with what `end` is given."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._has_output = asyncio.Event()
        self._exception: Exception | None = None

    async def events(self, start: StartFn) -> AsyncGenerator[PartialOutput | RequestOutput]:
        """Partials as they come, of each answer the newest, and one RequestOutput a request; raises what ended it.

        However it is left, the rows are stopped within a step.
        """
        stream = await asyncio.to_thread(start, self._notify)
        try:
            while not stream.finished:
                if self._exception is not None:
                    raise self._exception
                for event in stream.get_nowait():
                    yield event
                if not stream.finished:
                    await self._has_output.wait()
                    self._has_output.clear()
        finally:
            stream.close()

    def end(self, exception: Exception) -> None:
        """Ends it in this loop's thread: the reader gets `fault` raised."""
        if self._exception is None:
            self._exception = exception
        self._has_output.set()

    def _notify(self) -> None:
        self._loop.call_soon_threadsafe(self._has_output.set)


class InFlightRequests:
    """All calls of a server: how many there may be, how long one may take, and their end with the server's."""

    def __init__(self, max_requests: int, timeout_s: float) -> None:
        self._max_requests = max_requests
        self._timeout_s = timeout_s
        self._requests: set[InFlightRequest] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing = False

    def __len__(self) -> int:
        return len(self._requests)

    @asynccontextmanager
    async def track(self, receive: Receive) -> AsyncIterator[InFlightRequest]:
        """A call that ends when the client goes (`receive` says so), at its time limit, or with the server.

        ApiError where there are too many already, or the server is about to end.
        """
        if self._closing:
            raise shutting_down()
        if len(self._requests) >= self._max_requests:
            message = f"{len(self._requests)} requests are being answered: ask again in a few seconds."
            raise rate_limited(message, 3, "server_busy")
        call = InFlightRequest()
        self._loop = asyncio.get_running_loop()
        self._requests.add(call)
        watcher = asyncio.create_task(_watch_disconnect(call, receive))
        limit = asyncio.get_running_loop().call_later(self._timeout_s, call.end, timed_out(self._timeout_s))
        try:
            yield call
        finally:
            limit.cancel()
            watcher.cancel()
            self._requests.discard(call)

    def close(self) -> None:
        """Ends all calls and takes no more, in the loop's thread: the server is about to end."""
        self._closing = True
        for call in self._requests:
            call.end(shutting_down())

    def stop(self, seconds: float) -> None:
        """As `close`, from another thread; waits for the calls to have ended, at most so long."""
        if self._loop is None or self._loop.is_closed():
            return
        self._loop.call_soon_threadsafe(self.close)
        end = time.monotonic() + seconds
        while self._requests and time.monotonic() < end:
            time.sleep(0.02)


async def _watch_disconnect(request: InFlightRequest, receive: Receive) -> None:
    """Ends the call when its client goes; the body has been read, so nothing else can come."""
    while (await receive())["type"] != "http.disconnect":
        pass
    request.end(ClientGoneError())
