"""Registry of loaded adapters, and the loading of an adapter's tensors from its checked folder.

Adapters are kept beside the base: none of them changes its modules or weights.
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


# By their names in safetensors files; the adapter store refuses other dtypes.
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def load_tensors(folder: AdapterFolder) -> dict[str, torch.Tensor]:
    """Load the tensors of a checked folder by name, in the dtypes of its file. Callable from any thread.

    The file is read once, and its digest must be that of the file that the store has checked. The tensors are views of
    the bytes that were read, so an adapter takes as much memory as its file. Raises AdapterError when the file has
    changed since the checks, or when a value is NaN or infinite.
    """
    raw = read_raw_tensors(folder.path / WEIGHTS_NAME, folder.sha256, folder.name)
    tensors = {}
    for name, entry in raw.tensors.items():
        count = math.prod(entry.shape)
        tensor = torch.frombuffer(raw.data, dtype=_DTYPES[entry.dtype], count=count, offset=entry.begin)
        # Tensors in a file need not be aligned, and unaligned views are slow or fail: copy those.
        tensors[name] = (tensor if entry.begin % tensor.itemsize == 0 else tensor.clone()).view(entry.shape)
    for name, tensor in tensors.items():
        # Both bounds are NaN when any value is; `isfinite` of each value takes ten times as long.
        if not all(math.isfinite(bound) for bound in torch.aminmax(tensor)):
            raise AdapterError(f"Adapter '{folder.name}' has NaN or infinite values in {name}: train it again.")
    return tensors


@dataclass(frozen=True, eq=False)
class LoadedAdapter:
    """An adapter in memory: its layers by module name or its prompt prefix, and its size in bytes.

    Adapters are compared by identity: a folder that is loaded again is another adapter.
    """

    layers: Mapping[str, AdapterLayer] = field(default_factory=dict)
    prompt_prefix: PromptPrefix | None = None
    size: int = 0

    @cached_property
    def lora_layers(self) -> Mapping[str, LoraLayer]:
        """The LoRA layers, without DoRA ones."""
        return {name: layer for name, layer in self.layers.items() if isinstance(layer, LoraLayer)}


@dataclass(frozen=True)
class AppliedAdapter:
    """An adapter and its scale (1.0 = as trained)."""

    adapter: LoadedAdapter
    scale: float = 1.0


def load_adapter(
    folder: AdapterFolder, model: PreTrainedModel, modules: Mapping[str, torch.nn.Module]
) -> LoadedAdapter:
    """Load a checked folder for `model`. Callable from any thread.

    Raises AdapterError for NaN or infinite values, for a changed file, or for a prefix that the base cannot use.
    """
    tensors = load_tensors(folder)
    config, technique = folder.config, folder.config["peft_type"]
    size = sum(tensor.nbytes for tensor in tensors.values())
    if technique == "LORA":
        return LoadedAdapter(build_lora_layers(config, tensors, modules, model.device), size=size)
    if technique == "IA3":
        return LoadedAdapter(build_ia3_layers(config, tensors, model.device), size=size)
    build_prefix = prompt_tuning if technique == "PROMPT_TUNING" else prefix_tuning
    return LoadedAdapter(
        prompt_prefix=build_prefix(model, config, tensors["prompt_embeddings"], folder.name), size=size
    )


def cannot_scale_message(name: str) -> str:
    """Return the message for an adapter that is requested at a scale and has none."""
    return (
        f"Adapter '{name}' cannot be scaled: leave the number after '*' out (only LoRA without DoRA and IA3 can be "
        "scaled)."
    )


class AdapterRegistry:
    """The loaded adapters of one base by name. Thread-safe; running rows keep the adapter that they started with."""

    def __init__(self) -> None:
        self._adapters: dict[str, LoadedAdapter] = {}
        self._lock = Lock()

    def add(self, name: str, adapter: LoadedAdapter) -> LoadedAdapter | None:
        """Add the adapter; return the one of the same name that it replaces, or None."""
        with self._lock:
            old = self._adapters.get(name)
            self._adapters[name] = adapter
            return old

    def remove(self, name: str) -> LoadedAdapter | None:
        """Remove and return the adapter; None if there is none of that name."""
        with self._lock:
            return self._adapters.pop(name, None)

    def __contains__(self, name: str) -> bool:
        return name in self._adapters

    def __getitem__(self, name: str) -> LoadedAdapter:
        return self._adapters[name]

    def resolve(self, row: Row) -> AppliedAdapter | None:
        """Return the row's adapter and scale; raises PromptOrTuneError if it is not loaded or cannot be scaled."""
        if row.adapter is None:
            return None
        adapter = self._adapters.get(row.adapter)
        if adapter is None:
            raise AdapterError(f"Adapter '{row.adapter}' is not in memory any more: try again.")
        if row.scale != 1 and (
            adapter.prompt_prefix is not None or any(isinstance(layer, DoraLayer) for layer in adapter.layers.values())
        ):
            raise PromptOrTuneError(cannot_scale_message(row.adapter))
        return AppliedAdapter(adapter, row.scale)
