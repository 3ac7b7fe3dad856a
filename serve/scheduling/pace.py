"""How long it is until a row that waits now has its turn, from how long rows took so far."""

from __future__ import annotations

_INITIAL_SECONDS = 5.0
_SMOOTHING = 0.1


class WaitEstimator:
    """A moving average of the seconds that rows take in the batch."""

    def __init__(self) -> None:
        self._mean_seconds = _INITIAL_SECONDS
        self._has_observations = False

    def observe(self, seconds: float) -> None:
        """A row has its answer after so many seconds in the batch."""
        if not self._has_observations:
            self._mean_seconds, self._has_observations = seconds, True
        self._mean_seconds += _SMOOTHING * (seconds - self._mean_seconds)

    def estimate(self, rows: int, concurrency: int) -> float:
        """Seconds until so many more rows have ended, where `together` of them grow at a time (Little's law)."""
        return rows * self._mean_seconds / max(1, concurrency)
