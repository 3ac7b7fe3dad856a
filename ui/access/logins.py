"""Logins with --auth or the Hub, slowed after failures, and the owners of Gradio's sessions and events.

Login with the Hub on a Space, and the token of a visitor. Outside a Space Gradio would replace the login with the
machine's own account, so the button exists on Spaces only.

What counts most is the pair of name and address: after a few failures it waits, longer each time. An address has a
number of failures an hour, whatever the names. A name alone is never locked, which would lock out its owner: while many
addresses try it, each has one attempt.

Owners of Gradio's sessions and events: the visitor who names one first owns it, and others may not use its name. Gradio
keeps the state of a page (its runs, its selected job) by a `session_hash` that the browser chooses, and checks nothing
else.
"""

from __future__ import annotations

import hmac
import math
import os
import re
import secrets
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import gradio as gr
from starlette.exceptions import HTTPException

# Environment variables that a Space with `hf_oauth: true` sets and Gradio's login routes need.
_REQUIRED_VARIABLES = ("SPACE_ID", "OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET", "OAUTH_SCOPES", "OPENID_PROVIDER_URL")
FREE_FAILURES = 5
FAILURES_OF_ADDRESS = 50  # an hour
FAILURES_OF_NAME = 200  # an hour, over all addresses
MAX_WAIT_SECONDS = 900.0
_HOUR = 3600.0
_MAX_ENTRIES = 10_000

# The address of the client of the request that is being answered; Gradio gives it to no login function.
login_address: ContextVar[str] = ContextVar("login_address", default="")
# Gradio keeps the state of at most 10,000 sessions, so it forgets a state before this module forgets its owner.
MAX_SESSIONS = 20_000
MAX_SESSIONS_OF_ONE = 1_000
MAX_UNREAD = 16
_EXPIRY_SECONDS = 24 * 3600.0
_UNREAD_SECONDS = 10.0
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def is_login_available() -> bool:
    """Return whether visitors can log in with the Hub here."""
    # Gradio recognises a Space by this variable, and mocks the login elsewhere.
    return os.environ.get("SYSTEM") == "spaces" and all(os.environ.get(name) for name in _REQUIRED_VARIABLES)


def build_login(elem_id: str = "login") -> gr.LoginButton | None:
    """Add the login button to the current Blocks and return it; None where the login is not available."""
    if not is_login_available():
        return None
    return gr.LoginButton(
        "Log in with Hugging Face", logout_value="Log out ({})", size="sm", variant="secondary", elem_id=elem_id
    )


def resolve_token(login: gr.OAuthToken | None, typed: str | None = "") -> str | None:
    """Return the Hub token of the login, else the typed one; None without either."""
    if login is not None:
        return str(login.token)
    return (typed or "").strip() or None


class Failures:
    """Times of failures by key, of the last hour. Not thread-safe; drops the oldest keys beyond 10,000."""

    def __init__(self) -> None:
        self._times: OrderedDict[str, deque[float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._times)

    def add(self, key: str, now: float, most: int) -> None:
        self._times.setdefault(key, deque(maxlen=most)).append(now)
        self._times.move_to_end(key)
        if len(self._times) > _MAX_ENTRIES:
            self._times.popitem(last=False)

    def recent(self, key: str, now: float) -> deque[float]:
        times = self._times.get(key, deque())
        while times and times[0] <= now - _HOUR:
            times.popleft()
        return times

    def forget(self, key: str) -> None:
        self._times.pop(key, None)


class LoginGuard:
    """The function that Gradio asks whether a name and a password are right. Thread-safe."""

    def __init__(self, accounts: Sequence[tuple[str, str]], clock: Callable[[], float] = time.monotonic) -> None:
        self._key = secrets.token_bytes(32)
        self._accounts = [(self._digest(name), self._digest(password)) for name, password in accounts]
        self._clock = clock
        self._lock = threading.Lock()
        self._pairs, self._addresses, self._names = Failures(), Failures(), Failures()

    def __call__(self, name: str, password: str) -> bool:
        """Return whether the login is right; raises HTTPException 429 while the client has to wait."""
        address = login_address.get()
        # Digests bound the memory that a name takes.
        name_key = self._digest(name).hex()
        pair = f"{name_key} {address}"
        with self._lock:
            seconds = self._seconds_to_wait(name_key, address, pair)
            if seconds > 0:
                raise HTTPException(
                    429,
                    f"There were too many wrong logins: try again in {math.ceil(seconds)} s.",
                    {"Retry-After": str(math.ceil(seconds))},
                )
            right = self._is_right(name, password)
            if right:
                self._pairs.forget(pair)
            else:
                now = self._clock()
                self._pairs.add(pair, now, 16)
                self._addresses.add(address, now, FAILURES_OF_ADDRESS)
                self._names.add(name_key, now, FAILURES_OF_NAME)
        return right

    def _seconds_to_wait(self, name: str, address: str, pair: str) -> float:
        now = self._clock()
        failures = self._pairs.recent(pair, now)
        free = 1 if len(self._names.recent(name, now)) >= FAILURES_OF_NAME else FREE_FAILURES
        wait = 0.0
        if len(failures) >= free:
            wait = failures[-1] + min(MAX_WAIT_SECONDS, 2.0 ** (len(failures) - free + 1)) - now
        of_address = self._addresses.recent(address, now)
        if len(of_address) >= FAILURES_OF_ADDRESS:
            wait = max(wait, of_address[0] + _HOUR - now)
        return wait

    def _is_right(self, name: str, password: str) -> bool:
        given_name, given_password = self._digest(name), self._digest(password)
        found = False
        # All accounts are compared, so that the time tells nothing about the names.
        for account_name, account_password in self._accounts:
            same_name = hmac.compare_digest(account_name, given_name)
            same_password = hmac.compare_digest(account_password, given_password)
            found |= same_name & same_password
        return found

    def _digest(self, text: str) -> bytes:
        return hmac.digest(self._key, text.encode("utf-8", "surrogatepass"), "sha256")


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
