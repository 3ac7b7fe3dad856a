"""How much an engine takes on, and what it says of its load."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from errors import PeftArenaError

Phase = Literal["idle", "preparing", "generating", "closed"]


@dataclass(frozen=True)
class EngineLimits:
    """Bounds of one engine; whatever is beyond them waits, or is refused where waiting is bounded too.

    A line is one answer that grows: a row with several samples, or beams, has as many lines. `max_lines` bounds greedy
    decoding and sampling, `max_beam_lines` beam search, whose lines share what their prompt takes. `max_queued` rows
    may wait. `adapter_seconds` is how long a row waits for room in memory when all adapters there are in use.
    """

    max_lines: int = 32
    max_beam_lines: int = 160
    max_queued: int = 256
    max_resident: int = 64
    max_resident_bytes: int = 2 << 30
    adapter_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name in ("max_lines", "max_beam_lines", "max_queued", "max_resident", "max_resident_bytes"):
            if getattr(self, name) < 1:
                raise PeftArenaError(f"The engine's limit {name} is {getattr(self, name)}: give at least 1.")

    @property
    def reserved_lines(self) -> int:
        """Lines that only those may take who have none: so nobody waits for the end of another's long answers."""
        return self.max_lines // 8


@dataclass(frozen=True)
class EngineStatus:
    """What an engine does now. `queued` rows wait, `lines` grow, and a new row would start in about `seconds`.

    "preparing" means that prompts are made, or adapters loaded, and no line grows yet.
    """

    queued: int
    lines: int
    seconds: float
    phase: Phase
