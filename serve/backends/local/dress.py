"""What the places of one forward wear, sorted by the product that it changes.

Made once for an arrangement of lines and used for every step until the arrangement changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from serve.backends.local.deltas import Delta, Lora
from serve.backends.local.fused import Site
from serve.backends.local.rack import Grid, Rack
from serve.backends.local.worn import Worn

# Places of one line, and what they wear.
Span = tuple[slice, Worn]


@dataclass(frozen=True)
class _Change:
    """A delta of one layer for some rows; `columns` are the layer's share of its fused product."""

    rows: slice
    columns: slice
    delta: Delta
    module: torch.nn.Module


class Dressing:
    """The changes of one arrangement, ready for `FusedModel.forward`."""

    def __init__(
        self,
        spans: Sequence[Span],
        rack: Rack,
        sites: Mapping[str, Site],
        modules: Mapping[str, torch.nn.Module],
    ) -> None:
        grids = _grids(spans, rack)
        made = {name: [rack.product(name, grid) for grid in grids] for name in sites} if grids else {}
        self._low_rank = {name: [one for one in ready if one is not None] for name, ready in made.items()}
        self._before: dict[str, list[_Change]] = {}
        self._after: dict[str, list[_Change]] = {}
        homes = {module: (site, number) for site in sites.values() for number, module in enumerate(site.modules)}
        for rows, worn in _merged(spans):
            for module, delta in worn.adapter.deltas.items():
                if isinstance(delta, Lora):
                    continue
                site, number = homes[module]
                starts = [0, *accumulate(site.product.widths)]
                change = _Change(
                    rows, slice(starts[number], starts[number + 1]), delta.scaled(worn.scale), modules[module]
                )
                # Layers that share a product read the same input: where one of them must read another, it computes
                # its own, after the product.
                alone = len(site.modules) == 1
                kind = self._before if delta.changes_inputs and alone else self._after
                kind.setdefault(site.name, []).append(change)

    def change_inputs(self, site: str, x: torch.Tensor) -> torch.Tensor:
        """What the product shall read instead of `x`."""
        changes = self._before.get(site)
        if changes is None:
            return x
        x = x.clone()
        for change in changes:
            change.delta.change_inputs(x[change.rows])
        return x

    def change_outputs(self, site: str, x: torch.Tensor, y: torch.Tensor) -> None:
        """Changes, in place, what the product has computed of `x`."""
        for change_low_rank in self._low_rank.get(site, ()):
            change_low_rank(x, y)
        for change in self._after.get(site, ()):
            rows, columns = change.rows, change.columns
            if change.delta.changes_inputs:
                read = x[rows].clone()
                change.delta.change_inputs(read)
                y[rows, columns] = change.module(read)
            else:
                change.delta.change_outputs(x[rows], y[rows, columns])


def _grids(spans: Sequence[Span], rack: Rack) -> list[Grid]:
    """Single places share one grid; a line with many places has its own, without the padding of a grid."""
    low_rank = [(rows, worn) for rows, worn in spans if worn.adapter.low_rank]
    single = [(rows.start, worn) for rows, worn in low_rank if rows.stop - rows.start == 1]
    grid = rack.grid(single)
    several = [(rows, worn) for rows, worn in low_rank if rows.stop - rows.start > 1]
    return [*([] if grid is None else [grid]), *(rack.span(rows, worn) for rows, worn in _merged(several))]


def _merged(spans: Sequence[Span]) -> list[Span]:
    """Neighbours that wear the same as one span."""
    merged: list[Span] = []
    for rows, worn in spans:
        if merged and merged[-1][0].stop == rows.start and _same(merged[-1][1], worn):
            merged[-1] = (slice(merged[-1][0].start, rows.stop), worn)
        else:
            merged.append((rows, worn))
    return merged


def _same(one: Worn, other: Worn) -> bool:
    return one.adapter is other.adapter and one.scale == other.scale
