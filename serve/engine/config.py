"""Engine configuration and status: limits of one engine, and the load that it reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from errors import PromptOrTuneError

EnginePhase = Literal["idle", "preparing", "generating", "closed"]


@dataclass(frozen=True)
class EngineConfig:
    """Limits of one engine. Work beyond them waits in the queue; a call is refused if the queue is full.

    `max_num_seqs` limits the running sequences of greedy decoding and sampling: a row with several samples has one
    sequence per sample. `max_num_beam_seqs` limits those of beam search; it is higher because the beams of a row
    share the KV cache of its prompt. `max_queued` limits the waiting rows. `adapter_timeout_s` is the time that a row
    waits for memory while all loaded adapters are in use. Raises PromptOrTuneError for a limit below 1.
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
        """Number of sequences reserved for owners without a running sequence.

        Without this reserve one owner with many long answers could fill the batch, and the first row of every other
        owner would wait until one of those answers ends.
        """
        return self.max_num_seqs // 8


@dataclass(frozen=True)
class EngineStatus:
    """Load of an engine: waiting rows, running sequences, and the estimated seconds until a new row would start.

    The phase "preparing" means that prompts are rendered or adapters loaded and no sequence is running yet.
    """

    queued: int
    num_seqs: int
    wait_seconds: float
    phase: EnginePhase
