"""Application of adapters to the rows of a batch: patches for the fused forward, hooks for transformers' forward.

`BatchedAdapters` prepares the adapters of one batch layout for `FusedLlama.forward`; it is made once per layout and
used for every step until sequences or slots change.

`adapter_hooks` does the same for bases that cannot be fused, with module hooks that exist during one forward. PEFT is
not used: it wraps the base's layers and calls `state_dict()` when it loads or removes an adapter, which breaks a
quantized base on a CPU (see models/loader.py), and it refuses adapters of several techniques in one model. With hooks
the base's modules stay unchanged, rows without an adapter are exactly the bare base's, and loading or unloading an
adapter changes nothing in the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch

from serve.backends.local.fused_llama import FusedProjection
from serve.backends.local.lora.layers import AdapterLayer, LoraLayer
from serve.backends.local.lora.memory_pool import LoRABatchInfo, LoRAMemoryPool
from serve.backends.local.lora.registry import AppliedAdapter

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle


# Rows of one sequence in a forward, and their adapter.
TokenSpan = tuple[slice, AppliedAdapter]


@dataclass(frozen=True)
class _SpanPatch:
    """One layer of an adapter for some rows; `columns` are the module's outputs within its fused projection."""

    rows: slice
    columns: slice
    layer: AdapterLayer
    module: torch.nn.Module


class BatchedAdapters:
    """Implements LayerPatch (fused_llama.py) for one batch layout.

    LoRA layers go through the memory pool's batched products; DoRA and IA3 layers are applied span by span.
    """

    def __init__(
        self,
        spans: Sequence[TokenSpan],
        lora_pool: LoRAMemoryPool,
        projections: Mapping[str, FusedProjection],
        modules: Mapping[str, torch.nn.Module],
    ) -> None:
        batch_infos = _batch_infos(spans, lora_pool)
        delta_fns_by_projection = (
            {name: [lora_pool.make_delta_fn(name, batch_info) for batch_info in batch_infos] for name in projections}
            if batch_infos
            else {}
        )
        self._lora_delta_fns = {
            name: [delta_fn for delta_fn in delta_fns if delta_fn is not None]
            for name, delta_fns in delta_fns_by_projection.items()
        }
        self._input_patches: dict[str, list[_SpanPatch]] = {}
        self._output_patches: dict[str, list[_SpanPatch]] = {}
        projection_of_module = {
            module: (projection, index)
            for projection in projections.values()
            for index, module in enumerate(projection.modules)
        }
        for rows, applied in _merge_spans(spans):
            for module, layer in applied.adapter.layers.items():
                if isinstance(layer, LoraLayer):
                    continue
                projection, index = projection_of_module[module]
                starts = [0, *accumulate(projection.linear.output_sizes)]
                patch = _SpanPatch(
                    rows, slice(starts[index], starts[index + 1]), layer.scaled(applied.scale), modules[module]
                )
                # The modules of a fused projection read the same input. A module whose input is changed (IA3 in a
                # feed-forward layer) computes its own outputs again, after the fused product.
                is_alone = len(projection.modules) == 1
                patches = self._input_patches if layer.changes_inputs and is_alone else self._output_patches
                patches.setdefault(projection.name, []).append(patch)

    def change_inputs(self, projection: str, x: torch.Tensor) -> torch.Tensor:
        """Return the projection's input with the patches applied; `x` itself when there are none."""
        patches = self._input_patches.get(projection)
        if patches is None:
            return x
        x = x.clone()
        for patch in patches:
            patch.layer.change_inputs(x[patch.rows])
        return x

    def change_outputs(self, projection: str, x: torch.Tensor, y: torch.Tensor) -> None:
        """Change, in place, the projection's output `y` for input `x`."""
        for add_delta in self._lora_delta_fns.get(projection, ()):
            add_delta(x, y)
        for patch in self._output_patches.get(projection, ()):
            rows, columns = patch.rows, patch.columns
            if patch.layer.changes_inputs:
                inputs_copy = x[rows].clone()
                patch.layer.change_inputs(inputs_copy)
                y[rows, columns] = patch.module(inputs_copy)
            else:
                patch.layer.change_outputs(x[rows], y[rows, columns])


def _batch_infos(spans: Sequence[TokenSpan], lora_pool: LoRAMemoryPool) -> list[LoRABatchInfo]:
    """Return one info for all spans of a single row (decoding), and one for each longer span (prefill).

    A prefill span in the common grid would pad all other slots to its length.
    """
    lora_spans = [(rows, applied) for rows, applied in spans if applied.adapter.lora_layers]
    decode_rows = [(rows.start, applied) for rows, applied in lora_spans if rows.stop - rows.start == 1]
    batch_info = lora_pool.decode_batch_info(decode_rows)
    prefill_spans = [(rows, applied) for rows, applied in lora_spans if rows.stop - rows.start > 1]
    return [
        *([] if batch_info is None else [batch_info]),
        *(lora_pool.prefill_batch_info(rows, applied) for rows, applied in _merge_spans(prefill_spans)),
    ]


def _merge_spans(spans: Sequence[TokenSpan]) -> list[TokenSpan]:
    """Join adjacent spans with the same adapter and scale."""
    merged: list[TokenSpan] = []
    for rows, applied in spans:
        if merged and merged[-1][0].stop == rows.start and _same_adapter(merged[-1][1], applied):
            merged[-1] = (slice(merged[-1][0].start, rows.stop), applied)
        else:
            merged.append((rows, applied))
    return merged


def _same_adapter(first: AppliedAdapter, second: AppliedAdapter) -> bool:
    return first.adapter is second.adapter and first.scale == second.scale


_SpanLayer = tuple[slice, AdapterLayer]


@contextmanager
def adapter_hooks(
    modules: Mapping[str, torch.nn.Module], applied_adapters: Sequence[AppliedAdapter | None]
) -> Iterator[None]:
    """Apply `applied_adapters[i]` to row i of all modules for the duration of the block."""
    handles: list[RemovableHandle] = []
    try:
        for name, patches in _layers_by_module(applied_adapters).items():
            handles.append(modules[name].register_forward_hook(_output_hook(patches)))
            if any(layer.changes_inputs for _, layer in patches):
                handles.append(modules[name].register_forward_pre_hook(_input_hook(patches)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _layers_by_module(applied_adapters: Sequence[AppliedAdapter | None]) -> dict[str, list[_SpanLayer]]:
    """Return by module name the layers to apply; adjacent rows with the same adapter share one span."""
    layers_by_module: dict[str, list[_SpanLayer]] = {}
    start = 0
    for end in range(1, len(applied_adapters) + 1):
        if end == len(applied_adapters) or applied_adapters[end] != applied_adapters[start]:
            first = applied_adapters[start]
            if first is not None:
                for name, layer in first.adapter.layers.items():
                    layers_by_module.setdefault(name, []).append((slice(start, end), layer.scaled(first.scale)))
            start = end
    return layers_by_module


def _input_hook(layers: Sequence[_SpanLayer]) -> Any:
    def change_inputs(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        # A copy, because other modules may read the same tensor.
        inputs_copy = inputs[0].clone()
        for rows, layer in layers:
            layer.change_inputs(inputs_copy[rows])
        return inputs_copy, *inputs[1:]

    return change_inputs


def _output_hook(layers: Sequence[_SpanLayer]) -> Any:
    def change_outputs(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        for rows, layer in layers:
            # In place, so that the output of the other rows stays bit for bit the base's.
            layer.change_outputs(inputs[0][rows], output[rows])

    return change_outputs
