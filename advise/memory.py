"""Memory of an advice: its limit, and which techniques can be trained within it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.format import format_bytes
from errors import PromptOrTuneError

CHECKPOINTING = {"gradient_checkpointing": True}

# Returns the peak of a training with a technique and further settings in bytes; None where there is no estimate.
EstimateFn = Callable[[str, Mapping[str, Any]], int | None]


@dataclass(frozen=True)
class MemoryLimit:
    """The most bytes that an advice may use, and where the limit comes from. None: it is not known."""

    bytes: int | None
    text: str

    def allows(self, size: int | None) -> bool:
        """Return whether so many bytes are within the limit; what is not known is."""
        return size is None or self.bytes is None or size <= self.bytes


def memory_limit(given_gb: float, free: int | None) -> MemoryLimit:
    """Return the limit: the given gigabytes (0 for none), but no more than is free."""
    given = round(given_gb * 1e9)
    if given and (free is None or given <= free):
        return MemoryLimit(given, f"the limit is {format_bytes(given)}")
    if free is None:
        return MemoryLimit(None, "the free memory is not known")
    return MemoryLimit(free, f"{format_bytes(free)} are free")


def fit_techniques(techniques: Sequence[str], estimate: EstimateFn, limit: MemoryLimit) -> dict[str, Any]:
    """Return `settings` (those that each technique within the limit needs beside its own) and a `text` about all.

    A technique that is too large gets gradient checkpointing, which takes time instead of memory, and is left out where
    that is not enough. Raises PromptOrTuneError if none is left.
    """
    settings: dict[str, dict[str, Any]] = {}
    parts, smallest = [], None
    for technique in techniques:
        for more in ({}, CHECKPOINTING):
            size = estimate(technique, more)
            label = technique + (" with gradient checkpointing" if more else "")
            if limit.allows(size):
                settings[technique] = dict(more)
                parts.append(f"{label} about {format_bytes(size)}" if size is not None else f"{label} an unknown size")
                break
            if size is not None and (smallest is None or size < smallest[0]):
                smallest = size, label
        else:
            parts.append(f"{technique} more, so it is left out")
    if not settings and smallest is not None:
        size, label = smallest
        raise PromptOrTuneError(
            f"No training fits into the memory: {limit.text}, and {label} takes about {format_bytes(size)}. Free or "
            "allow as much, or choose a smaller base."
        )
    return {"settings": settings, "text": f"Memory of a training: {', '.join(parts)}; {limit.text}."}
