"""Caches of a batch: preallocated KV layers for transformers' caches, and selection and concatenation of rows.

transformers' DynamicCache copies all keys and values of all rows for every new token; with examples in the prompt
that is tens of megabytes per step. Here each layer has spare columns and writes new tokens in place.

A layer has keys and values by column, of all tokens or of those in a sliding window, or states of a fixed size
(convolution, state space, linear attention), or both, or nothing where it reuses another layer's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer

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
        self.drop_buffers()

    def drop_buffers(self) -> None:
        """Make the next update allocate buffers: keys and values are not views of the old ones any more."""
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
    """Return whether every layer keeps the keys and values of all tokens (no sliding window, no state)."""
    return all(isinstance(layer, PreallocatedLayer) for layer in cache.layers)


def has_states(cache: Any) -> bool:
    """Return whether a layer keeps a state, which padding in front of a prompt would change."""
    return any(isinstance(layer, LinearAttentionLayer) for layer in cache.layers)


def has_keys(cache: Any) -> bool:
    """Return whether a layer keeps keys and values, which need a mask; prompts without one are never padded."""
    return any(isinstance(layer, DynamicLayer) for layer in cache.layers)


def select_rows(cache: Any, indices: torch.Tensor) -> None:
    """Keep, reorder or repeat the rows of every layer: new row i is old row `indices[i]`."""
    for layer in cache.layers:
        if isinstance(layer, LinearAttentionLayer):  # its batch_select_indices, if any, leaves the states as they are
            LinearAttentionLayer.reorder_cache(layer, indices)
        if isinstance(layer, DynamicLayer):
            layer.batch_select_indices(indices)


def concat_caches(caches: Sequence[Any]) -> Any:
    """Return one cache with the rows of all `caches`, which must not be used afterwards.

    All rows end at the same column: keys and values get zero columns on the left, which a mask must hide. Raises
    ValueError for a layer without states after a forward: its model keeps them elsewhere, for one batch only.
    """
    joined = caches[0]
    if any(
        isinstance(layer, LinearAttentionLayer) and not any(layer.has_previous_state.values())
        for layer in joined.layers
    ):
        raise ValueError("it keeps states outside of its cache")
    for number, layer in enumerate(joined.layers if len(caches) > 1 else ()):
        layers = [cache.layers[number] for cache in caches]
        if isinstance(layer, LinearAttentionLayer):
            for states in ("conv_states", "recurrent_states"):
                for index, state in getattr(layer, states).items():
                    if state is not None:
                        getattr(layer, states)[index] = torch.cat([getattr(other, states)[index] for other in layers])
        if isinstance(layer, DynamicLayer):
            columns = max(other.keys.shape[2] for other in layers)
            layer.keys = torch.cat([pad_left(other.keys, columns, 2) for other in layers])
            layer.values = torch.cat([pad_left(other.values, columns, 2) for other in layers])
        if isinstance(layer, PreallocatedLayer):
            layer.drop_buffers()
        if isinstance(layer, DynamicSlidingWindowLayer):
            layer.cumulative_length = max(other.cumulative_length for other in layers)
    return joined


def pad_left(tensor: torch.Tensor, columns: int, dim: int) -> torch.Tensor:
    """Return `tensor` with zeros in front, so that dimension `dim` has `columns`."""
    shape = list(tensor.shape)
    shape[dim] = columns - shape[dim]
    return torch.cat([tensor.new_zeros(shape), tensor], dim)


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
