"""Bifurcated attention for beams.

Lines that branch from one prompt share its keys and values instead of copying them.

Ten beams over a prompt of 600 tokens would hold, reorder and read its cache ten times at every step. Here a prompt's
keys and values stay where they are, once (its stem); a line owns only what it has said since (its tail). A beginning
that all prompts have in common is held once for all of them. Attention is computed over each part and the parts are
put together by their log-sum-exp, which is exact (bifurcated attention, arXiv 2403.08845; Hydragen, arXiv 2402.05099).

Prompts that were just read become the stems of lines that branch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from serve.backends.local.fused_llama import AttentionFn, FusedLlama
from serve.backends.local.kv_cache import SuffixLayer
from serve.backends.local.model_runner import PromptInput
from serve.backends.local.prefill import PrefillSequence
from serve.backends.local.prefix_cache import MIN_PREFIX_TOKENS, PrefixCache, common_prefix_length

# Stems of finished prompts are dropped when at most this share of them is still in use: dropping copies the others.
_MIN_USED_SHARE = 0.5


class SharedPrefixCache:
    """The stems of a batch, and which line grows from which. Lines are those of the batch at every step."""

    def __init__(
        self, prompt_kv: torch.Tensor, mask: torch.Tensor, shared_kv: torch.Tensor | None, scale: float
    ) -> None:
        """`own` are keys and values of the prompts, (layers, 2, prompts, heads, columns, head size).

        `mask`, (prompts, columns), says which columns are not padding. `shared` is the beginning that stands before
        all of them, (layers, 2, heads, places, head size). `scale` is what scores are multiplied by.
        """
        self._shared_kv = None if shared_kv is None else [(known[0][None], known[1][None]) for known in shared_kv]
        self._prompt_kv = [(known[0], known[1]) for known in prompt_kv]
        self._suffixes = [SuffixLayer() for _ in prompt_kv]
        self._scale = scale
        kept = mask.bool()
        dtype = prompt_kv.dtype
        self._bias = None if bool(kept.all()) else torch.zeros(kept.shape, dtype=dtype, device=mask.device)
        if self._bias is not None:
            self._bias.masked_fill_(~kept, torch.finfo(dtype).min)
        self.positions = mask.sum(-1) + (0 if shared_kv is None else shared_kv.shape[3])
        self._prompt_indices = torch.arange(len(mask), device=mask.device)
        self._update_slots()

    order: torch.Tensor | None = None  # lines stand as callers number them

    def begin_step(self) -> tuple[torch.Tensor, AttentionFn]:
        """The places that the lines speak at, and how they attend, for one forward."""
        places = self.positions
        self.positions = places + 1
        return places, self.attend

    def reorder(self, indices: torch.Tensor) -> None:
        """New line i grows from the stem of old line `rows[i]`."""
        for tail in self._suffixes:
            tail.batch_select_indices(indices)
        self.positions = self.positions[indices]
        self._prompt_indices = self._prompt_indices[indices]
        alive, owners = self._prompt_indices.unique(return_inverse=True)
        if len(alive) <= _MIN_USED_SHARE * len(self._prompt_kv[0][0]):
            self._prompt_kv = [(keys[alive], values[alive]) for keys, values in self._prompt_kv]
            self._bias = None if self._bias is None else self._bias[alive]
            self._prompt_indices = owners
        self._update_slots()

    def attend(self, layer: int, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """What each line's one place, (lines, heads, head size), sees in stem and tail."""
        keys, values = self._suffixes[layer].update(keys[:, :, None], values[:, :, None])
        lines, heads, size = query.shape
        groups = keys.shape[1]
        query = query.reshape(lines, groups, heads // groups, size)
        parts = [_attention(query, keys, values, self._scale)]
        parts.append(self._prompt_attention(layer, query, self._scale))
        if self._shared_kv is not None:
            flat = query.transpose(0, 1).reshape(1, groups, -1, size)
            seen, weight = _attention(flat, *self._shared_kv[layer], self._scale)
            shape = (groups, lines, heads // groups)
            parts.append((seen.view(*shape, size).transpose(0, 1), weight.view(shape).transpose(0, 1)))
        return merge_attention_states(parts).to(query.dtype).reshape(lines, heads, size)

    def _prompt_attention(self, layer: int, query: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention to each line's own stem: the lines of one stem are one query of many places."""
        keys, values = self._prompt_kv[layer]
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

    def _update_slots(self) -> None:
        """Gives every line a place in a grid of stems by lines; `select` keeps the lines of a stem together."""
        counts = torch.bincount(self._prompt_indices, minlength=len(self._prompt_kv[0][0]))
        starts = counts.cumsum(0) - counts
        order = self._prompt_indices.argsort(stable=True)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order), device=order.device) - starts[self._prompt_indices[order]]
        self._width = int(counts.max())
        self._slots = self._prompt_indices * self._width + rank
        self._is_grid = len(order) == len(counts) * self._width and bool((self._slots.diff() == 1).all())


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


def merge_attention_states(parts: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Attention over all parts, float32: each part weighs as much as its sum of exponentials."""
    weights = torch.stack([weight for _, weight in parts]).softmax(0)[..., None]
    whole = parts[0][0] * weights[0]
    for (seen, _), weight in zip(parts[1:], weights[1:], strict=True):
        whole.addcmul_(seen, weight)
    return whole


def build_shared_prefix(
    model: FusedLlama, prefilled: Sequence[tuple[PromptInput, PrefillSequence]]
) -> SharedPrefixCache:
    """Stems of the prompts; what all of them begin with, under the same adapter, is held once."""
    shared = _shared_length(prefilled)
    own = [reading.kv[:, :, :, shared:] for _, reading in prefilled]
    columns = max(known.shape[3] for known in own)
    layers, heads, size = model.kv_shape
    together = own[0].new_zeros((layers, 2, len(own), heads, columns, size))
    mask = torch.zeros((len(own), columns), dtype=torch.long, device=model.device)
    for line, known in enumerate(own):
        together[:, :, line, :, columns - known.shape[3] :] = known
        mask[line, columns - known.shape[3] :] = 1
    beginning = prefilled[0][1].kv[:, :, :, :shared] if shared else None
    return SharedPrefixCache(together, mask, beginning, model.scale)


def _shared_length(prefilled: Sequence[tuple[PromptInput, PrefillSequence]]) -> int:
    """How many places all lines have in common at their start; 0 where too few, or where there is one line alone."""
    (first, reading), *others = prefilled
    if not others or not all(
        PrefixCache.same_adapter(first.applied_adapter, line.applied_adapter) for line, _ in others
    ):
        return 0
    tokens = min(common_prefix_length(first.tokens[:-1], line.tokens[:-1]) for line, _ in others)
    ahead = reading.kv.shape[3] - len(first.tokens)
    return ahead + tokens if tokens >= MIN_PREFIX_TOKENS else 0
