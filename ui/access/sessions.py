"""Owners of Gradio's sessions and events: whoever names one first is the only one who may name it again.

Gradio keeps the state of a page (its runs, its selected job) by a `session_hash` that the browser chooses, and asks
nobody who knows it for more.
"""

from __future__ import annotations

import re
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Gradio keeps the state of at most 10,000 sessions, so it forgets a state before this module forgets its owner.
MAX_SESSIONS = 20_000
MAX_SESSIONS_OF_ONE = 1_000
MAX_UNREAD = 16
_EXPIRY_SECONDS = 24 * 3600.0
_UNREAD_SECONDS = 10.0
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class SessionOwners:
    """Who owns which session. Thread-safe; forgets what was not used for a day, and the oldest beyond the limits."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._owners: OrderedDict[str, tuple[str, float]] = OrderedDict()
        self._sessions: dict[str, OrderedDict[str, None]] = {}

    def __len__(self) -> int:
        return len(self._owners)

    def may_use(self, session: object, visitor: str, claim: bool = False) -> bool:
        """Return whether `session` is the visitor's; with `claim` a session without an owner becomes theirs."""
        if not isinstance(session, str) or not _NAME.fullmatch(session):
            return False
        with self._lock:
            now = self._clock()
            while self._owners and next(iter(self._owners.values()))[1] <= now - _EXPIRY_SECONDS:
                self._forget(next(iter(self._owners)))
            owner = self._owners.get(session, ("", 0.0))[0]
            if owner != visitor and (owner or not claim):
                return False
            self._owners[session] = (visitor, now)
            self._owners.move_to_end(session)
            own = self._sessions.setdefault(visitor, OrderedDict())
            own[session] = None
            own.move_to_end(session)
            if len(own) > MAX_SESSIONS_OF_ONE:
                self._forget(next(iter(own)))
            if len(self._owners) > MAX_SESSIONS:
                self._forget(next(iter(self._owners)))
            return True

    def _forget(self, session: str) -> None:
        owner, _ = self._owners.pop(session)
        own = self._sessions[owner]
        del own[session]
        if not own:
            del self._sessions[owner]


class UnreadSessions:
    """Sessions that were given events which nobody reads, by whoever gave them. Used in the server's event loop alone.

    Each event takes one of Gradio's threads until it is found to have no reader, so nobody may have many at once.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: dict[str, dict[str, float]] = {}
        self._readers: Counter[str] = Counter()

    def has_room(self, who: str, session: object) -> bool:
        """Return whether an event may be given to `session` (None: a new one)."""
        unread = self._recent(who)
        return session in unread or session in self._readers or len(unread) < MAX_UNREAD

    def add(self, who: str, session: str) -> None:
        """Note an event of a session; nothing if it is read."""
        if session not in self._readers:
            self._since.setdefault(who, {}).setdefault(session, self._clock())

    @contextmanager
    def reading(self, who: str, session: str) -> Iterator[None]:
        """Note that the session is read until the block ends."""
        self._since.get(who, {}).pop(session, None)
        self._readers[session] += 1
        try:
            yield
        finally:
            self._readers[session] -= 1
            if not self._readers[session]:
                del self._readers[session]

    def _recent(self, who: str) -> dict[str, float]:
        oldest = self._clock() - _UNREAD_SECONDS
        for name in [who] if len(self._since) < MAX_SESSIONS_OF_ONE else list(self._since):
            recent = {session: time for session, time in self._since.pop(name, {}).items() if time > oldest}
            if recent:
                self._since[name] = recent
        return self._since.get(who, {})
