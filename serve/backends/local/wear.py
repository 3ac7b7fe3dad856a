"""The adapters in memory, by name; a base is never touched by any of them."""

from __future__ import annotations

from collections.abc import Mapping
from threading import Lock
from typing import TYPE_CHECKING

import torch

from adapters.store import AdapterFolder
from errors import AdapterError, PromptOrTuneError
from serve.backends.local.deltas import DoraLayer, build_ia3_layers, build_lora_layers
from serve.backends.local.prefix import prefix_tuning, prompt_tuning
from serve.backends.local.tensors import load_tensors
from serve.backends.local.worn import AppliedAdapter, LoadedAdapter
from serve.rows import Row

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
