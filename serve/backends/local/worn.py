"""What a line of the batch wears: an adapter in memory, and how strongly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from serve.backends.local.deltas import AdapterLayer, LoraLayer
from serve.backends.local.prefix import PromptPrefix


@dataclass(frozen=True, eq=False)
class LoadedAdapter:
    """An adapter in memory: its deltas by module name, or what it puts before the prompt; its size in bytes.

    Two adapters are the same only if they are the same object: a folder that was loaded anew is another adapter.
    """

    layers: Mapping[str, AdapterLayer] = field(default_factory=dict)
    prompt_prefix: PromptPrefix | None = None
    size: int = 0

    @cached_property
    def lora_layers(self) -> Mapping[str, LoraLayer]:
        """The plain LoRA deltas among them."""
        return {name: delta for name, delta in self.layers.items() if isinstance(delta, LoraLayer)}


@dataclass(frozen=True)
class AppliedAdapter:
    """An adapter with the factor on what it changes; 1 is the adapter as it was trained."""

    adapter: LoadedAdapter
    scale: float = 1.0
