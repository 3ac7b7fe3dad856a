"""A prompt that is being read: its tokens, and the keys and values of what stands before them and of them.

Keys and values of all layers lie in one tensor, (layers, 2, key/value heads, places, head size): what is kept of one
line for another (prefixes.py), copied or dropped, is one tensor operation.
"""

from __future__ import annotations

import torch

from serve.backends.local.fused import FusedModel

_attention = torch.nn.functional.scaled_dot_product_attention


class Reading:
    """`count` places after a prefix, read piece by piece: `take`, the forward that attends here, then `read`."""

    def __init__(self, model: FusedModel, count: int, before: torch.Tensor | None = None) -> None:
        """`before` are the keys and values of a prefix; they are copied."""
        layers, heads, size = model.kv_shape
        self._first = 0 if before is None else before.shape[3]
        self._end = self._first
        self._scale = model.scale
        self._mask: torch.Tensor | None = None
        self.count = count
        self.known = torch.empty((layers, 2, heads, self._first + count, size), device=model.device, dtype=model.dtype)
        if before is not None:
            self.known[:, :, :, : self._first] = before

    @property
    def done(self) -> int:
        """How many of its places have been read."""
        return self._end - self._first

    @property
    def left(self) -> int:
        """How many have not."""
        return self.count - self.done

    def take(self, most: int) -> range:
        """The next places, at most so many, as numbers in the line."""
        places = range(self._end, self._end + min(most, self.left))
        self._mask = None
        if self._end and len(places) > 1:
            device = self.known.device
            columns = torch.arange(places.stop, device=device)
            self._mask = columns <= torch.arange(places.start, places.stop, device=device)[:, None]
        return places

    def read(self, places: range) -> None:
        """Says that the forward over `places` is done."""
        self._end = places.stop

    def attend(self, layer: int, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """What the taken places see, (places, heads, head size)."""
        end = self._end + len(query)
        mine = self.known[layer]
        mine[0, :, self._end : end] = keys.transpose(0, 1)
        mine[1, :, self._end : end] = values.transpose(0, 1)
        each = query.shape[1] // mine.shape[1]
        seen_by = mine[:, :, :end]
        if each > 1:
            seen_by = seen_by.repeat_interleave(each, 1)
        causal = self._mask is None and len(query) > 1
        seen = _attention(
            query.transpose(0, 1)[None],
            seen_by[0][None],
            seen_by[1][None],
            self._mask,
            is_causal=causal,
            scale=self._scale,
        )
        return seen[0].transpose(0, 1)
