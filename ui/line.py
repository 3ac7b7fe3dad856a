"""The line in front of the engine: first come, first served, and everybody can see their place.

Gradio's own queue starts as many runs as its limit allows, in any order as soon as they wait for the engine. This
line keeps their order, and lets a run that still waits be stopped at once.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class AdmissionQueue:
    """A first-in, first-out line of runs; the first `at_once` of them have the engine, which answers them together."""

    def __init__(self, max_concurrent: int = 1) -> None:
        self._max_concurrent = max_concurrent
        self._changed = threading.Condition()
        self._tickets: list[Ticket] = []

    @contextmanager
    def enqueue(self) -> Iterator[Ticket]:
        """A place at the end of the line, given back on leaving the block."""
        place = Ticket(self)
        with self._changed:
            self._tickets.append(place)
        try:
            yield place
        finally:
            with self._changed:
                self._tickets.remove(place)
                self._changed.notify_all()

    def count_ahead(self, ticket: Ticket, timeout: float) -> int:
        """How many must end before `place` has its turn; returns at once when none, else after at most `seconds`."""
        with self._changed:
            self._changed.wait_for(lambda: ticket in self._tickets[: self._max_concurrent], timeout=timeout)
            return max(0, self._tickets.index(ticket) + 1 - self._max_concurrent)


class Ticket:
    """One run's place in the line."""

    def __init__(self, queue: AdmissionQueue) -> None:
        self._queue = queue

    def wait(self, timeout: float) -> int:
        """Waits for its turn for at most `seconds`; the number of runs that are still before it."""
        return self._queue.count_ahead(self, timeout)
