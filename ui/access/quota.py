"""Limits for one visitor, and the quota that counts answers."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from common.format import format_bytes
from errors import BusyError, PromptOrTuneError

HOUR = 3600.0
_MAX_TRACKED_VISITORS = 10_000


@dataclass(frozen=True)
class VisitorLimits:
    """Limits for one visitor, and for the drafts of all; zero or less: no limit.

    `rows` are answers: a comparison of four methods has four.
    """

    rows_at_once: int = 16
    rows_per_hour: int = 1200
    jobs_at_once: int = 3  # waiting or running
    upload_bytes: int = 20 << 20
    archive_bytes: int = 200 << 20  # an adapter's zip
    drafts_bytes: int = 2 << 30  # rows that all visitors together have uploaded and not trained on yet


class VisitorQuota:
    """Counts the answers of each visitor. Thread-safe; visitors without answers in the last hour are removed."""

    def __init__(self, limits: VisitorLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self._clock = clock
        self._lock = threading.Lock()
        self._running: dict[str, int] = {}
        self._recent_rows: dict[str, deque[tuple[float, int]]] = {}

    @contextmanager
    def reserve(self, visitor: str, count: int) -> Iterator[None]:
        """Reserve `count` answers until the block ends. Raises BusyError if that exceeds a limit."""
        with self._lock:
            self._reserve(visitor, count)
        try:
            yield
        finally:
            with self._lock:
                self._running[visitor] -= count
                if not self._running[visitor]:
                    del self._running[visitor]

    def _reserve(self, visitor: str, count: int) -> None:
        now, limits = self._clock(), self.limits
        running = self._running.get(visitor, 0)
        if 0 < limits.rows_at_once < running + count:
            raise BusyError(
                f"You have {running} answers running and {limits.rows_at_once} at once is the limit for one person: "
                "wait for these, or stop them.",
                seconds=10.0,
            )
        recent = self._recent_rows.setdefault(visitor, deque())
        while recent and recent[0][0] <= now - HOUR:
            recent.popleft()
        if 0 < limits.rows_per_hour < sum(rows for _, rows in recent) + count:
            seconds = recent[0][0] + HOUR - now if recent else HOUR
            raise BusyError(
                f"You have had {limits.rows_per_hour} answers within an hour, the limit for one person: try again in "
                f"about {math.ceil(seconds / 60)} min.",
                seconds=seconds,
            )
        recent.append((now, count))
        self._running[visitor] = running + count
        if len(self._recent_rows) > _MAX_TRACKED_VISITORS:
            self._evict_idle(now)

    def _evict_idle(self, now: float) -> None:
        idle = [name for name, recent in self._recent_rows.items() if not recent or recent[-1][0] <= now - HOUR]
        for visitor in idle:
            del self._recent_rows[visitor]


def check_upload_size(size: int, limit: int, what: str = "the file") -> None:
    """Raise PromptOrTuneError if an upload of `size` bytes exceeds `limit`."""
    if 0 < limit < size:
        raise PromptOrTuneError(
            f"{what[:1].upper()}{what[1:]} has {format_bytes(size)} and {format_bytes(limit)} is the limit here: "
            "make it smaller, or run Prompt or Tune on a machine of your own."
        )
