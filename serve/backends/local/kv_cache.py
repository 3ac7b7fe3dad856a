"""Preallocated KV cache layers for transformers' caches.

transformers' DynamicCache copies all keys and values of all rows for every new token; with examples in the prompt
that is tens of megabytes per step. Here each layer has spare columns and writes new tokens in place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Spare columns of a new buffer.
GROWTH_TOKENS = 64


class PreallocatedLayer(DynamicLayer):
    """One layer's keys and values, each (rows, heads, columns, head size): views of larger buffers."""

    keys: torch.Tensor
    values: torch.Tensor
    _buffers: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append columns and return all of them."""
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
        """Keep, reorder or repeat rows; the copy has no spare columns until the next update allocates some."""
        super().batch_select_indices(indices)
        self._buffers = None

    @staticmethod
    def _enlarged(old: torch.Tensor, states: torch.Tensor, length: int, needed: int) -> torch.Tensor:
        buffer = states.new_empty((*states.shape[:-2], needed + GROWTH_TOKENS, states.shape[-1]))
        if length:
            buffer[..., :length, :] = old
        return buffer


def new_cache(config: PreTrainedConfig) -> Any:
    """Return an empty cache for a model of this configuration; only plain layers are preallocated ones."""
    cache = DynamicCache(config=config)
    cache.layers = [PreallocatedLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def is_plain(cache: Any) -> bool:
    """Return whether every layer is plain (no sliding window), so that caches of several groups can be concatenated."""
    return all(isinstance(layer, PreallocatedLayer) for layer in cache.layers)


class SuffixLayer(DynamicLayer):
    """Keys and values of tokens generated after a fork, stored by column: (columns, rows, heads, head size).

    Beams reorder their rows at every step. With columns first, the used part is contiguous and alone is copied. It is
    copied between two alternating buffers, because allocating memory of this size costs more than the copy.
    """

    _buffers: list[tuple[torch.Tensor, torch.Tensor]]

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate buffers for the shape of the first column."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self._length = 0
        self._buffers = [self._allocate(states, GROWTH_TOKENS) for states in (key_states, value_states)]
        self.is_initialized = True

    def get_seq_length(self) -> int:
        """Return the number of columns."""
        return self._length if self.is_initialized else 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append one column, (rows, heads, 1, head size), and return all, (rows, heads, columns, head size)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        column = self._length
        self._length += 1
        all_columns = []
        for index, states in enumerate((key_states, value_states)):
            if column == len(self._buffers[index][0]):
                old = self._buffers[index][0]
                self._buffers[index] = self._allocate(states, 2 * column)
                self._buffers[index][0][:column] = old
            buffer = self._buffers[index][0]
            buffer[column] = states[:, :, 0]
            all_columns.append(buffer[: self._length].permute(1, 2, 0, 3))
        return all_columns[0], all_columns[1]

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep, reorder or repeat rows."""
        for index in range(2 * self.is_initialized):
            buffer, spare_buffer = self._buffers[index]
            if len(indices) != buffer.shape[1]:
                spare_buffer = buffer.new_empty((len(buffer), len(indices), *buffer.shape[2:]))
            torch.index_select(buffer[: self._length], 1, indices, out=spare_buffer[: self._length])
            if len(indices) != buffer.shape[1]:
                buffer = torch.empty_like(spare_buffer)
            self._buffers[index] = (spare_buffer, buffer)

    @staticmethod
    def _allocate(states: torch.Tensor, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (columns, states.shape[0], states.shape[1], states.shape[3])
        return states.new_empty(shape), states.new_empty(shape)
