"""How much a run has read, and how fast."""

from __future__ import annotations

import time


class ThroughputMeter:
    """Counts the tokens read in training (without padding), and the seconds that it took without evaluations."""

    def __init__(self) -> None:
        self.tokens = 0
        # Those of a run that this one continues; they do not count towards the speed.
        self.earlier_tokens, self.earlier_seconds = 0, 0.0
        self.seconds = 0.0
        self._started_at: float | None = None

    def add(self, tokens: int) -> None:
        """Counts a batch of so many tokens."""
        self.tokens += tokens

    def start(self) -> None:
        """The clock runs from now on; starting it twice changes nothing."""
        if self._started_at is None:
            self._started_at = time.perf_counter()

    def pause(self) -> None:
        """The clock stands still: what follows is no training."""
        if self._started_at is not None:
            self.seconds += time.perf_counter() - self._started_at
            self._started_at = None

    @property
    def total_tokens(self) -> int:
        """With those before the run was continued."""
        return self.earlier_tokens + self.tokens

    @property
    def total_seconds(self) -> float:
        """With those before the run was continued."""
        return self.earlier_seconds + self._elapsed()

    @property
    def tokens_per_second(self) -> float:
        """Since the run began, or continued; 0 before the first step."""
        passed = self._elapsed()
        return self.tokens / passed if passed > 0 else 0.0

    def _elapsed(self) -> float:
        return self.seconds + (time.perf_counter() - self._started_at if self._started_at is not None else 0.0)
