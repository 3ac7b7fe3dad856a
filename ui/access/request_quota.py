"""Quota of requests that are answered without a place in the queue, such as the differences of two answers."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ui.access.bodies import BodyError

MAX_AT_ONCE, MAX_PER_MINUTE = 4, 600
_MAX_TRACKED = 10_000
_MINUTE = 60.0
_TOO_MANY = "Too many requests of yours or of your address at once: try again in a moment."


class RequestQuota:
    """Requests running and within a minute, for each visitor or address. Used in the server's event loop alone."""

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
