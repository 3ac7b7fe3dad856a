"""A prompt that is being read: its tokens, and the keys and values of what stands before them and of them.

Keys and values of all layers lie in one tensor, (layers, 2, key/value heads, places, head size): what is kept of one
line for another (prefixes.py), copied or dropped, is one tensor operation.
"""

from __future__ import annotations

import torch

from serve.backends.local.fused import FusedLlama

# Places whose attention is computed together on a CPU.
_QUERY_BLOCK = 96
_attention = torch.nn.functional.scaled_dot_product_attention


class PrefillSequence:
    """`count` places after a prefix, read piece by piece: `take`, the forward that attends here, then `read`."""

    def __init__(self, model: FusedLlama, count: int, prefix_kv: torch.Tensor | None = None) -> None:
        """`before` are the keys and values of a prefix; they are copied."""
        layers, heads, size = model.kv_shape
        self._prefix_length = 0 if prefix_kv is None else prefix_kv.shape[3]
        self._end = self._prefix_length
        self._scale = model.scale
        self._bias = torch.empty(0)
        self.count = count
        self.kv = torch.empty(
            (layers, 2, heads, self._prefix_length + count, size), device=model.device, dtype=model.dtype
        )
        if prefix_kv is not None:
            self.kv[:, :, :, : self._prefix_length] = prefix_kv

    @property
    def done(self) -> int:
        """How many of its places have been read."""
        return self._end - self._prefix_length

    @property
    def remaining(self) -> int:
        """How many have not."""
        return self.count - self.done

    def next_chunk(self, max_tokens: int) -> range:
        """The next places, at most so many, as numbers in the line."""
        places = range(self._end, self._end + min(max_tokens, self.remaining))
        device = self.kv.device
        columns = torch.arange(places.stop, device=device)
        hidden = columns > torch.arange(places.start, places.stop, device=device)[:, None]
        self._bias = torch.zeros(hidden.shape, device=device, dtype=self.kv.dtype)
        self._bias.masked_fill_(hidden, torch.finfo(self.kv.dtype).min)
        return places

    def commit(self, positions: range) -> None:
        """Says that the forward over `places` is done."""
        self._end = positions.stop

    def attend(self, layer: int, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """What the taken places see, (places, heads, head size)."""
        end = self._end + len(query)
        mine = self.kv[layer]
        mine[0, :, self._end : end] = keys.transpose(0, 1)
        mine[1, :, self._end : end] = values.transpose(0, 1)
        keys, values = mine[0, :, :end], mine[1, :, :end]
        if query.device.type == "cpu":
            return self._matmul_attention(query, keys, values)
        each = query.shape[1] // len(keys)
        keys, values = keys.repeat_interleave(each, 0), values.repeat_interleave(each, 0)
        seen = _attention(query.transpose(0, 1)[None], keys[None], values[None], self._bias, scale=self._scale)
        return seen[0].transpose(0, 1)

    def _matmul_attention(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Attention as plain products, block by block, so that what no place of a block sees is not computed.

        On a CPU this is quicker than torch 2.13's fused attention.
        """
        count, heads, size = query.shape
        groups, before = len(keys), keys.shape[1] - count
        query = (query * self._scale).view(count, groups, -1, size).permute(1, 2, 0, 3)
        seen = query.new_empty(query.shape)
        for begin in range(0, count, _QUERY_BLOCK):
            end = min(begin + _QUERY_BLOCK, count)
            columns = before + end
            block = query[:, :, begin:end]
            scores = torch.bmm(block.reshape(groups, -1, size), keys[:, :columns].transpose(1, 2))
            scores.view(groups, -1, end - begin, columns).add_(self._bias[begin:end, :columns])
            shares = scores.softmax(-1)
            seen[:, :, begin:end] = torch.bmm(shares, values[:, :columns]).view(block.shape)
        return seen.permute(2, 0, 1, 3).reshape(count, heads, size)
