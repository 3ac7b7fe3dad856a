"""Adapter application for one batch layout.

What the places of one forward wear, sorted by the product that it changes.

Made once for an arrangement of lines and used for every step until the arrangement changes.

Adapters by the row on a base whose own forward computes: hooks that exist for one forward only.

PEFT wraps the base's layers and calls `state_dict()` when it loads or removes an adapter; on a quantized CPU base
that ruins the weights (see loading.py), and it refuses adapters of several kinds in one model. Here the base keeps its
modules: a hook changes the rows that wear an adapter. So base rows are exactly what the bare base computes, and
adapters come and go without a trace. Bases that can be fused need none of this (fused_state.py).
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


# Places of one line, and what they wear.
TokenSpan = tuple[slice, AppliedAdapter]


@dataclass(frozen=True)
class _SpanPatch:
    """A delta of one layer for some rows; `columns` are the layer's share of its fused product."""

    rows: slice
    columns: slice
    layer: AdapterLayer
    module: torch.nn.Module


class BatchedAdapters:
    """The changes of one arrangement, ready for `FusedLlama.forward`."""

    def __init__(
        self,
        spans: Sequence[TokenSpan],
        lora_pool: LoRAMemoryPool,
        projections: Mapping[str, FusedProjection],
        modules: Mapping[str, torch.nn.Module],
    ) -> None:
        grids = _batch_infos(spans, lora_pool)
        made = {name: [lora_pool.make_delta_fn(name, grid) for grid in grids] for name in projections} if grids else {}
        self._lora_delta_fns = {name: [one for one in ready if one is not None] for name, ready in made.items()}
        self._input_patches: dict[str, list[_SpanPatch]] = {}
        self._output_patches: dict[str, list[_SpanPatch]] = {}
        homes = {module: (site, number) for site in projections.values() for number, module in enumerate(site.modules)}
        for rows, worn in _merge_spans(spans):
            for module, delta in worn.adapter.layers.items():
                if isinstance(delta, LoraLayer):
                    continue
                site, number = homes[module]
                starts = [0, *accumulate(site.linear.output_sizes)]
                change = _SpanPatch(
                    rows, slice(starts[number], starts[number + 1]), delta.scaled(worn.scale), modules[module]
                )
                # Layers that share a product read the same input: where one of them must read another, it computes
                # its own, after the product.
                alone = len(site.modules) == 1
                kind = self._input_patches if delta.changes_inputs and alone else self._output_patches
                kind.setdefault(site.name, []).append(change)

    def change_inputs(self, projection: str, x: torch.Tensor) -> torch.Tensor:
        """What the product shall read instead of `x`."""
        changes = self._input_patches.get(projection)
        if changes is None:
            return x
        x = x.clone()
        for change in changes:
            change.layer.change_inputs(x[change.rows])
        return x

    def change_outputs(self, projection: str, x: torch.Tensor, y: torch.Tensor) -> None:
        """Changes, in place, what the product has computed of `x`."""
        for change_low_rank in self._lora_delta_fns.get(projection, ()):
            change_low_rank(x, y)
        for change in self._output_patches.get(projection, ()):
            rows, columns = change.rows, change.columns
            if change.layer.changes_inputs:
                read = x[rows].clone()
                change.layer.change_inputs(read)
                y[rows, columns] = change.module(read)
            else:
                change.layer.change_outputs(x[rows], y[rows, columns])


def _batch_infos(spans: Sequence[TokenSpan], lora_pool: LoRAMemoryPool) -> list[LoRABatchInfo]:
    """Single places share one grid; a line with many places has its own, without the padding of a grid."""
    low_rank = [(rows, worn) for rows, worn in spans if worn.adapter.lora_layers]
    single = [(rows.start, worn) for rows, worn in low_rank if rows.stop - rows.start == 1]
    grid = lora_pool.decode_batch_info(single)
    several = [(rows, worn) for rows, worn in low_rank if rows.stop - rows.start > 1]
    return [
        *([] if grid is None else [grid]),
        *(lora_pool.prefill_batch_info(rows, worn) for rows, worn in _merge_spans(several)),
    ]


def _merge_spans(spans: Sequence[TokenSpan]) -> list[TokenSpan]:
    """Neighbours that wear the same as one span."""
    merged: list[TokenSpan] = []
    for rows, worn in spans:
        if merged and merged[-1][0].stop == rows.start and _same_adapter(merged[-1][1], worn):
            merged[-1] = (slice(merged[-1][0].start, rows.stop), worn)
        else:
            merged.append((rows, worn))
    return merged


def _same_adapter(one: AppliedAdapter, other: AppliedAdapter) -> bool:
    return one.adapter is other.adapter and one.scale == other.scale


_SpanLayer = tuple[slice, AdapterLayer]


@contextmanager
def adapter_hooks(
    modules: Mapping[str, torch.nn.Module], applied_adapters: Sequence[AppliedAdapter | None]
) -> Iterator[None]:
    """For the length of the block, row i of what the modules compute wears `worn[i]`."""
    handles: list[RemovableHandle] = []
    try:
        for name, changes in _layers_by_module(applied_adapters).items():
            handles.append(modules[name].register_forward_hook(_output_hook(changes)))
            if any(delta.changes_inputs for _, delta in changes):
                handles.append(modules[name].register_forward_pre_hook(_input_hook(changes)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _layers_by_module(applied_adapters: Sequence[AppliedAdapter | None]) -> dict[str, list[_SpanLayer]]:
    """Module name -> what changes there; neighbours that wear the same share one product."""
    found: dict[str, list[_SpanLayer]] = {}
    start = 0
    for end in range(1, len(applied_adapters) + 1):
        if end == len(applied_adapters) or applied_adapters[end] != applied_adapters[start]:
            one = applied_adapters[start]
            if one is not None:
                for name, delta in one.adapter.layers.items():
                    found.setdefault(name, []).append((slice(start, end), delta.scaled(one.scale)))
            start = end
    return found


def _input_hook(layers: Sequence[_SpanLayer]) -> Any:
    def change_inputs(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        # A copy: other layers may read the same tensor.
        changed = inputs[0].clone()
        for rows, delta in layers:
            delta.change_inputs(changed[rows])
        return changed, *inputs[1:]

    return change_inputs


def _output_hook(layers: Sequence[_SpanLayer]) -> Any:
    def change_outputs(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        for rows, delta in layers:
            # In place: the base's output of the other rows is left bit for bit as it is.
            delta.change_outputs(inputs[0][rows], output[rows])

    return change_outputs
