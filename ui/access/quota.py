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
    rows_per_address: int = 32  # at once, for all visitors without a login of one address
    requests_per_second: int = 50  # of one address
    jobs_at_once: int = 3  # waiting or running
    upload_bytes: int = 20 << 20
    archive_bytes: int = 200 << 20  # an adapter's zip
    stored_bytes: int = 1 << 30  # uploads within a day
    total_stored_bytes: int = 10 << 30  # uploads of all visitors within a day
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
    def reserve(self, visitor: str, count: int, address: str = "", *, hourly: bool = True) -> Iterator[None]:
        """Reserve `count` answers until the block ends. Raises BusyError if that exceeds a limit.

        With `address`, that of a visitor without a login, its limits count too: cookies can be made up. Without
        `hourly`, for the owner's runs over whole data sets, they count as answers at once alone.
        """
        names = [visitor, *([f"at {address}"] if address else [])]
        with self._lock:
            now = self._clock()
            per_hour = self.limits.rows_per_hour if hourly else 0
            self._check(names[0], count, now, self.limits.rows_at_once, per_hour, "person")
            if address:
                at_once, per_hour = self._address_limits()
                self._check(names[1], count, now, at_once, per_hour if hourly else 0, "address")
            for name in names:
                recent = self._recent_rows.setdefault(name, deque())
                if hourly:
                    recent.append((now, count))
                self._running[name] = self._running.get(name, 0) + count
            if len(self._recent_rows) > _MAX_TRACKED_VISITORS:
                self._evict_idle(now)
        try:
            yield
        finally:
            with self._lock:
                for name in names:
                    self._running[name] -= count
                    if not self._running[name]:
                        del self._running[name]

    def _address_limits(self) -> tuple[int, int]:
        """Return the limits of an address: rows at once, and as many more an hour than a visitor as at once."""
        limits = self.limits
        if limits.rows_at_once <= 0:
            return limits.rows_per_address, 0
        return limits.rows_per_address, limits.rows_per_hour * limits.rows_per_address // limits.rows_at_once

    def _check(self, name: str, count: int, now: float, at_once: int, per_hour: int, whose: str) -> None:
        running = self._running.get(name, 0)
        who, remedy = ("You have", "or stop them") if whose == "person" else ("All at your address have", "or log in")
        if 0 < at_once < running + count:
            raise BusyError(
                f"{who} {running} answers running and {at_once} at once is the limit for one {whose}: wait for these, "
                f"{remedy}.",
                seconds=10.0,
            )
        recent = self._recent_rows.get(name, deque())
        while recent and recent[0][0] <= now - HOUR:
            recent.popleft()
        if 0 < per_hour < sum(rows for _, rows in recent) + count:
            seconds = recent[0][0] + HOUR - now if recent else HOUR
            raise BusyError(
                f"{who} had {per_hour} answers within an hour, the limit for one {whose}: try again in about "
                f"{math.ceil(seconds / 60)} min.",
                seconds=seconds,
            )

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
