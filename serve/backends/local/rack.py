"""The LoRA adapters of a batch side by side, so that lines with different ones share a product.

Each adapter in use has a slot in stacks of A and B, one stack a fused product of the base; lines are sorted into a
grid of slots by lines and multiplied in two batched products, however many adapters there are (Punica's BGMV, arXiv
2310.18547, and S-LoRA, arXiv 2311.03285, do the same on GPUs). On a CPU the stacks are float32: batched products of
this size are quicker so than in bfloat16. What is worn is held once more for that, beside what Residents count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import cast
from weakref import ref

import torch

from serve.backends.local.deltas import Lora
from serve.backends.local.fused import Site
from serve.backends.local.worn import Adapter, Worn

# Slots that may stay filled while nobody wears them.
_KEPT = 8
# A slot's width is a multiple of this, so that a second adapter of another rank seldom means new stacks.
_RANKS = 8

# Adds to what a site has computed of its places, (places, in) and (places, out), in place.
Change = Callable[[torch.Tensor, torch.Tensor], None]


@dataclass
class _Stack:
    """Slots of one site: A is (slots, in, modules * rank); B is (slots, blocks, rank, block), its scale inside.

    A product of several layers is cut into blocks as wide as their widths' greatest common divisor, and `owner` says
    which layer each belongs to: so that one batched product serves layers of different widths.
    """

    a: torch.Tensor
    b: torch.Tensor
    owner: torch.Tensor


@dataclass(frozen=True)
class Grid:
    """Which places of a forward wear which slots: `places[i]` is the place in cell i of (slots, width).

    `kept` are the cells that hold a place (the others repeat one), None when all do. `scales` is (slots, width, 1).
    """

    slots: slice
    width: int
    places: torch.Tensor | slice
    kept: torch.Tensor | None
    written: torch.Tensor | slice
    scales: torch.Tensor | None


class Rack:
    """The slots of one base. An adapter that nobody wears any more keeps its slot until another needs it, so its memory
    is given back when it is unloaded but for that of the slot, of which there are as many as were ever worn at once.
    """

    def __init__(self, sites: Mapping[str, Site], device: torch.device, dtype: torch.dtype) -> None:
        self._sites = sites
        self._device = device
        self._dtype = dtype
        self._slots: list[ref[Adapter] | None] = []
        self._rank = 0
        self._stacks: dict[str, _Stack] = {}

    def hold(self, adapters: Iterable[Adapter], worn: Container[Adapter]) -> None:
        """Gives each adapter a slot, in place of one that is not `worn` where there is one."""
        new = [adapter for adapter in adapters if adapter.low_rank and self._slot(adapter) is None]
        if not new:
            return
        holders = [None if slot is None else slot() for slot in self._slots]
        free = [at for at, holder in enumerate(holders) if holder is None or holder not in worn]
        free += range(len(holders), len(holders) + len(new))
        for adapter in new:
            self._reserve(free[len(new) - 1] + 1, adapter)
        for at, adapter in zip(free, new, strict=False):
            self._fill(at, adapter)
            self._slots[at] = ref(adapter)

    def rest(self) -> None:
        """Nobody wears anything now: what was last worn stays ready, unless it is much."""
        if len(self._slots) > _KEPT or not any(slot is not None and slot() for slot in self._slots):
            self._slots, self._stacks, self._rank = [], {}, 0

    def grid(self, places: Sequence[tuple[int, Worn]]) -> Grid | None:
        """Single places and what they wear; None when none of them wears LoRA."""
        lines = [(cast("int", self._slot(worn.adapter)), place, worn.scale) for place, worn in places]
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
        return Grid(
            slice(low, high),
            width,
            self._index(taken),
            None if full else torch.tensor(cells_at, device=self._device),
            self._index([place for _, place, _ in lines]),
            self._scales(scales, high - low),
        )

    def span(self, rows: slice, worn: Worn) -> Grid:
        """Many places of one line, or of lines that wear the same."""
        slot = cast("int", self._slot(worn.adapter))
        width = rows.stop - rows.start
        return Grid(slice(slot, slot + 1), width, rows, None, rows, self._scales([worn.scale] * width, 1))

    def product(self, site: str, grid: Grid) -> Change | None:
        """What the grid's slots change at a site, made ready to be called at every step; None where they do nothing."""
        stack = self._stacks.get(site)
        if stack is None:
            return None
        a, b = stack.a[grid.slots], stack.b[grid.slots]
        if len(a) == 1:
            made = _one(a[0], _dense(b[0], stack.owner), self._dtype)
        elif grid.width == 1:
            made = _one_each(a, b, stack.owner, self._dtype)
        else:
            made = _several_each(a, b, stack.owner, self._dtype)

        def change(x: torch.Tensor, y: torch.Tensor) -> None:
            added = made(x[grid.places], grid.scales)
            if grid.kept is not None:
                added = added[grid.kept]
            if isinstance(grid.written, slice):
                y[grid.written].add_(added)
            else:
                y.index_add_(0, grid.written, added.to(y.dtype))

        return change

    def _slot(self, adapter: Adapter) -> int | None:
        return next((at for at, slot in enumerate(self._slots) if slot is not None and slot() is adapter), None)

    def _index(self, places: Sequence[int]) -> torch.Tensor | slice:
        first = places[0]
        if list(places) == list(range(first, first + len(places))):
            return slice(first, first + len(places))
        return torch.tensor(places, device=self._device)

    def _scales(self, scales: Sequence[float], slots: int) -> torch.Tensor | None:
        if all(scale == 1 for scale in scales):
            return None
        return torch.tensor(scales, device=self._device, dtype=self._dtype).view(slots, -1, 1)

    def _reserve(self, slots: int, adapter: Adapter) -> None:
        """Room for that many slots of the adapter's rank, in every site that it changes."""
        known = len(self._slots)
        rank = -(-max(delta.a.shape[0] for delta in adapter.low_rank.values()) // _RANKS) * _RANKS
        # Twice as many as before: growing copies all of them.
        count = known if slots <= known else max(slots, 2 * known)
        wider = max(rank, self._rank)
        wanted = {name for name, site in self._sites.items() if not adapter.low_rank.keys().isdisjoint(site.modules)}
        for name in wanted | self._stacks.keys():
            old = self._stacks.get(name)
            if old is None or count > known or wider > self._rank:
                self._stacks[name] = self._enlarged(self._sites[name], old, count, wider)
        self._slots += [None] * (count - known)
        self._rank = wider

    def _enlarged(self, site: Site, old: _Stack | None, slots: int, rank: int) -> _Stack:
        widths = site.product.widths
        block = math.gcd(*widths)
        owner = [number for number, width in enumerate(widths) for _ in range(width // block)]
        stack = _Stack(
            torch.zeros((slots, site.in_features, len(widths) * rank), device=self._device, dtype=self._dtype),
            torch.zeros((slots, len(owner), rank, block), device=self._device, dtype=self._dtype),
            torch.tensor(owner, device=self._device),
        )
        if old is not None:
            count, before = len(old.a), old.b.shape[2]
            new = stack.a.view(slots, site.in_features, len(widths), rank)
            new[:count, :, :, :before] = old.a.view(count, site.in_features, len(widths), before)
            stack.b[:count, :, :before] = old.b
        return stack

    def _fill(self, slot: int, adapter: Adapter) -> None:
        for name, stack in self._stacks.items():
            site = self._sites[name]
            stack.a[slot].zero_()
            stack.b[slot].zero_()
            rank, block = stack.b.shape[2:]
            starts = [0, *accumulate(width // block for width in site.product.widths)]
            for number, module in enumerate(site.modules):
                delta = adapter.low_rank.get(module)
                if delta is not None:
                    self._put(stack, slot, delta, number * rank, slice(starts[number], starts[number + 1]))

    def _put(self, stack: _Stack, slot: int, delta: Lora, column: int, blocks: slice) -> None:
        rank = delta.a.shape[0]
        stack.a[slot, :, column : column + rank] = delta.a.t()
        b = delta.b.to(self._dtype).mul(delta.scale)  # (out, rank)
        stack.b[slot, blocks, :rank] = b.view(-1, stack.b.shape[3], rank).transpose(1, 2)


# From what the cells of a grid read, (cells, in), and their scales to what is added, (cells, out).
_Made = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]


def _one(a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> _Made:
    """All lines wear one adapter: two plain products. `b` is (modules * rank, out)."""

    def made(x: torch.Tensor, scales: torch.Tensor | None) -> torch.Tensor:
        low = torch.mm(x.to(dtype), a)
        if scales is not None:
            low *= scales[0]
        return torch.mm(low, b)

    return made


def _one_each(a: torch.Tensor, b: torch.Tensor, owner: torch.Tensor, dtype: torch.dtype) -> _Made:
    """A line for each slot. This runs twice a layer and step, so it does no more than it must."""
    slots, blocks, rank, block = b.shape
    modules, flat = a.shape[2] // rank, b.flatten(0, 1)

    def made(x: torch.Tensor, scales: torch.Tensor | None) -> torch.Tensor:
        low = torch.bmm(x.to(dtype).unsqueeze(1), a)
        if scales is not None:
            low *= scales
        if blocks > 1:
            low = low.view(slots, modules, rank).index_select(1, owner).view(slots * blocks, 1, rank)
        return torch.bmm(low, flat).view(slots, blocks * block)

    return made


def _several_each(a: torch.Tensor, b: torch.Tensor, owner: torch.Tensor, dtype: torch.dtype) -> _Made:
    """Several lines for each slot."""
    slots, blocks, rank, block = b.shape
    modules, flat = a.shape[2] // rank, b.flatten(0, 1)

    def made(x: torch.Tensor, scales: torch.Tensor | None) -> torch.Tensor:
        low = torch.bmm(x.to(dtype).view(slots, -1, a.shape[1]), a)
        if scales is not None:
            low *= scales
        width = low.shape[1]
        low = low.view(slots, width, modules, rank)[:, :, owner].transpose(1, 2)
        added = torch.bmm(low.reshape(slots * blocks, width, rank), flat)
        return added.view(slots, blocks, width, block).transpose(1, 2).reshape(slots * width, blocks * block)

    return made


def _dense(b: torch.Tensor, owner: torch.Tensor) -> torch.Tensor:
    """One slot's blocks, (blocks, rank, block), as one matrix, (modules * rank, blocks * block)."""
    blocks, rank, block = b.shape
    if blocks == 1:
        return b[0]
    whole = b.new_zeros((int(owner[-1]) + 1, rank, blocks, block))
    whole[owner, :, torch.arange(blocks, device=b.device)] = b
    return whole.view(-1, blocks * block)
