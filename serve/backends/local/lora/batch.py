"""Application of adapters to the rows of a batch, with the A and B matrices of all adapters stacked in one pool.

LoRA memory pool: the A and B matrices of all adapters in use, stacked so that one batched product serves them all. Each
adapter in use has a slot in the buffers; there is one pair of buffers per fused projection of the base. The rows of a
forward are sorted into a grid of slots by rows per slot, and two batched products compute all LoRA deltas, however many
adapters there are (on GPUs: Punica's BGMV and SGMV, arXiv 2310.18547, and S-LoRA, arXiv 2311.03285). On a CPU the
buffers are float32, because batched products of this size are faster than in bfloat16. The buffers are copies: their
memory comes on top of what AdapterCache counts.

`BatchedAdapters` prepares the adapters of one batch layout for `FusedLlama.forward`; it is made once per layout and
used for every step until sequences or slots change.

`adapter_hooks` does the same for bases that cannot be fused, with module hooks that exist during one forward. PEFT is
not used: it wraps the base's layers and calls `state_dict()` when it loads or removes an adapter, which breaks a
quantized base on a CPU (see models/loader.py), and it refuses adapters of several techniques in one model. With hooks
the base's modules stay unchanged, rows without an adapter are exactly the bare base's, and loading or unloading an
adapter changes nothing in the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, cast
from weakref import ref

import torch

from serve.backends.local.fused_llama import FusedProjection
from serve.backends.local.lora.adapter import AdapterLayer, AppliedAdapter, LoadedAdapter, LoraLayer

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

# Slots that may stay filled while no sequence uses an adapter.
MAX_IDLE_SLOTS = 8
# A slot's rank is rounded up to a multiple of this, so that adapters of other ranks seldom need new buffers.
RANK_ALIGNMENT = 8

# Adds the LoRA deltas for a projection's inputs, (rows, in), to its outputs, (rows, out), in place.
DeltaFn = Callable[[torch.Tensor, torch.Tensor], None]
# Rows of one sequence in a forward, and their adapter.
TokenSpan = tuple[slice, AppliedAdapter]


@dataclass
class LoRABuffers:
    """Slots of one fused projection: A is (slots, in, modules * rank), B is (slots, blocks, rank, block).

    B includes the adapter's alpha / r. A fused projection has modules of different output sizes (query, key, value),
    which one batched product cannot have. So outputs are cut into blocks of the sizes' greatest common divisor, and
    `module_indices`, (blocks,), is the module of each block: it selects the block's rank columns of x A.
    """

    a: torch.Tensor
    b: torch.Tensor
    module_indices: torch.Tensor


@dataclass(frozen=True)
class LoRABatchInfo:
    """The grid of one forward's LoRA rows: cell i of (slots, rows_per_slot) computes row `gather_indices[i]`.

    Slots with fewer rows repeat a row in their spare cells; `valid_cells` are the other cells, None when no cell is
    spare. `scatter_indices` are the rows of the valid cells in their order. `scales` is (slots, rows_per_slot, 1), None
    when all are 1.
    """

    slots: slice
    rows_per_slot: int
    gather_indices: torch.Tensor | slice
    valid_cells: torch.Tensor | None
    scatter_indices: torch.Tensor | slice
    scales: torch.Tensor | None


class LoRAMemoryPool:
    """The slots of one base.

    An adapter that is no longer used keeps its slot until another adapter needs it, so that its next row need not fill
    the slot again. Slots refer to adapters weakly: unloading an adapter frees its tensors, though not the slot. There
    are never more slots than twice the most adapters that were in use at once.
    """

    def __init__(self, projections: Mapping[str, FusedProjection], device: torch.device, dtype: torch.dtype) -> None:
        self._projections = projections
        self._device = device
        self._dtype = dtype
        self._slots: list[ref[LoadedAdapter] | None] = []
        self._rank = 0
        self._buffers: dict[str, LoRABuffers] = {}

    def activate(self, adapters: Iterable[LoadedAdapter], in_use: Container[LoadedAdapter]) -> None:
        """Give each LoRA adapter a slot, reusing those of adapters that are not `in_use` first.

        Buffers may be replaced by larger ones: BatchedAdapters made before must not be used afterwards.
        """
        new = [adapter for adapter in adapters if adapter.lora_layers and self._slot(adapter) is None]
        if not new:
            return
        slot_adapters = [None if slot is None else slot() for slot in self._slots]
        free = [
            slot_index
            for slot_index, slot_adapter in enumerate(slot_adapters)
            if slot_adapter is None or slot_adapter not in in_use
        ]
        free += range(len(slot_adapters), len(slot_adapters) + len(new))
        for adapter in new:
            self._reserve(free[len(new) - 1] + 1, adapter)
        for slot_index, adapter in zip(free, new, strict=False):
            self._load_slot(slot_index, adapter)
            self._slots[slot_index] = ref(adapter)

    def release_idle(self) -> None:
        """Free the buffers if they are large or empty; call it only while no sequence uses an adapter.

        Up to MAX_IDLE_SLOTS slots stay filled so that the next request with one of these adapters need not refill them.
        """
        if len(self._slots) > MAX_IDLE_SLOTS or not any(slot is not None and slot() for slot in self._slots):
            self._slots, self._buffers, self._rank = [], {}, 0

    def decode_batch_info(self, row_adapters: Sequence[tuple[int, AppliedAdapter]]) -> LoRABatchInfo | None:
        """Return the grid for single rows and their adapters; None without rows.

        The grid spans the slots from the lowest to the highest one in use: a slice of the buffers is a view, while
        selecting slots would copy them at every step. Unused slots in between compute repeated rows, which are dropped.
        """
        entries = [(cast("int", self._slot(applied.adapter)), row, applied.scale) for row, applied in row_adapters]
        if not entries:
            return None
        entries.sort(key=lambda entry: entry[0])
        first_slot, end_slot = entries[0][0], entries[-1][0] + 1
        counts = [0] * (end_slot - first_slot)
        cells = []
        for slot, _, _ in entries:
            cells.append((slot - first_slot, counts[slot - first_slot]))
            counts[slot - first_slot] += 1
        width = max(counts)
        flat_cells = [slot * width + rank for slot, rank in cells]
        gather_rows = [entries[0][1]] * ((end_slot - first_slot) * width)
        scales = [1.0] * len(gather_rows)
        for cell, (_, row, scale) in zip(flat_cells, entries, strict=True):
            gather_rows[cell], scales[cell] = row, scale
        is_full = len(entries) == len(gather_rows)
        return LoRABatchInfo(
            slice(first_slot, end_slot),
            width,
            self._index(gather_rows),
            None if is_full else torch.tensor(flat_cells, device=self._device),
            self._index([row for _, row, _ in entries]),
            self._scales(scales, end_slot - first_slot),
        )

    def prefill_batch_info(self, rows: slice, applied_adapter: AppliedAdapter) -> LoRABatchInfo:
        """Return the grid for consecutive rows with one adapter: one slot, no spare cells."""
        slot = cast("int", self._slot(applied_adapter.adapter))
        width = rows.stop - rows.start
        return LoRABatchInfo(
            slice(slot, slot + 1), width, rows, None, rows, self._scales([applied_adapter.scale] * width, 1)
        )

    def make_delta_fn(self, projection: str, batch_info: LoRABatchInfo) -> DeltaFn | None:
        """Return the function that adds the LoRA deltas at `projection`; None when no slot changes it.

        All indexing of the buffers is done here, because the function is called for every step of this layout.
        """
        buffers = self._buffers.get(projection)
        if buffers is None:
            return None
        a, b = buffers.a[batch_info.slots], buffers.b[batch_info.slots]
        if len(a) == 1:
            matmul = _single_adapter(a[0], _merge_blocks(b[0], buffers.module_indices), self._dtype)
        elif batch_info.rows_per_slot == 1:
            matmul = _bgmv(a, b, buffers.module_indices, self._dtype)
        else:
            matmul = _sgmv(a, b, buffers.module_indices, self._dtype)

        def add_delta(x: torch.Tensor, y: torch.Tensor) -> None:
            delta = matmul(x[batch_info.gather_indices], batch_info.scales)
            if batch_info.valid_cells is not None:
                delta = delta[batch_info.valid_cells]
            if isinstance(batch_info.scatter_indices, slice):
                y[batch_info.scatter_indices].add_(delta)
            else:
                y.index_add_(0, batch_info.scatter_indices, delta.to(y.dtype))

        return add_delta

    def _slot(self, adapter: LoadedAdapter) -> int | None:
        return next(
            (slot_index for slot_index, slot in enumerate(self._slots) if slot is not None and slot() is adapter), None
        )

    def _index(self, rows: Sequence[int]) -> torch.Tensor | slice:
        first = rows[0]
        if list(rows) == list(range(first, first + len(rows))):
            return slice(first, first + len(rows))
        return torch.tensor(rows, device=self._device)

    def _scales(self, scales: Sequence[float], slots: int) -> torch.Tensor | None:
        if all(scale == 1 for scale in scales):
            return None
        return torch.tensor(scales, device=self._device, dtype=self._dtype).view(slots, -1, 1)

    def _reserve(self, slots: int, adapter: LoadedAdapter) -> None:
        """Enlarge the buffers to `slots` slots of at least the adapter's rank, for every projection that it changes."""
        num_slots = len(self._slots)
        rank = -(-max(delta.a.shape[0] for delta in adapter.lora_layers.values()) // RANK_ALIGNMENT) * RANK_ALIGNMENT
        # At least twice as many as before, because enlarging copies all slots.
        count = num_slots if slots <= num_slots else max(slots, 2 * num_slots)
        new_rank = max(rank, self._rank)
        names = {
            name
            for name, module_projection in self._projections.items()
            if not adapter.lora_layers.keys().isdisjoint(module_projection.modules)
        }
        for name in names | self._buffers.keys():
            old = self._buffers.get(name)
            if old is None or count > num_slots or new_rank > self._rank:
                self._buffers[name] = self._enlarged(self._projections[name], old, count, new_rank)
        self._slots += [None] * (count - num_slots)
        self._rank = new_rank

    def _enlarged(self, projection: FusedProjection, old: LoRABuffers | None, slots: int, rank: int) -> LoRABuffers:
        widths = projection.linear.output_sizes
        block = math.gcd(*widths)
        module_indices = [number for number, width in enumerate(widths) for _ in range(width // block)]
        buffers = LoRABuffers(
            torch.zeros((slots, projection.in_features, len(widths) * rank), device=self._device, dtype=self._dtype),
            torch.zeros((slots, len(module_indices), rank, block), device=self._device, dtype=self._dtype),
            torch.tensor(module_indices, device=self._device),
        )
        if old is not None:
            count, before = len(old.a), old.b.shape[2]
            new = buffers.a.view(slots, projection.in_features, len(widths), rank)
            new[:count, :, :, :before] = old.a.view(count, projection.in_features, len(widths), before)
            buffers.b[:count, :, :before] = old.b
        return buffers

    def _load_slot(self, slot: int, adapter: LoadedAdapter) -> None:
        for name, buffers in self._buffers.items():
            module_projection = self._projections[name]
            buffers.a[slot].zero_()
            buffers.b[slot].zero_()
            rank, block = buffers.b.shape[2:]
            starts = [0, *accumulate(width // block for width in module_projection.linear.output_sizes)]
            for number, module in enumerate(module_projection.modules):
                delta = adapter.lora_layers.get(module)
                if delta is not None:
                    self._copy_layer(buffers, slot, delta, number * rank, slice(starts[number], starts[number + 1]))

    def _copy_layer(self, buffers: LoRABuffers, slot: int, layer: LoraLayer, column: int, blocks: slice) -> None:
        rank = layer.a.shape[0]
        buffers.a[slot, :, column : column + rank] = layer.a.t()
        b = layer.b.to(self._dtype).mul(layer.scale)  # (out, rank)
        buffers.b[slot, blocks, :rank] = b.view(-1, buffers.b.shape[3], rank).transpose(1, 2)


# Inputs of the grid's cells, (cells, in), and their scales -> deltas, (cells, out).
_MatmulFn = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]


def _single_adapter(a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> _MatmulFn:
    """Deltas of one slot for all rows: two plain products. `b` is (modules * rank, out)."""

    def matmul(x: torch.Tensor, scales: torch.Tensor | None) -> torch.Tensor:
        low_rank = torch.mm(x.to(dtype), a)
        if scales is not None:
            low_rank *= scales[0]
        return torch.mm(low_rank, b)

    return matmul


def _bgmv(a: torch.Tensor, b: torch.Tensor, module_indices: torch.Tensor, dtype: torch.dtype) -> _MatmulFn:
    """Deltas of several slots with one row each; called for every projection and step, so small operations count."""
    slots, blocks, rank, block = b.shape
    modules, flat = a.shape[2] // rank, b.flatten(0, 1)

    def matmul(x: torch.Tensor, scales: torch.Tensor | None) -> torch.Tensor:
        low_rank = torch.bmm(x.to(dtype).unsqueeze(1), a)
        if scales is not None:
            low_rank *= scales
        if blocks > 1:
            low_rank = low_rank.view(slots, modules, rank).index_select(1, module_indices).view(slots * blocks, 1, rank)
        return torch.bmm(low_rank, flat).view(slots, blocks * block)

    return matmul


def _sgmv(a: torch.Tensor, b: torch.Tensor, module_indices: torch.Tensor, dtype: torch.dtype) -> _MatmulFn:
    """Deltas of several slots with several rows each; `scales` and spare cells are those of LoRABatchInfo."""
    slots, blocks, rank, block = b.shape
    modules, flat = a.shape[2] // rank, b.flatten(0, 1)

    def matmul(x: torch.Tensor, scales: torch.Tensor | None) -> torch.Tensor:
        low_rank = torch.bmm(x.to(dtype).view(slots, -1, a.shape[1]), a)
        if scales is not None:
            low_rank *= scales
        width = low_rank.shape[1]
        low_rank = low_rank.view(slots, width, modules, rank)[:, :, module_indices].transpose(1, 2)
        delta = torch.bmm(low_rank.reshape(slots * blocks, width, rank), flat)
        return delta.view(slots, blocks, width, block).transpose(1, 2).reshape(slots * width, blocks * block)

    return matmul


def _merge_blocks(b: torch.Tensor, module_indices: torch.Tensor) -> torch.Tensor:
    """Return one slot's blocks, (blocks, rank, block), as a block matrix, (modules * rank, blocks * block)."""
    blocks, rank, block = b.shape
    if blocks == 1:
        return b[0]
    merged = b.new_zeros((int(module_indices[-1]) + 1, rank, blocks, block))
    merged[module_indices, :, torch.arange(blocks, device=b.device)] = b
    return merged.view(-1, blocks * block)


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
