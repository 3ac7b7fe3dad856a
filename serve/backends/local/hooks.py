"""Adapters by the row on a base whose own forward computes: hooks that exist for one forward only.

PEFT wraps the base's layers and calls `state_dict()` when it loads or removes an adapter; on a quantized CPU base
that ruins the weights (see loading.py), and it refuses adapters of several kinds in one model. Here the base keeps its
modules: a hook changes the rows that wear an adapter. So base rows are exactly what the bare base computes, and
adapters come and go without a trace. Bases that can be fused need none of this (fused_state.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from serve.backends.local.deltas import AdapterLayer
from serve.backends.local.worn import AppliedAdapter

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

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
