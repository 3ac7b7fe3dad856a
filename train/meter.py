"""How much a run has read, and how fast."""

from __future__ import annotations

import time


class Meter:
    """Counts the tokens read in training (without padding), and the seconds that it took without evaluations."""

    def __init__(self) -> None:
        self.tokens = 0
        # Those of a run that this one continues; they do not count towards the speed.
        self.earlier_tokens, self.earlier_seconds = 0, 0.0
        self.seconds = 0.0
        self._since: float | None = None

    def add(self, tokens: int) -> None:
        """Counts a batch of so many tokens."""
        self.tokens += tokens

    def go(self) -> None:
        """The clock runs from now on; starting it twice changes nothing."""
        if self._since is None:
            self._since = time.perf_counter()

    def rest(self) -> None:
        """The clock stands still: what follows is no training."""
        if self._since is not None:
            self.seconds += time.perf_counter() - self._since
            self._since = None

    @property
    def all_tokens(self) -> int:
        """With those before the run was continued."""
        return self.earlier_tokens + self.tokens

    @property
    def all_seconds(self) -> float:
        """With those before the run was continued."""
        return self.earlier_seconds + self._passed()

    @property
    def tokens_per_second(self) -> float:
        """Since the run began, or continued; 0 before the first step."""
        passed = self._passed()
        return self.tokens / passed if passed > 0 else 0.0

    def _passed(self) -> float:
        return self.seconds + (time.perf_counter() - self._since if self._since is not None else 0.0)
