"""Admission queue of runs in front of the engine.

Gradio's own queue starts as many runs as its limit allows, in any order once they wait for the engine. The admission
queue keeps their order, and lets a waiting run be cancelled at once.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class AdmissionQueue:
    """A first-in, first-out queue of runs; the first `max_concurrent` of them may use the engine. Thread-safe."""

    def __init__(self, max_concurrent: int = 1) -> None:
        self._max_concurrent = max_concurrent
        self._changed = threading.Condition()
        self._tickets: list[Ticket] = []

    @contextmanager
    def enqueue(self) -> Iterator[Ticket]:
        """Yield a ticket at the end of the queue; leaving the block removes it."""
        ticket = Ticket(self)
        with self._changed:
            self._tickets.append(ticket)
        try:
            yield ticket
        finally:
            with self._changed:
                self._tickets.remove(ticket)
                self._changed.notify_all()

    def count_ahead(self, ticket: Ticket, timeout: float) -> int:
        """Wait for the turn of `ticket`, at most `timeout` seconds; return the number of runs that must end before."""
        with self._changed:
            self._changed.wait_for(lambda: ticket in self._tickets[: self._max_concurrent], timeout=timeout)
            return max(0, self._tickets.index(ticket) + 1 - self._max_concurrent)


class Ticket:
    """The position of one run in the queue."""

    def __init__(self, queue: AdmissionQueue) -> None:
        self._queue = queue

    def wait(self, timeout: float) -> int:
        """Wait for the turn, at most `timeout` seconds; return the number of runs that must end before it."""
        return self._queue.count_ahead(self, timeout)
