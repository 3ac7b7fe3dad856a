"""Rows in flight at another server: each is a stream of its own, so they join and leave when they like."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from queue import Empty, SimpleQueue

from errors import PromptOrTuneError
from serve.backends.openai.talk import Connection, RemoteRow, Timeouts
from serve.backends.openai.wire import ServerClient
from serve.rows import PartialOutput, Row, RowOutput, SamplingParams

# How long a step waits for the first event: a cancelled row, or a new one, waits as long at most.
_STEP_SECONDS = 0.05
_log = logging.getLogger(__name__)
RowEvent = PartialOutput | RowOutput


class EventLoopThread:
    """The thread on which all conversations with one server run, and its connections. Starts when first used."""

    def __init__(self, client: ServerClient, timeouts: Timeouts, max_streams: int) -> None:
        self._client = client
        self._timeouts = timeouts
        self._max_streams = max_streams
        self._lock = threading.Lock()
        self._running: tuple[asyncio.AbstractEventLoop, Connection] | None = None

    def submit(self, row: RemoteRow, emit: Callable[[RowEvent], None]) -> Future[None]:
        """Starts a conversation; cancelling the future closes its streams."""
        with self._lock:
            if self._running is None:
                loop = asyncio.new_event_loop()
                places = asyncio.Semaphore(self._max_streams)
                self._running = loop, Connection(self._client, self._client.streaming_client(), self._timeouts, places)
                threading.Thread(target=_run_loop, args=(loop,), name="remote-rows", daemon=True).start()
            loop, way = self._running
        return asyncio.run_coroutine_threadsafe(self._run_row(row, way, emit), loop)

    async def _run_row(self, row: RemoteRow, connection: Connection, emit: Callable[[RowEvent], None]) -> None:
        try:
            await row.run(connection, emit)
        except Exception as fault:  # noqa: BLE001 - one row's defect is that row's alone; it is logged whole
            _log.exception("A row's conversation with %s failed.", self._client.host)
            sentence = f"The answer of {self._client.host} could not be read ({type(fault).__name__}): see the log."
            emit(row.row_output(error=sentence))

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
            await way.http_client.aclose()
            await loop.shutdown_asyncgens()
            loop.stop()

        asyncio.run_coroutine_threadsafe(end(), loop)


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()


class RemoteBatch:
    """Implements Batch (serve.rows) for one server. `make` turns a row into its conversation, or refuses it."""

    supports_continuous_batching = True

    def __init__(self, loop_thread: EventLoopThread, make_row: Callable[[int, Row, SamplingParams], RemoteRow]) -> None:
        self._loop_thread = loop_thread
        self._make_row = make_row
        self._events: SimpleQueue[tuple[RemoteRow, RowEvent]] = SimpleQueue()
        self._running: dict[int, tuple[RemoteRow, Future[None]]] = {}

    def __len__(self) -> int:
        return sum(talk.num_seqs for talk, _ in self._running.values())

    def add(self, key: int, row: Row, sampling_params: SamplingParams) -> None:
        """Sends the row off; PromptOrTuneError where this engine cannot answer it."""
        if sampling_params.mode == "beam":
            raise PromptOrTuneError("This engine has no beam search: choose sampling, which gives several answers too.")
        talk = self._make_row(key, row, sampling_params)
        self._running[key] = talk, self._loop_thread.submit(talk, lambda event: self._events.put((talk, event)))

    def step(self) -> list[RowEvent]:
        """What has come since the last step, after a short wait for it; of a growing answer the latest state."""
        if not self._running:
            return []
        ends: list[RowEvent] = []
        grown: dict[tuple[int, int], PartialOutput] = {}
        for talk, event in self._drain_events():
            if self._running.get(event.index, (None,))[0] is not talk:
                continue  # of a row that was cancelled, whatever its number means by now
            if isinstance(event, PartialOutput):
                grown[event.index, event.candidate] = event
            else:
                del self._running[event.index]
                ends.append(event)
        over = {event.index for event in ends}
        return [*(event for event in grown.values() if event.index not in over), *ends]

    def cancel(self, key: int) -> RowOutput:
        """Closes the row's streams; what it has said is its answer."""
        talk, future = self._running.pop(key)
        future.cancel()
        return talk.row_output(cancelled=True)

    def _drain_events(self) -> Iterable[tuple[RemoteRow, RowEvent]]:
        try:
            yield self._events.get(timeout=_STEP_SECONDS)
            while True:
                yield self._events.get_nowait()
        except Empty:
            return
