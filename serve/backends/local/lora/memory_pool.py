"""The LoRA adapters of a batch side by side, so that lines with different ones share a product.

Each adapter in use has a slot in stacks of GroupT and B, one stack a fused product of the base; lines are sorted into a
grid of slots by lines and multiplied in two batched products, however many adapters there are (Punica's BGMV, arXiv
2310.18547, and S-LoRA, arXiv 2311.03285, do the same on GPUs). On a CPU the stacks are float32: batched products of
this size are quicker so than in bfloat16. What is worn is held once more for that, beside what AdapterCache count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import cast
from weakref import ref

import torch

from serve.backends.local.fused_llama import FusedProjection
from serve.backends.local.lora.layers import LoraLayer
from serve.backends.local.lora.registry import AppliedAdapter, LoadedAdapter

# Slots that may stay filled while nobody wears them.
MAX_IDLE_SLOTS = 8
# A slot's width is a multiple of this, so that a second adapter of another rank seldom means new stacks.
RANK_ALIGNMENT = 8

# Adds to what a site has computed of its places, (places, in) and (places, out), in place.
DeltaFn = Callable[[torch.Tensor, torch.Tensor], None]


@dataclass
class LoRABuffers:
    """Slots of one site: A is (slots, in, modules * rank); B is (slots, blocks, rank, block), its scale inside.

    A product of several layers is cut into blocks as wide as their widths' greatest common divisor, and `owner` says
    which layer each belongs to: so that one batched product serves layers of different widths.
    """

    a: torch.Tensor
    b: torch.Tensor
    module_indices: torch.Tensor


@dataclass(frozen=True)
class LoRABatchInfo:
    """Which places of a forward wear which slots: `places[i]` is the place in cell i of (slots, width).

    `kept` are the cells that hold a place (the others repeat one), None when all do. `scales` is (slots, width, 1).
    """

    slots: slice
    rows_per_slot: int
    gather_indices: torch.Tensor | slice
    valid_cells: torch.Tensor | None
    scatter_indices: torch.Tensor | slice
    scales: torch.Tensor | None


class LoRAMemoryPool:
    """The slots of one base. An adapter that nobody wears any more keeps its slot until another needs it, so its memory
    is given back when it is unloaded but for that of the slot, of which there are as many as were ever worn at once.
    """

    def __init__(self, projections: Mapping[str, FusedProjection], device: torch.device, dtype: torch.dtype) -> None:
        self._projections = projections
        self._device = device
        self._dtype = dtype
        self._slots: list[ref[LoadedAdapter] | None] = []
        self._rank = 0
        self._buffers: dict[str, LoRABuffers] = {}

    def activate(self, adapters: Iterable[LoadedAdapter], in_use: Container[LoadedAdapter]) -> None:
        """Gives each adapter a slot, in place of one that is not `worn` where there is one."""
        new = [adapter for adapter in adapters if adapter.lora_layers and self._slot(adapter) is None]
        if not new:
            return
        holders = [None if slot is None else slot() for slot in self._slots]
        free = [at for at, holder in enumerate(holders) if holder is None or holder not in in_use]
        free += range(len(holders), len(holders) + len(new))
        for adapter in new:
            self._reserve(free[len(new) - 1] + 1, adapter)
        for at, adapter in zip(free, new, strict=False):
            self._load_slot(at, adapter)
            self._slots[at] = ref(adapter)

    def release_idle(self) -> None:
        """Nobody wears anything now: what was last worn stays ready, unless it is much."""
        if len(self._slots) > MAX_IDLE_SLOTS or not any(slot is not None and slot() for slot in self._slots):
            self._slots, self._buffers, self._rank = [], {}, 0

    def decode_batch_info(self, row_adapters: Sequence[tuple[int, AppliedAdapter]]) -> LoRABatchInfo | None:
        """Single places and what they wear; None when none of them wears LoRA."""
        lines = [(cast("int", self._slot(worn.adapter)), place, worn.scale) for place, worn in row_adapters]
        if not lines:
            return None
        lines.sort(key=lambda line: line[0])
        low, high = lines[0][0], lines[-1][0] + 1
        counts = [0] * (high - low)
        cells = []
        for slot, _, _ in lines:
            cells.append((slot - low, counts[slot - low]))
            counts[slot - low] += 1
        width = max(counts)
        cells_at = [slot * width + rank for slot, rank in cells]
        taken = [lines[0][1]] * ((high - low) * width)
        scales = [1.0] * len(taken)
        for cell, (_, place, scale) in zip(cells_at, lines, strict=True):
            taken[cell], scales[cell] = place, scale
        full = len(lines) == len(taken)
        return LoRABatchInfo(
            slice(low, high),
            width,
            self._index(taken),
            None if full else torch.tensor(cells_at, device=self._device),
            self._index([place for _, place, _ in lines]),
            self._scales(scales, high - low),
        )

    def prefill_batch_info(self, rows: slice, applied_adapter: AppliedAdapter) -> LoRABatchInfo:
        """Many places of one line, or of lines that wear the same."""
        slot = cast("int", self._slot(applied_adapter.adapter))
        width = rows.stop - rows.start
        return LoRABatchInfo(
            slice(slot, slot + 1), width, rows, None, rows, self._scales([applied_adapter.scale] * width, 1)
        )

    def make_delta_fn(self, projection: str, batch_info: LoRABatchInfo) -> DeltaFn | None:
        """What the grid's slots change at a site, made ready to be called at every step; None where they do nothing."""
        stack = self._buffers.get(projection)
        if stack is None:
            return None
        a, b = stack.a[batch_info.slots], stack.b[batch_info.slots]
        if len(a) == 1:
            made = _single_adapter(a[0], _merge_blocks(b[0], stack.module_indices), self._dtype)
        elif batch_info.rows_per_slot == 1:
            made = _bgmv(a, b, stack.module_indices, self._dtype)
        else:
            made = _sgmv(a, b, stack.module_indices, self._dtype)

        def change(x: torch.Tensor, y: torch.Tensor) -> None:
            added = made(x[batch_info.gather_indices], batch_info.scales)
            if batch_info.valid_cells is not None:
                added = added[batch_info.valid_cells]
            if isinstance(batch_info.scatter_indices, slice):
                y[batch_info.scatter_indices].add_(added)
            else:
                y.index_add_(0, batch_info.scatter_indices, added.to(y.dtype))

        return change

    def _slot(self, adapter: LoadedAdapter) -> int | None:
        return next((at for at, slot in enumerate(self._slots) if slot is not None and slot() is adapter), None)

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
        """Room for that many slots of the adapter's rank, in every site that it changes."""
        known = len(self._slots)
        rank = -(-max(delta.a.shape[0] for delta in adapter.lora_layers.values()) // RANK_ALIGNMENT) * RANK_ALIGNMENT
        # Twice as many as before: growing copies all of them.
        count = known if slots <= known else max(slots, 2 * known)
        wider = max(rank, self._rank)
        wanted = {
            name for name, site in self._projections.items() if not adapter.lora_layers.keys().isdisjoint(site.modules)
        }
        for name in wanted | self._buffers.keys():
            old = self._buffers.get(name)
            if old is None or count > known or wider > self._rank:
                self._buffers[name] = self._enlarged(self._projections[name], old, count, wider)
        self._slots += [None] * (count - known)
        self._rank = wider

    def _enlarged(self, projection: FusedProjection, old: LoRABuffers | None, slots: int, rank: int) -> LoRABuffers:
        widths = projection.linear.output_sizes
        block = math.gcd(*widths)
        owner = [number for number, width in enumerate(widths) for _ in range(width // block)]
        stack = LoRABuffers(
            torch.zeros((slots, projection.in_features, len(widths) * rank), device=self._device, dtype=self._dtype),
            torch.zeros((slots, len(owner), rank, block), device=self._device, dtype=self._dtype),
            torch.tensor(owner, device=self._device),
        )
        if old is not None:
            count, before = len(old.a), old.b.shape[2]
            new = stack.a.view(slots, projection.in_features, len(widths), rank)
            new[:count, :, :, :before] = old.a.view(count, projection.in_features, len(widths), before)
            stack.b[:count, :, :before] = old.b
        return stack

    def _load_slot(self, slot: int, adapter: LoadedAdapter) -> None:
        for name, stack in self._buffers.items():
            site = self._projections[name]
            stack.a[slot].zero_()
            stack.b[slot].zero_()
            rank, block = stack.b.shape[2:]
            starts = [0, *accumulate(width // block for width in site.linear.output_sizes)]
            for number, module in enumerate(site.modules):
                delta = adapter.lora_layers.get(module)
                if delta is not None:
                    self._copy_layer(stack, slot, delta, number * rank, slice(starts[number], starts[number + 1]))

    def _copy_layer(self, buffers: LoRABuffers, slot: int, layer: LoraLayer, column: int, blocks: slice) -> None:
        rank = layer.a.shape[0]
        buffers.a[slot, :, column : column + rank] = layer.a.t()
        b = layer.b.to(self._dtype).mul(layer.scale)  # (out, rank)
        buffers.b[slot, blocks, :rank] = b.view(-1, buffers.b.shape[3], rank).transpose(1, 2)


# From what the cells of a grid read, (cells, in), and their scales to what is added, (cells, out).
_MatmulFn = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]


def _single_adapter(a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> _MatmulFn:
    """All lines wear one adapter: two plain products. `b` is (modules * rank, out)."""

    def made(x: torch.Tensor, scales: torch.Tensor | None) -> torch.Tensor:
        low = torch.mm(x.to(dtype), a)
        if scales is not None:
            low *= scales[0]
        return torch.mm(low, b)

    return made


def _bgmv(a: torch.Tensor, b: torch.Tensor, module_indices: torch.Tensor, dtype: torch.dtype) -> _MatmulFn:
    """A line for each slot. This runs twice a layer and step, so it does no more than it must."""
    slots, blocks, rank, block = b.shape
    modules, flat = a.shape[2] // rank, b.flatten(0, 1)

    def made(x: torch.Tensor, scales: torch.Tensor | None) -> torch.Tensor:
        low = torch.bmm(x.to(dtype).unsqueeze(1), a)
        if scales is not None:
            low *= scales
        if blocks > 1:
            low = low.view(slots, modules, rank).index_select(1, module_indices).view(slots * blocks, 1, rank)
        return torch.bmm(low, flat).view(slots, blocks * block)

    return made


def _sgmv(a: torch.Tensor, b: torch.Tensor, module_indices: torch.Tensor, dtype: torch.dtype) -> _MatmulFn:
    """Several lines for each slot."""
    slots, blocks, rank, block = b.shape
    modules, flat = a.shape[2] // rank, b.flatten(0, 1)

    def made(x: torch.Tensor, scales: torch.Tensor | None) -> torch.Tensor:
        low = torch.bmm(x.to(dtype).view(slots, -1, a.shape[1]), a)
        if scales is not None:
            low *= scales
        width = low.shape[1]
        low = low.view(slots, width, modules, rank)[:, :, module_indices].transpose(1, 2)
        added = torch.bmm(low.reshape(slots * blocks, width, rank), flat)
        return added.view(slots, blocks, width, block).transpose(1, 2).reshape(slots * width, blocks * block)

    return made


def _merge_blocks(b: torch.Tensor, module_indices: torch.Tensor) -> torch.Tensor:
    """One slot's blocks, (blocks, rank, block), as one matrix, (modules * rank, blocks * block)."""
    blocks, rank, block = b.shape
    if blocks == 1:
        return b[0]
    whole = b.new_zeros((int(module_indices[-1]) + 1, rank, blocks, block))
    whole[module_indices, :, torch.arange(blocks, device=b.device)] = b
    return whole.view(-1, blocks * block)
