"""Limits of requests themselves: their rate for each address, and those that are answered without the queue."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from ui.access.bodies import BodyError

MAX_AT_ONCE, MAX_PER_MINUTE = 4, 600
BURST_SECONDS, MIN_BURST, MAX_DELAY_SECONDS = 8.0, 40.0, 10.0
_MAX_TRACKED = 10_000
_MINUTE = 60.0
_TOO_MANY = "Too many requests of yours or of your address at once: try again in a moment."


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
