"""Limits for one visitor and one address: answers, requests and their rate, and the admission queue before the engine.

Admission queue of runs in front of the engine. Gradio's own queue starts as many runs as its limit allows, in any order
once they wait for the engine. The admission queue shares the engine between addresses, then between the visitors of an
address, and lets a waiting run be cancelled at once.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from common.format import format_bytes
from errors import BusyError, PromptOrTuneError
from ui.access.bodies import BodyError

HOUR = 3600.0
_MAX_TRACKED_VISITORS = 10_000
MAX_AT_ONCE, MAX_PER_MINUTE = 4, 600
BURST_SECONDS, MIN_BURST, MAX_DELAY_SECONDS = 8.0, 40.0, 10.0
_MAX_TRACKED = 10_000
_MINUTE = 60.0
_TOO_MANY = "Too many requests of yours or of your address at once: try again in a moment."


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


class RequestPace:
    """Delays the requests of an address beyond `per_second`, zero or less: never. Used in one event loop alone.

    A request that is delayed takes no time of the server, one that is refused does: so programs that repeat refused
    requests as fast as they can are slowed down, and nobody else.
    """

    def __init__(
        self,
        per_second: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._per_second = per_second
        self._clock = clock
        self._sleep = sleep
        # The time at which an address will have been idle for long enough to have its burst again.
        self._rested: OrderedDict[str, float] = OrderedDict()

    async def wait(self, address: str, cost: float = 1.0) -> None:
        """Wait for the turn of a request that counts as `cost` requests. Raises BodyError 429 if that takes too long.

        The requests of BURST_SECONDS may come at once, at least MIN_BURST: a page has some.
        """
        if self._per_second <= 0:
            return
        now = self._clock()
        rested = max(self._rested.get(address, now), now) + cost / self._per_second
        delay = rested - now - max(BURST_SECONDS, MIN_BURST / self._per_second)
        if delay > MAX_DELAY_SECONDS:
            raise BodyError(429, _TOO_MANY)
        self._rested[address] = rested
        self._rested.move_to_end(address)
        while len(self._rested) > _MAX_TRACKED:
            self._rested.popitem(last=False)
        if delay > 0:
            await self._sleep(delay)


class RequestQuota:
    """Requests running and within a minute, for each visitor or address. Used in one event loop alone."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._running: Counter[str] = Counter()
        self._recent: OrderedDict[str, deque[float]] = OrderedDict()

    @contextmanager
    def reserve(self, who: str) -> Iterator[None]:
        """Count one request of `who` until the block ends. Raises BodyError 429 beyond a limit."""
        now = self._clock()
        recent = self._recent.setdefault(who, deque())
        self._recent.move_to_end(who)
        while recent and recent[0] <= now - _MINUTE:
            recent.popleft()
        if len(self._recent) > _MAX_TRACKED:
            self._recent.popitem(last=False)
        if self._running[who] >= MAX_AT_ONCE or len(recent) >= MAX_PER_MINUTE:
            raise BodyError(429, _TOO_MANY)
        recent.append(now)
        self._running[who] += 1
        try:
            yield
        finally:
            self._running[who] -= 1
            if not self._running[who]:
                del self._running[who]


class AdmissionQueue:
    """A queue of runs of which `max_concurrent` may use the engine. Thread-safe.

    The next run is of the address with the fewest runs (running, and waiting before it), of several the one that was
    served longest ago; within an address likewise of a visitor; within a visitor the oldest. So somebody with many
    runs, or many cookies, waits for himself.
    """

    def __init__(self, max_concurrent: int = 1) -> None:
        self._max_concurrent = max_concurrent
        self._changed = threading.Condition()
        self._tickets: list[Ticket] = []
        self._admissions = 0
        # The number of its last admission, for each visitor (of an address) and address with tickets.
        self._served: dict[tuple[str, ...], int] = {}

    @contextmanager
    def enqueue(self, visitor: str = "", address: str = "") -> Iterator[Ticket]:
        """Yield a ticket in the queue; leaving the block removes it. Without `address` the visitor stands for it."""
        ticket = Ticket(self, visitor, address or visitor)
        with self._changed:
            self._tickets.append(ticket)
            self._admit()
        try:
            yield ticket
        finally:
            with self._changed:
                self._tickets.remove(ticket)
                present = {group for ticket in self._tickets for group in ticket.groups}
                self._served = {group: number for group, number in self._served.items() if group in present}
                self._admit()

    def count_ahead(self, ticket: Ticket, timeout: float) -> int:
        """Wait for the turn of `ticket`, at most `timeout` seconds; return the number of runs that must end before."""
        with self._changed:
            self._changed.wait_for(lambda: ticket.admitted, timeout=timeout)
            return 0 if ticket.admitted else self._waiting().index(ticket) + 1

    def is_contended(self, ticket: Ticket) -> bool:
        """Return whether a visitor of another address waits for the end of `ticket`."""
        with self._changed:
            return any(not other.admitted and other.address != ticket.address for other in self._tickets)

    def _admit(self) -> None:
        free = self._max_concurrent - sum(ticket.admitted for ticket in self._tickets)
        for ticket in self._waiting()[: max(0, free)]:
            ticket.admitted = True
            self._admissions += 1
            self._served |= dict.fromkeys(ticket.groups, self._admissions)
        self._changed.notify_all()

    def _waiting(self) -> list[Ticket]:
        """Return the waiting tickets in the order of their turns."""
        waiting = [ticket for ticket in self._tickets if not ticket.admitted]
        for level in (0, 1):
            counts = Counter(ticket.groups[level] for ticket in self._tickets if ticket.admitted)
            ranks = {}
            for ticket in waiting:
                group = ticket.groups[level]
                ranks[ticket] = (counts[group], self._served.get(group, 0))
                counts[group] += 1
            waiting.sort(key=ranks.__getitem__)
        return waiting


@dataclass(eq=False)
class Ticket:
    """One run in the queue."""

    queue: AdmissionQueue
    visitor: str
    address: str
    admitted: bool = False

    @property
    def groups(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The visitor, and the address, as groups that share the engine."""
        return (self.address, self.visitor), (self.address,)

    def wait(self, timeout: float) -> int:
        """Wait for the turn, at most `timeout` seconds; return the number of runs that must end before it."""
        return self.queue.count_ahead(self, timeout)

    def is_contended(self) -> bool:
        """Return whether a visitor of another address waits for the end of this run."""
        return self.queue.is_contended(self)
