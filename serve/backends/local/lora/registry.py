"""LoadedAdapter, AppliedAdapter, AdapterRegistry, tensor loading.

The adapters in memory, by name; a base is never touched by any of them.

What a line of the batch wears: an adapter in memory, and how strongly.

An adapter's tensors out of its file: those that were checked, and no other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING

import torch

from adapters.store import AdapterFolder
from adapters.weights import WEIGHTS_NAME, read_raw_tensors
from errors import AdapterError, PromptOrTuneError
from serve.backends.local.lora.layers import AdapterLayer, DoraLayer, LoraLayer, build_ia3_layers, build_lora_layers
from serve.backends.local.lora.prompt_learning import PromptPrefix, prefix_tuning, prompt_tuning
from serve.types import Row

if TYPE_CHECKING:
    from transformers import PreTrainedModel


# The names of safetensors; the store lets no other dtype pass.
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def load_tensors(folder: AdapterFolder) -> dict[str, torch.Tensor]:
    """The tensors of a checked folder, by name, as they lie in its file. For any thread.

    The file is read once, and what was read must have the digest of what the store has checked. The tensors are views
    of that one piece of memory, so an adapter that keeps them takes what its file takes. AdapterError where the file
    is another one by now, or where a value is NaN or infinite.
    """
    body = read_raw_tensors(folder.path / WEIGHTS_NAME, folder.sha256, folder.name)
    tensors = {}
    for name, place in body.tensors.items():
        count = math.prod(place.shape)
        tensor = torch.frombuffer(body.data, dtype=_DTYPES[place.dtype], count=count, offset=place.begin)
        # Nothing makes a file put its tensors where the processor likes them.
        tensors[name] = (tensor if place.begin % tensor.itemsize == 0 else tensor.clone()).view(place.shape)
    for name, tensor in tensors.items():
        # Both are NaN where any value is; `isfinite` of each value takes ten times as long.
        if not all(math.isfinite(end) for end in torch.aminmax(tensor)):
            raise AdapterError(f"Adapter '{folder.name}' has NaN or infinite values in {name}: train it again.")
    return tensors


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


def load_adapter(
    folder: AdapterFolder, model: PreTrainedModel, modules: Mapping[str, torch.nn.Module]
) -> LoadedAdapter:
    """Reads the tensors of a checked folder; AdapterError where one holds NaN or infinite values. For any thread."""
    tensors = load_tensors(folder)
    config, technique = folder.config, folder.config["peft_type"]
    size = sum(tensor.nbytes for tensor in tensors.values())
    if technique == "LORA":
        return LoadedAdapter(build_lora_layers(config, tensors, modules, model.device), size=size)
    if technique == "IA3":
        return LoadedAdapter(build_ia3_layers(config, tensors, model.device), size=size)
    read = prompt_tuning if technique == "PROMPT_TUNING" else prefix_tuning
    return LoadedAdapter(prompt_prefix=read(model, config, tensors["prompt_embeddings"], folder.name), size=size)


class AdapterRegistry:
    """The resident adapters of one base. Thread-safe; lines in flight keep the adapter that they wear."""

    def __init__(self) -> None:
        self._adapters: dict[str, LoadedAdapter] = {}
        self._lock = Lock()

    def add(self, name: str, adapter: LoadedAdapter) -> LoadedAdapter | None:
        """Makes the adapter known; one of the same name is replaced as a whole, and returned."""
        with self._lock:
            old = self._adapters.get(name)
            self._adapters[name] = adapter
            return old

    def remove(self, name: str) -> LoadedAdapter | None:
        """Forgets the adapter, and returns it."""
        with self._lock:
            return self._adapters.pop(name, None)

    def __contains__(self, name: str) -> bool:
        return name in self._adapters

    def __getitem__(self, name: str) -> LoadedAdapter:
        return self._adapters[name]

    def resolve(self, row: Row) -> AppliedAdapter | None:
        """What the row wears; PromptOrTuneError where its adapter is not here or cannot be worn at that strength."""
        if row.adapter is None:
            return None
        adapter = self._adapters.get(row.adapter)
        if adapter is None:
            raise AdapterError(f"Adapter '{row.adapter}' is not in memory any more: ask again.")
        if row.scale != 1 and (
            adapter.prompt_prefix is not None or any(isinstance(delta, DoraLayer) for delta in adapter.layers.values())
        ):
            raise PromptOrTuneError(
                f"Adapter '{row.adapter}' has one strength only: leave the number behind '*' out (LoRA without DoRA, "
                "and IA3, have others)."
            )
        return AppliedAdapter(adapter, row.scale)
