"""The state of a Llama-like base: every line in one forward, whatever its length, its adapter and its past.

Prompts are read in pieces between the steps of the lines that speak. What was read of a line becomes part of a group
of lines; groups share all products and differ only in how they attend. So a line joins while others speak, and a
short line is not padded to a very long one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakSet

import torch

from serve.backends.local.dress import Dressing, Span
from serve.backends.local.fused import FusedModel
from serve.backends.local.groups import Groups
from serve.backends.local.prefixes import Prefixes
from serve.backends.local.rack import Rack
from serve.backends.local.reader import Reader
from serve.backends.local.reading import Reading
from serve.backends.local.state import Line
from serve.backends.local.stems import Stems
from serve.backends.local.trunk import grow_stems
from serve.backends.local.worn import Adapter, Worn


@dataclass(frozen=True)
class Base:
    """What all states of one base share."""

    model: FusedModel
    modules: Mapping[str, torch.nn.Module]
    prefixes: Prefixes
    rack: Rack
    states: WeakSet[FusedState]


def share_base(model: FusedModel, modules: Mapping[str, torch.nn.Module], prefixes: Prefixes) -> Base:
    """What the states of a base are made from."""
    # Batched products of LoRA's size are quicker in float32 on a CPU, and more exact besides.
    dtype = torch.float32 if model.device.type == "cpu" else model.dtype
    return Base(model, modules, prefixes, Rack(model.sites, model.device, dtype), WeakSet())


class FusedState:
    """Lines of a base that `can_fuse`; see state.py."""

    joins = True

    def __init__(self, base: Base) -> None:
        self._base = base
        self._worn: list[Worn | None] = []
        self._fresh: list[tuple[Line, Reading]] = []
        self._groups = Groups(base.model)
        self._stems: Stems | None = None
        self._reading = False
        self._arriving: Sequence[Line] = ()
        self._dress: Dressing | None = None
        base.states.add(self)

    @torch.inference_mode()
    def read(self, lines: Sequence[Line]) -> Iterator[torch.Tensor | None]:
        if self._stems is not None or self._reading:
            raise ValueError("Lines join neither those that have branched nor those that are being read.")
        self._reading = True
        try:
            self._arriving = lines
            self._hold()
            reader = Reader(self._base.model, self._base.prefixes, self._dressed, lines)
            while not reader.read_piece():
                yield None
        finally:
            self._reading = False
            self._arriving = ()
        self._fresh += zip(lines, reader.readings, strict=True)
        self._worn += [line.worn for line in lines]
        self._dress = None
        yield reader.logits

    @torch.inference_mode()
    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        self._settle()
        speaking: Groups | Stems = self._groups if self._stems is None else self._stems
        order = speaking.order
        tokens = tokens.to(self._base.model.device)
        if self._dress is None:
            self._dress = self._dressed(self._spans(order))
        embedded = self._base.model.embed(tokens if order is None else tokens[order])
        places, attend = speaking.begin_step()
        logits = self._base.model.forward(embedded, places, attend, self._dress, None)
        if order is None:
            return logits
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        return logits[back]

    @torch.inference_mode()
    def select(self, lines: torch.Tensor) -> None:
        self._settle()
        chosen = lines.tolist()
        if self._stems is not None:
            self._stems.select(lines.to(self._base.model.device))
        else:
            self._groups.select(chosen)
        self._worn = [self._worn[line] for line in chosen]
        self._dress = None
        if not chosen:
            self._stems = None

    @torch.inference_mode()
    def branch(self) -> None:
        # Lines that speak already, beside others, have copies instead.
        if not len(self._groups) and self._fresh:
            self._stems = grow_stems(self._base.model, self._fresh)
            self._fresh = []

    def _settle(self) -> None:
        """Lets what was just read speak."""
        if self._fresh:
            self._groups.join([reading.known for _, reading in self._fresh])
            self._fresh = []
            self._dress = None

    def adapters(self) -> dict[Adapter, None]:
        """What its lines wear, those that are being read too, each once and in their order."""
        worn = (*self._worn, *(line.worn for line in self._arriving))
        return dict.fromkeys(each.adapter for each in worn if each is not None)

    def _hold(self) -> None:
        """Gives the adapters of all lines their place in the rack, beside those of other states."""
        if not any(state._worn for state in self._base.states):
            self._base.rack.rest()
        held = {adapter for state in self._base.states for adapter in state.adapters()}
        self._base.rack.hold(self.adapters(), held)
        for state in self._base.states:
            state._dress = None  # the stacks may have grown

    def _spans(self, order: torch.Tensor | None) -> list[Span]:
        lines = range(len(self._worn)) if order is None else order.tolist()
        return [
            (slice(place, place + 1), worn)
            for place, line in enumerate(lines)
            if (worn := self._worn[line]) is not None
        ]

    def _dressed(self, spans: Sequence[Span]) -> Dressing | None:
        if not any(worn.adapter.deltas for _, worn in spans):
            return None
        return Dressing(spans, self._base.rack, self._base.model.sites, self._base.modules)
