"""Retries with growing waits, for engines, servers and sandboxes that fail and may work again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from errors import BusyError, EngineError, PromptOrTuneError, SandboxClosedError, SandboxError

_TRANSIENT = (EngineError, BusyError, SandboxError)
_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class RetryPolicy:
    """The waits in seconds between tries. `sleep` replaces time.sleep in tests.

    A server that asks for a wait gets that one if it is longer, but none beyond `max_wait`: then there is no retry.
    """

    waits: tuple[float, ...] = (1.0, 5.0, 20.0)
    max_wait: float = 120.0
    sleep: Callable[[float], object] | None = None


DEFAULT_RETRIES = RetryPolicy()


class Retries:
    """Counts the failures of one piece of work; `count` is the number of tries so far that failed in a row."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self.count = 0

    def reset(self) -> None:
        """Start to count again, because some of the work was done."""
        self.count = 0

    def wait(self, error: PromptOrTuneError) -> bool:
        """Wait for the next try after a failure; return False, at once, if another try is of no use or none is left."""
        self.count += 1
        transient = isinstance(error, _TRANSIENT) and not isinstance(error, SandboxClosedError)
        if not transient or self.count > len(self._policy.waits):
            return False
        seconds = self._policy.waits[self.count - 1]
        if isinstance(error, BusyError):
            seconds = max(seconds, error.seconds)
        if seconds > self._policy.max_wait:
            return False
        _log.info("%s Trying again in %g s.", error, seconds)
        (self._policy.sleep or time.sleep)(seconds)
        return True

    def describe(self, error: PromptOrTuneError) -> str:
        """Return the error's message as the beginning of a sentence, with the number of tries if there were several."""
        return str(error).rstrip(".") + (f" (tried {self.count} times)" if self.count > 1 else "")


def call_with_retries(function: Callable[[], T], policy: RetryPolicy) -> T:
    """Return the function's result; call it again after errors that may pass, and raise the last one at the end."""
    retries = Retries(policy)
    while True:
        try:
            return function()
        except PromptOrTuneError as error:
            if not retries.wait(error):
                raise
