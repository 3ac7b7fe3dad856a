"""The adapters in memory, by name; a base is never touched by any of them."""

from __future__ import annotations

from collections.abc import Mapping
from threading import Lock
from typing import TYPE_CHECKING

import torch

from adapters.store import AdapterFolder
from errors import AdapterError, PeftArenaError
from serve.backends.local.deltas import Dora, ia3_deltas, lora_deltas
from serve.backends.local.prefix import prefix_tuning, prompt_tuning
from serve.backends.local.tensors import read_tensors
from serve.backends.local.worn import Adapter, Worn
from serve.rows import Row

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def read_adapter(folder: AdapterFolder, model: PreTrainedModel, modules: Mapping[str, torch.nn.Module]) -> Adapter:
    """Reads the tensors of a checked folder; AdapterError where one holds NaN or infinite values. For any thread."""
    tensors = read_tensors(folder)
    config, technique = folder.config, folder.config["peft_type"]
    size = sum(tensor.nbytes for tensor in tensors.values())
    if technique == "LORA":
        return Adapter(lora_deltas(config, tensors, modules, model.device), size=size)
    if technique == "IA3":
        return Adapter(ia3_deltas(config, tensors, model.device), size=size)
    read = prompt_tuning if technique == "PROMPT_TUNING" else prefix_tuning
    return Adapter(ahead=read(model, config, tensors["prompt_embeddings"], folder.name), size=size)


class Wardrobe:
    """The resident adapters of one base. Thread-safe; lines in flight keep the adapter that they wear."""

    def __init__(self) -> None:
        self._adapters: dict[str, Adapter] = {}
        self._lock = Lock()

    def add(self, name: str, adapter: Adapter) -> Adapter | None:
        """Makes the adapter known; one of the same name is replaced as a whole, and returned."""
        with self._lock:
            old = self._adapters.get(name)
            self._adapters[name] = adapter
            return old

    def remove(self, name: str) -> Adapter | None:
        """Forgets the adapter, and returns it."""
        with self._lock:
            return self._adapters.pop(name, None)

    def __contains__(self, name: str) -> bool:
        return name in self._adapters

    def __getitem__(self, name: str) -> Adapter:
        return self._adapters[name]

    def worn(self, row: Row) -> Worn | None:
        """What the row wears; PeftArenaError where its adapter is not here or cannot be worn at that strength."""
        if row.adapter is None:
            return None
        adapter = self._adapters.get(row.adapter)
        if adapter is None:
            raise AdapterError(f"Adapter '{row.adapter}' is not in memory any more: ask again.")
        if row.scale != 1 and (
            adapter.ahead is not None or any(isinstance(delta, Dora) for delta in adapter.deltas.values())
        ):
            raise PeftArenaError(
                f"Adapter '{row.adapter}' has one strength only: leave the number behind '*' out (LoRA without DoRA, "
                "and IA3, have others)."
            )
        return Worn(adapter, row.scale)
