"""AdviseOptions: the data set, the budget and the seed of one advice."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from errors import DataError

DEFAULT_MINUTES = 15.0
MIN_MINUTES, MAX_MINUTES = 2.0, 24 * 60.0


@dataclass(frozen=True)
class AdviseOptions:
    """What an advice is about. `data` is the name of a data set (tasks.datasets.registry) with training rows.

    `minutes` is the budget for everything: choices on validation rows, training, and the answers to the test rows.
    `memory_gb` is the most memory of a training in gigabytes (10**9 bytes), 0 for all that is free. The adapter that is
    worth keeping gets the name `adapter`.
    """

    data: str
    adapter: str
    minutes: float = DEFAULT_MINUTES
    seed: int = 42
    memory_gb: float = 0.0

    def __post_init__(self) -> None:
        if not MIN_MINUTES <= self.minutes <= MAX_MINUTES:
            raise DataError(f"{self.minutes:g} minutes are no budget: give {MIN_MINUTES:g} to {MAX_MINUTES:g}.")
        if not 0 <= self.memory_gb < math.inf:
            raise DataError(f"{self.memory_gb:g} GB are no limit of memory: give more, or 0 for all that is free.")

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> AdviseOptions:
        """Return the options that `to_json` wrote; raises DataError for values that are none."""
        try:
            return cls(
                str(values["data"]),
                str(values["adapter"]),
                float(values["minutes"]),
                int(values["seed"]),
                float(values.get("memory_gb", 0.0)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError("The options of this advice cannot be read: begin a new one.") from error

    def to_json(self) -> dict[str, Any]:
        """Return the options as values for JSON."""
        return asdict(self)
