"""A key/value cache that grows in place.

transformers' DynamicCache copies all keys and values of all rows for every new token; with examples in the prompt
that is tens of megabytes a step. Here each layer keeps room for the tokens to come and writes into it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Columns allocated beyond what is needed.
GROWTH_TOKENS = 64


class PreallocatedLayer(DynamicLayer):
    """One layer's keys and values, each (rows, heads, columns, head size): views of larger buffers."""

    keys: torch.Tensor
    values: torch.Tensor
    _buffers: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends columns and returns all of them."""
        old = self.get_seq_length()
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        new = old + key_states.shape[-2]
        if self._buffers is None or self._buffers[0].shape[-2] < new:
            self._buffers = (
                self._enlarged(self.keys, key_states, old, new),
                self._enlarged(self.values, value_states, old, new),
            )
        keys, values = self._buffers
        keys[..., old:new, :] = key_states
        values[..., old:new, :] = value_states
        self.keys, self.values = keys[..., :new, :], values[..., :new, :]
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps, reorders or repeats rows; the copy has no room until it next grows."""
        super().batch_select_indices(indices)
        self._buffers = None

    @staticmethod
    def _enlarged(old: torch.Tensor, states: torch.Tensor, length: int, needed: int) -> torch.Tensor:
        buffer = states.new_empty((*states.shape[:-2], needed + GROWTH_TOKENS, states.shape[-1]))
        if length:
            buffer[..., :length, :] = old
        return buffer


def new_cache(config: PreTrainedConfig) -> Any:
    """An empty cache for a model of this configuration; layers of other kinds than the plain one stay what they are."""
    cache = DynamicCache(config=config)
    cache.layers = [PreallocatedLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def is_plain(cache: Any) -> bool:
    """Whether every layer is plain, so that caches of several groups can be joined."""
    return all(isinstance(layer, PreallocatedLayer) for layer in cache.layers)


class SuffixLayer(DynamicLayer):
    """What lines have said since they branched: keys and values by place, (columns, rows, heads, head size).

    Beams reorder their rows at every step. Rows of one place lie together, so only what is there is copied, from one
    buffer into the other; fresh memory of this size would cost more than the copying.
    """

    _buffers: list[tuple[torch.Tensor, torch.Tensor]]

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Takes the shapes of the first column."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self._length = 0
        self._buffers = [self._allocate(states, GROWTH_TOKENS) for states in (key_states, value_states)]
        self.is_initialized = True

    def get_seq_length(self) -> int:
        """How many columns there are."""
        return self._length if self.is_initialized else 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends one column, (rows, heads, 1, head size), and returns all, (rows, heads, columns, head size)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        at = self._length
        self._length += 1
        seen = []
        for number, states in enumerate((key_states, value_states)):
            if at == len(self._buffers[number][0]):
                old = self._buffers[number][0]
                self._buffers[number] = self._allocate(states, 2 * at)
                self._buffers[number][0][:at] = old
            here = self._buffers[number][0]
            here[at] = states[:, :, 0]
            seen.append(here[: self._length].permute(1, 2, 0, 3))
        return seen[0], seen[1]

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps, reorders or repeats rows."""
        for number in range(2 * self.is_initialized):
            here, spare = self._buffers[number]
            if len(indices) != here.shape[1]:
                spare = here.new_empty((len(here), len(indices), *here.shape[2:]))
            torch.index_select(here[: self._length], 1, indices, out=spare[: self._length])
            if len(indices) != here.shape[1]:
                here = torch.empty_like(spare)
            self._buffers[number] = (spare, here)

    @staticmethod
    def _allocate(states: torch.Tensor, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (columns, states.shape[0], states.shape[1], states.shape[3])
        return states.new_empty(shape), states.new_empty(shape)
