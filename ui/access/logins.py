"""Logins of --auth: compared in constant time, slowed after a few failures and locked after many.

What counts most is the pair of name and address: after a few failures it waits, longer each time. An address has a
number of failures an hour, whatever the names. A name alone is never locked, which would lock out its owner: while many
addresses try it, each has one attempt.
"""

from __future__ import annotations

import hmac
import math
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from contextvars import ContextVar

from starlette.exceptions import HTTPException

FREE_FAILURES = 5
FAILURES_OF_ADDRESS = 50  # an hour
FAILURES_OF_NAME = 200  # an hour, over all addresses
MAX_WAIT_SECONDS = 900.0
_HOUR = 3600.0
_MAX_ENTRIES = 10_000

# The address of the client of the request that is being answered; Gradio gives it to no login function.
login_address: ContextVar[str] = ContextVar("login_address", default="")


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
