"""One line about what runs long: how far it is and how long it still takes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

LINE_INTERVAL_SECONDS = 30.0  # between lines where they cannot be redrawn


class ProgressBar:
    """Counts up to `total` on standard error: one redrawn line on a terminal, else a line every 30 seconds."""

    def __init__(self, total: int, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._total = total
        self._stream = stream or sys.stderr
        self._clock = clock
        self._start = clock()
        self._last_print = self._start
        self._done = 0
        self._width = 0

    def update(self, count: int, label: str) -> None:
        """`count` more are done; `label` says what they belong to."""
        self._done += count
        now = self._clock()
        left = (now - self._start) / max(self._done, 1) * (self._total - self._done)
        line = f"{self._done}/{self._total} {label}, {_format_duration(now - self._start)} gone, {_format_duration(left)} left"
        if self._stream.isatty():
            self._stream.write(f"\r{line:<{self._width}}")
            self._width = len(line)
        elif now - self._last_print >= LINE_INTERVAL_SECONDS or self._done == self._total:
            self._last_print = now
            self._stream.write(line + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Leaves the redrawn line, so that what follows begins on a line of its own."""
        if self._width:
            self._width = 0
            self._stream.write("\n")
            self._stream.flush()


def _format_duration(seconds: float) -> str:
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60:02} min"
