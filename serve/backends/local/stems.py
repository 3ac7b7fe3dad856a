"""Lines that branch from one prompt share its keys and values instead of copying them.

Ten beams over a prompt of 600 tokens would hold, reorder and read its cache ten times at every step. Here a prompt's
keys and values stay where they are, once (its stem); a line owns only what it has said since (its tail). A beginning
that all prompts have in common is held once for all of them. Attention is computed over each part and the parts are
put together by their log-sum-exp, which is exact (bifurcated attention, arXiv 2403.08845; Hydragen, arXiv 2402.05099).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from transformers import AttentionInterface

from serve.backends.local.cache import is_plain
from serve.backends.local.prefix import Prefix

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "peft_arena_stems"
# Architectures whose attention is the plain one of `AttentionInterface`; tests hold each against `generate`.
ARCHITECTURES = frozenset({"llama", "qwen2"})
# Stems of finished prompts are dropped when at most this share of them is still in use: dropping copies the others.
_WORTH_KEEPING = 0.5


def can_branch(model: PreTrainedModel, cache: Any) -> bool:
    """Whether lines of this base can share a stem; where not, their caches are copied."""
    return model.config.model_type in ARCHITECTURES and is_plain(cache)


class Stems:
    """The stems of a batch, and which line grows from which. Lines are those of the batch at every step."""

    def __init__(self, cache: Any, mask: torch.Tensor, shared: Prefix | None) -> None:
        """Takes over the plain `cache` of prompts just read, with its `mask`, (prompts, columns).

        `shared` is the beginning of every line; it takes the first columns of the cache.
        """
        self._shared = None if shared is None else [(k[None], v[None]) for k, v in _layers(shared)]
        first = 0 if shared is None else len(shared)
        self._own = [(layer.keys[:, :, first:], layer.values[:, :, first:]) for layer in cache.layers]
        kept = mask[:, first:].bool()
        dtype = self._own[0][0].dtype
        self._bias = None if bool(kept.all()) else torch.zeros(kept.shape, dtype=dtype, device=mask.device)
        if self._bias is not None:
            self._bias.masked_fill_(~kept, torch.finfo(dtype).min)
        self._owners = torch.arange(len(mask), device=mask.device)
        self._arrange()
        self._asked = 0

    def select(self, rows: torch.Tensor) -> None:
        """New line i grows from the stem of old line `rows[i]`."""
        self._owners = self._owners[rows]
        alive, owners = self._owners.unique(return_inverse=True)
        if len(alive) <= _WORTH_KEEPING * len(self._own[0][0]):
            self._own = [(keys[alive], values[alive]) for keys, values in self._own]
            self._bias = None if self._bias is None else self._bias[alive]
            self._owners = owners
        self._arrange()

    @contextmanager
    def attended(self, model: PreTrainedModel) -> Iterator[None]:
        """In this context the base's layers attend to the stems too, and see no mask: tails have no padding."""
        before = model.config._attn_implementation
        token = _ACTIVE.set(self)
        self._asked = 0
        model.config._attn_implementation = NAME
        try:
            yield
        finally:
            model.config._attn_implementation = before
            _ACTIVE.reset(token)
        if self._asked != len(self._own):
            raise RuntimeError(f"{self._asked} of {len(self._own)} layers have attended to the stems.")

    def attend(self, layer: int, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float) -> Any:
        """What each line's one query sees in stem and tail; (lines, 1, heads, head size) as `query` has it turned."""
        self._asked += 1
        lines, heads, _, size = query.shape
        groups = keys.shape[1]
        query = query.reshape(lines, groups, heads // groups, size)
        parts = [_attention(query, keys, values, scale)]
        parts.append(self._to_own(layer, query, scale))
        if self._shared is not None:
            flat = query.transpose(0, 1).reshape(1, groups, -1, size)
            seen, weight = _attention(flat, *self._shared[layer], scale)
            shape = (groups, lines, heads // groups)
            parts.append((seen.view(*shape, size).transpose(0, 1), weight.view(shape).transpose(0, 1)))
        return _together(parts).to(query.dtype).reshape(lines, 1, heads, size)

    def _to_own(self, layer: int, query: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention to each line's own stem: the lines of one stem are one query of many places."""
        keys, values = self._own[layer]
        _, groups, each, size = query.shape
        stems, width = len(keys), self._width
        grid = query if self._is_grid else query.new_zeros(stems * width, groups, each, size)
        if not self._is_grid:
            grid[self._slots] = query
        grid = grid.view(stems, width, groups, each, size).transpose(1, 2).reshape(stems, groups, width * each, size)
        bias = None if self._bias is None else self._bias[:, None, None]
        seen, weight = _attention(grid, keys, values, scale, bias)
        seen = seen.view(stems, groups, width, each, size).transpose(1, 2).reshape(-1, groups, each, size)
        weight = weight.view(stems, groups, width, each).transpose(1, 2).reshape(-1, groups, each)
        return (seen, weight) if self._is_grid else (seen[self._slots], weight[self._slots])

    def _arrange(self) -> None:
        """Gives every line a place in a grid of stems by lines; `select` keeps the lines of a stem together."""
        counts = torch.bincount(self._owners, minlength=len(self._own[0][0]))
        starts = counts.cumsum(0) - counts
        order = self._owners.argsort(stable=True)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order), device=order.device) - starts[self._owners[order]]
        self._width = int(counts.max())
        self._slots = self._owners * self._width + rank
        self._is_grid = len(order) == len(counts) * self._width and bool((self._slots.diff() == 1).all())


_ACTIVE: ContextVar[Stems] = ContextVar("stems")


def _forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001 - transformers' signature; there is none
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _ACTIVE.get().attend(int(module.layer_idx), query, key, value, scale), None


AttentionInterface.register(NAME, _forward)


def _layers(prefix: Prefix) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    return zip(prefix.keys, prefix.values, strict=True)


def _attention(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float, bias: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the queries see, (lines, heads, places, head size), and its log-sum-exp, (lines, heads, places) float32.

    Two plain products: for so few queries the fused kernels of torch 2.13 are slower on a CPU. As in transformers' own
    eager attention, 16-bit bases round the scores to 16 bits before the softmax.
    """
    scores = (query @ keys.transpose(-1, -2)).float().mul_(scale)
    if bias is not None:
        scores += bias
    shares = scores.softmax(-1)
    # The highest share is exp(highest score - log-sum-exp), and never so small that it is lost.
    weight = scores.amax(-1) - shares.amax(-1).log()
    return shares.to(values.dtype) @ values, weight


def _together(parts: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Attention over all parts, float32: each part weighs as much as its sum of exponentials."""
    weights = torch.stack([weight for _, weight in parts]).softmax(0)[..., None]
    whole = parts[0][0] * weights[0]
    for (seen, _), weight in zip(parts[1:], weights[1:], strict=True):
        whole.addcmul_(seen, weight)
    return whole
