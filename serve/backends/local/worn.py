"""What a line of the batch wears: an adapter in memory, and how strongly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from serve.backends.local.deltas import Delta, Lora
from serve.backends.local.prefix import Ahead


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter in memory: its deltas by module name, or what it puts before the prompt; its size in bytes.

    Two adapters are the same only if they are the same object: a folder that was loaded anew is another adapter.
    """

    deltas: Mapping[str, Delta] = field(default_factory=dict)
    ahead: Ahead | None = None
    size: int = 0

    @cached_property
    def low_rank(self) -> Mapping[str, Lora]:
        """The plain LoRA deltas among them."""
        return {name: delta for name, delta in self.deltas.items() if isinstance(delta, Lora)}


@dataclass(frozen=True)
class Worn:
    """An adapter with the factor on what it changes; 1 is the adapter as it was trained."""

    adapter: Adapter
    scale: float = 1.0
