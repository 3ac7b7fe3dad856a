"""The line in front of the engine: first come, first served, and everybody can see their place.

Gradio's own queue starts as many runs as its limit allows, in any order as soon as they wait for the engine. This
line keeps their order, and lets a run that still waits be stopped at once.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Line:
    """A first-in, first-out line of runs; the first `at_once` of them have the engine, which answers them together."""

    def __init__(self, at_once: int = 1) -> None:
        self._at_once = at_once
        self._changed = threading.Condition()
        self._waiting: list[Place] = []

    @contextmanager
    def join(self) -> Iterator[Place]:
        """A place at the end of the line, given back on leaving the block."""
        place = Place(self)
        with self._changed:
            self._waiting.append(place)
        try:
            yield place
        finally:
            with self._changed:
                self._waiting.remove(place)
                self._changed.notify_all()

    def before(self, place: Place, seconds: float) -> int:
        """How many must end before `place` has its turn; returns at once when none, else after at most `seconds`."""
        with self._changed:
            self._changed.wait_for(lambda: place in self._waiting[: self._at_once], timeout=seconds)
            return max(0, self._waiting.index(place) + 1 - self._at_once)


class Place:
    """One run's place in the line."""

    def __init__(self, line: Line) -> None:
        self._line = line

    def wait(self, seconds: float) -> int:
        """Waits for its turn for at most `seconds`; the number of runs that are still before it."""
        return self._line.before(self, seconds)
