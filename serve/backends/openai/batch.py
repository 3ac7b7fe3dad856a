"""Rows in flight at another server: each is a stream of its own, so they join and leave when they like."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from queue import Empty, SimpleQueue

from errors import PeftArenaError
from serve.backends.openai.talk import Patience, Talk, Way
from serve.backends.openai.wire import Wire
from serve.rows import Decoding, Finished, Partial, Row

# How long a step waits for the first event: a cancelled row, or a new one, waits as long at most.
_STEP_SECONDS = 0.05
_log = logging.getLogger(__name__)
Event = Partial | Finished


class Line:
    """The thread on which all conversations with one server run, and its connections. Starts when first used."""

    def __init__(self, wire: Wire, patience: Patience, at_once: int) -> None:
        self._wire = wire
        self._patience = patience
        self._at_once = at_once
        self._lock = threading.Lock()
        self._running: tuple[asyncio.AbstractEventLoop, Way] | None = None

    def begin(self, talk: Talk, tell: Callable[[Event], None]) -> Future[None]:
        """Starts a conversation; cancelling the future closes its streams."""
        with self._lock:
            if self._running is None:
                loop = asyncio.new_event_loop()
                places = asyncio.Semaphore(self._at_once)
                self._running = loop, Way(self._wire, self._wire.streaming_client(), self._patience, places)
                threading.Thread(target=_run, args=(loop,), name="remote-rows", daemon=True).start()
            loop, way = self._running
        return asyncio.run_coroutine_threadsafe(self._talk(talk, way, tell), loop)

    async def _talk(self, talk: Talk, way: Way, tell: Callable[[Event], None]) -> None:
        try:
            await talk.run(way, tell)
        except Exception as fault:  # noqa: BLE001 - one row's defect is that row's alone; it is logged whole
            _log.exception("A row's conversation with %s failed.", self._wire.host)
            sentence = f"The answer of {self._wire.host} could not be read ({type(fault).__name__}): see the log."
            tell(talk.finished(error=sentence))

    def close(self) -> None:
        """Ends all conversations and the thread."""
        with self._lock:
            running, self._running = self._running, None
        if running is None:
            return
        loop, way = running

        async def end() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await way.client.aclose()
            await loop.shutdown_asyncgens()
            loop.stop()

        asyncio.run_coroutine_threadsafe(end(), loop)


def _run(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()


class RemoteBatch:
    """Implements Batch (serve.rows) for one server. `make` turns a row into its conversation, or refuses it."""

    joins = True

    def __init__(self, line: Line, make: Callable[[int, Row, Decoding], Talk]) -> None:
        self._line = line
        self._make = make
        self._events: SimpleQueue[tuple[Talk, Event]] = SimpleQueue()
        self._live: dict[int, tuple[Talk, Future[None]]] = {}

    def __len__(self) -> int:
        return sum(talk.lines for talk, _ in self._live.values())

    def add(self, key: int, row: Row, decoding: Decoding) -> None:
        """Sends the row off; PeftArenaError where this engine cannot answer it."""
        if decoding.mode == "beam":
            raise PeftArenaError("This engine has no beam search: choose sampling, which gives several answers too.")
        talk = self._make(key, row, decoding)
        self._live[key] = talk, self._line.begin(talk, lambda event: self._events.put((talk, event)))

    def step(self) -> list[Event]:
        """What has come since the last step, after a short wait for it; of a growing answer the latest state."""
        if not self._live:
            return []
        ends: list[Event] = []
        grown: dict[tuple[int, int], Partial] = {}
        for talk, event in self._arrived():
            if self._live.get(event.index, (None,))[0] is not talk:
                continue  # of a row that was cancelled, whatever its number means by now
            if isinstance(event, Partial):
                grown[event.index, event.candidate] = event
            else:
                del self._live[event.index]
                ends.append(event)
        over = {event.index for event in ends}
        return [*(event for event in grown.values() if event.index not in over), *ends]

    def cancel(self, key: int) -> Finished:
        """Closes the row's streams; what it has said is its answer."""
        talk, future = self._live.pop(key)
        future.cancel()
        return talk.finished(cancelled=True)

    def _arrived(self) -> Iterable[tuple[Talk, Event]]:
        try:
            yield self._events.get(timeout=_STEP_SECONDS)
            while True:
                yield self._events.get_nowait()
        except Empty:
            return
