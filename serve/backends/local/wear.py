"""Adapters by the row: each line of the batch can wear one of its own, on a base that is never touched.

PEFT wraps the base's layers and calls `state_dict()` when it loads or removes an adapter; on a quantized CPU base
that ruins the weights (see loading.py), and it refuses adapters of several kinds in one model. Here the base keeps
its modules: a hook changes the lines that wear an adapter (deltas.py), and what an adapter puts before the prompt is
where the line's cache begins (prefix.py). So base rows are exactly what the bare base computes, and adapters come
and go without a trace.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from adapters.store import AdapterFolder
from adapters.weights import WEIGHTS_NAME
from errors import AdapterError
from serve.backends.local.deltas import Delta, ia3_deltas, lora_deltas
from serve.backends.local.prefix import Ahead, prefix_tuning, prompt_tuning
from serve.backends.local.worn import Adapter

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle
    from transformers import PreTrainedModel


def read_adapter(folder: AdapterFolder, model: PreTrainedModel, dtype: torch.dtype) -> Adapter:
    """Reads the tensors of a checked folder; AdapterError where one holds NaN or infinite values.

    Virtual tokens are read by the base here, so no other adapter may be worn meanwhile.
    """
    from safetensors.torch import load_file

    tensors = load_file(folder.path / WEIGHTS_NAME)
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise AdapterError(f"Adapter '{folder.name}' has NaN or infinite values in {name}: train it again.")
    config, technique = folder.config, folder.config["peft_type"]
    if technique == "LORA":
        adapter = Adapter(lora_deltas(config, tensors, dict(model.named_modules()), model.device, dtype))
    elif technique == "IA3":
        adapter = Adapter(ia3_deltas(config, tensors, model.device))
    else:
        read = prompt_tuning if technique == "PROMPT_TUNING" else prefix_tuning
        adapter = Adapter(ahead=read(model, config, tensors["prompt_embeddings"], folder.name))
    return adapter


class Wardrobe:
    """The resident adapters of one base, and which lines of the batch in flight wear which."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._modules = dict(model.named_modules())
        self._adapters: dict[str, Adapter] = {}
        self._spans: list[tuple[slice, Mapping[str, Delta]]] = []

    def add(self, name: str, adapter: Adapter) -> None:
        """Makes the adapter known; one of the same name is replaced as a whole."""
        self._adapters[name] = adapter

    def remove(self, name: str) -> None:
        """Forgets the adapter and frees its memory."""
        self._adapters.pop(name, None)

    def __contains__(self, name: str) -> bool:
        return name in self._adapters

    def ahead(self, name: str | None) -> Ahead | None:
        """What the adapter puts before the prompt."""
        return None if name is None else self._adapters[name].ahead

    @contextmanager
    def worn(self, names: Sequence[str | None]) -> Iterator[None]:
        """For the length of the block, line i wears `names[i]`. Hooks exist only inside and are always removed."""
        handles: list[RemovableHandle] = []
        try:
            self.set_rows(names)
            deltas = [self._adapters[name].deltas for name in set(names) if name is not None]
            for module in sorted({module for each in deltas for module in each}):
                handles.append(self._modules[module].register_forward_hook(self._after(module)))
                if any(module in each and each[module].changes_inputs for each in deltas):
                    handles.append(self._modules[module].register_forward_pre_hook(self._before(module)))
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._spans = []

    def set_rows(self, names: Sequence[str | None]) -> None:
        """Says anew which line wears what, after lines were dropped or multiplied. Neighbours share one product."""
        self._spans = []
        start = 0
        for end in range(1, len(names) + 1):
            if end == len(names) or names[end] != names[start]:
                name = names[start]
                if name is not None:
                    self._spans.append((slice(start, end), self._adapters[name].deltas))
                start = end

    def _of(self, module: str) -> Iterator[tuple[slice, Delta]]:
        for lines, deltas in self._spans:
            if module in deltas:
                yield lines, deltas[module]

    def _before(self, module: str) -> Any:
        def change_inputs(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            # A copy: other layers may read the same tensor.
            changed = inputs[0].clone()
            for lines, delta in self._of(module):
                delta.change_inputs(changed[lines])
            return changed, *inputs[1:]

        return change_inputs

    def _after(self, module: str) -> Any:
        def change_outputs(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            for lines, delta in self._of(module):
                # In place: the base's output of the other lines is left bit for bit as it is.
                delta.change_outputs(inputs[0][lines], output[lines])

        return change_outputs
