"""Output queue and stream: pass outputs from the engine thread to the thread or event loop of a caller."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from threading import Condition

from serve.types import PartialOutput, RequestOutput

OutputEvent = PartialOutput | RequestOutput


class OutputQueue:
    """Unread outputs of one call: the newest partial output per sample, and all request outputs.

    Because a newer partial output replaces an older one, memory stays bounded however slowly the reader is. The queue
    finishes with the last of `num_outputs` request outputs. `notify` is called in the engine thread after every
    change and must return without blocking. With `partials=False` the engine skips partial outputs for this queue.
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
        """Add outputs and wake the reader; ignored once the queue has finished."""
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
        """Finish the queue with `exception`, which is raised to the reader after the outputs still queued."""
        with self._changed:
            if self._finished:
                return
            self._finished = True
            self._exception = exception
            self._changed.notify()
        self._notify_reader()

    def get(self, wait: bool) -> tuple[list[OutputEvent], bool]:
        """Return the queued outputs, partial ones first, and whether the queue is finished and empty.

        With `wait`, blocks until there is something to return. Raises the exception of `fail` once all outputs
        queued before it have been returned.
        """
        with self._changed:
            while wait and not (self._partials or self._outputs or self._finished):
                self._changed.wait()
            events: list[OutputEvent] = [*self._partials.values(), *self._outputs]
            self._partials, self._outputs = {}, []
            if self._exception is not None and not events:
                raise self._exception
            finished = self._finished and self._exception is None
        if self._finished and not finished:
            # The outputs are returned now and the exception by the next call; an event loop calls only if notified.
            self._notify_reader()
        return events, finished

    def _notify_reader(self) -> None:
        if self._notify is not None:
            # call_soon_threadsafe raises RuntimeError if the reader's event loop has been closed. The queue has no
            # reader then, and the error must not reach the engine thread, which serves other calls too.
            with suppress(RuntimeError):
                self._notify()


class OutputStream(Iterator[OutputEvent]):
    """Outputs of one call: partial outputs as they come, and exactly one RequestOutput per request.

    Closing or dropping the stream stops its rows within one step. Used by one thread. `abort` is called with True if
    the engine may be woken immediately and with False if no lock may be taken. `keep_alive` is an object that must
    not be freed before the stream (the engine, whose finalizer would end the call).
    """

    def __init__(self, queue: OutputQueue, abort: Callable[[bool], None], keep_alive: object = None) -> None:
        self._queue = queue
        self._abort = abort
        self._keep_alive = keep_alive
        self._pending: list[OutputEvent] = []
        self._finished = False

    @property
    def finished(self) -> bool:
        """Whether all outputs have been read."""
        return self._finished and not self._pending

    def __next__(self) -> OutputEvent:
        while not self._pending:
            if self._finished:
                raise StopIteration
            self._fetch(wait=True)
        return self._pending.pop()

    def get_nowait(self) -> list[OutputEvent]:
        """Return all available outputs without blocking; raises the exception that ended the call."""
        if not self._finished:
            self._fetch(wait=False)
        events, self._pending = self._pending[::-1], []
        return events

    def close(self) -> None:
        """End the call and discard unread outputs."""
        if not self._finished:
            self._finished = True
            self._abort(True)
        self._pending = []

    def __del__(self) -> None:
        # The garbage collector may run this in any thread, even one that holds the engine's lock; abort(False) takes
        # no lock and only sets a flag.
        if not self._finished:
            self._abort(False)

    def _fetch(self, wait: bool) -> None:
        try:
            events, self._finished = self._queue.get(wait)
        except BaseException:
            self.close()
            raise
        # Stored in reverse order, because list.pop() takes from the end in O(1).
        self._pending = events[::-1] + self._pending
