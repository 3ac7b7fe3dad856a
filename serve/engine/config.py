"""How much an engine takes on, and what it says of its load."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from errors import PromptOrTuneError

EnginePhase = Literal["idle", "preparing", "generating", "closed"]


@dataclass(frozen=True)
class EngineConfig:
    """Bounds of one engine; whatever is beyond them waits, or is refused where waiting is bounded too.

    A line is one answer that grows: a row with several samples, or beams, has as many lines. `max_lines` bounds greedy
    decoding and sampling, `max_beam_lines` beam search, whose lines share what their prompt takes. `max_queued` rows
    may wait. `adapter_seconds` is how long a row waits for room in memory when all adapters there are in use.
    """

    max_num_seqs: int = 32
    max_num_beam_seqs: int = 160
    max_queued: int = 256
    max_loaded_adapters: int = 64
    max_loaded_adapter_bytes: int = 2 << 30
    adapter_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        for name in (
            "max_num_seqs",
            "max_num_beam_seqs",
            "max_queued",
            "max_loaded_adapters",
            "max_loaded_adapter_bytes",
        ):
            if getattr(self, name) < 1:
                raise PromptOrTuneError(f"The engine's limit {name} is {getattr(self, name)}: give at least 1.")

    @property
    def num_reserved_seqs(self) -> int:
        """Lines that only those may take who have none: so nobody waits for the end of another's long answers."""
        return self.max_num_seqs // 8


@dataclass(frozen=True)
class EngineStatus:
    """What an engine does now. `queued` rows wait, `lines` grow, and a new row would start in about `seconds`.

    "preparing" means that prompts are made, or adapters loaded, and no line grows yet.
    """

    queued: int
    num_seqs: int
    wait_seconds: float
    phase: EnginePhase
