"""How long it is until a row that waits now has its turn, from how long rows took so far."""

from __future__ import annotations

_FIRST_GUESS = 5.0
_SHARE_OF_THE_LAST = 0.1


class Pace:
    """A moving average of the seconds that rows take in the batch."""

    def __init__(self) -> None:
        self._seconds = _FIRST_GUESS
        self._known = False

    def landed(self, seconds: float) -> None:
        """A row has its answer after so many seconds in the batch."""
        if not self._known:
            self._seconds, self._known = seconds, True
        self._seconds += _SHARE_OF_THE_LAST * (seconds - self._seconds)

    def until(self, rows: int, together: int) -> float:
        """Seconds until so many more rows have ended, where `together` of them grow at a time (Little's law)."""
        return rows * self._seconds / max(1, together)
