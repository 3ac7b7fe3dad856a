"""What passes from the thread that generates to the one that asked. Bounded, however slowly it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from threading import Condition

from serve.types import PartialOutput, RequestOutput

OutputEvent = PartialOutput | RequestOutput


class OutputQueue:
    """The events of one call that nobody has read yet: of every growing answer the last state, and all whole answers.

    It is over with the last of `answers` answers. `notify` is called, from the thread that has news, whenever
    something new lies here; it must return at once.
    """

    def __init__(self, num_outputs: int, notify: Callable[[], None] | None = None, partials: bool = True) -> None:
        self.wants_partials = partials
        self._changed = Condition()
        self._remaining = num_outputs
        self._notify = notify
        self._partials: dict[tuple[int, int], PartialOutput] = {}
        self._outputs: list[RequestOutput] = []
        self._finished = num_outputs == 0
        self._exception: Exception | None = None

    def put(self, events: Sequence[OutputEvent]) -> None:
        """Adds news; after the end they are not heard."""
        with self._changed:
            if self._finished:
                return
            for event in events:
                if isinstance(event, RequestOutput):
                    self._outputs.append(event)
                else:
                    self._partials[event.index, event.candidate] = event
            self._remaining -= sum(isinstance(event, RequestOutput) for event in events)
            self._finished = self._remaining <= 0
            self._changed.notify()
        self._notify_reader()

    def fail(self, exception: Exception) -> None:
        """Nothing more will come; the reader gets `fault` raised after what lies here."""
        with self._changed:
            if self._finished:
                return
            self._finished = True
            self._exception = exception
            self._changed.notify()
        self._notify_reader()

    def get(self, wait: bool) -> tuple[list[OutputEvent], bool]:
        """All that lies here, growing answers first, and whether that was the last; raises the fault that ended it."""
        with self._changed:
            while wait and not (self._partials or self._outputs or self._finished):
                self._changed.wait()
            events: list[OutputEvent] = [*self._partials.values(), *self._outputs]
            self._partials, self._outputs = {}, []
            if self._exception is not None and not events:
                raise self._exception
            over = self._finished and self._exception is None
        if self._finished and not over:
            self._notify_reader()  # its fault is still to be fetched
        return events, over

    def _notify_reader(self) -> None:
        if self._notify is not None:
            # An event loop that was closed meanwhile raises; then nobody reads, and the others must not suffer.
            with suppress(RuntimeError):
                self._notify()


class OutputStream(Iterator[OutputEvent]):
    """A call's events as they come: Partials, and exactly one RequestOutput a request.

    Closing it, or dropping it, stops its rows within a step. One thread reads it. `stop` is told whether to be heard
    at once; `holds` is what must live as long as somebody reads.
    """

    def __init__(self, queue: OutputQueue, abort: Callable[[bool], None], keep_alive: object = None) -> None:
        self._queue = queue
        self._abort = abort
        self._keep_alive = keep_alive
        self._pending: list[OutputEvent] = []
        self._finished = False

    @property
    def finished(self) -> bool:
        """Whether nothing more will come."""
        return self._finished and not self._pending

    def __next__(self) -> OutputEvent:
        while not self._pending:
            if self._finished:
                raise StopIteration
            self._fetch(wait=True)
        return self._pending.pop()

    def get_nowait(self) -> list[OutputEvent]:
        """All events that are there, without waiting; raises what has ended the call."""
        if not self._finished:
            self._fetch(wait=False)
        events, self._pending = self._pending[::-1], []
        return events

    def close(self) -> None:
        """Ends the call: nobody waits for the rest."""
        if not self._finished:
            self._finished = True
            self._abort(True)
        self._pending = []

    def __del__(self) -> None:
        # May run in any thread at any moment, so it only leaves a word.
        if not self._finished:
            self._abort(False)

    def _fetch(self, wait: bool) -> None:
        try:
            events, self._finished = self._queue.get(wait)
        except BaseException:
            self.close()
            raise
        # Read from the end, which is cheap.
        self._pending = events[::-1] + self._pending
