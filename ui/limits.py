"""How much one visitor may have: answers at once and in an hour, jobs that wait, bytes of an upload."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from errors import BusyError, PromptOrTuneError

HOUR = 3600.0
_MAX_TRACKED_VISITORS = 10_000


@dataclass(frozen=True)
class Limits:
    """A zero or less means no limit. `rows` are answers: a comparison of four methods has four."""

    rows_at_once: int = 16
    rows_per_hour: int = 1200
    jobs_at_once: int = 3  # waiting or running
    upload_bytes: int = 20 << 20
    archive_bytes: int = 200 << 20  # an adapter's zip


class VisitorQuota:
    """Counts rows by visitor. Thread-safe; whoever has had none for an hour is forgotten."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self._clock = clock
        self._lock = threading.Lock()
        self._running: dict[str, int] = {}
        self._recent_rows: dict[str, deque[tuple[float, int]]] = {}

    @contextmanager
    def reserve(self, visitor: str, count: int) -> Iterator[None]:
        """Room for `count` answers until the block is left; BusyError in one sentence where there is none."""
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
                f"You have {running} answers under way and {limits.rows_at_once} at once is the limit for one person: "
                "wait for these, or stop them.",
                seconds=10.0,
            )
        had = self._recent_rows.setdefault(visitor, deque())
        while had and had[0][0] <= now - HOUR:
            had.popleft()
        if 0 < limits.rows_per_hour < sum(rows for _, rows in had) + count:
            seconds = had[0][0] + HOUR - now if had else HOUR
            raise BusyError(
                f"You have had {limits.rows_per_hour} answers within an hour, the limit for one person: try again in "
                f"about {math.ceil(seconds / 60)} min.",
                seconds=seconds,
            )
        had.append((now, count))
        self._running[visitor] = running + count
        if len(self._recent_rows) > _MAX_TRACKED_VISITORS:
            self._evict_idle(now)

    def _evict_idle(self, now: float) -> None:
        for visitor in [each for each, had in self._recent_rows.items() if not had or had[-1][0] <= now - HOUR]:
            del self._recent_rows[visitor]


def check_upload_size(size: int, limit: int, what: str = "the file") -> None:
    """PromptOrTuneError in one sentence where an upload of `size` bytes is over `limit`."""
    if 0 < limit < size:
        raise PromptOrTuneError(
            f"{what[:1].upper()}{what[1:]} has {size / 1e6:.1f} MB and {limit / 1e6:.0f} MB is the limit here: "
            "make it smaller, or run Peft Arena on a machine of your own."
        )
