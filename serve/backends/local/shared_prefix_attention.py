"""Shared-prefix (bifurcated) attention: sequences that fork from one prompt share its keys and values.

Ten beams over a prompt of 600 tokens would store, reorder and read its KV cache ten times at every step. Here each
prompt's keys and values are stored once; a sequence owns only those of its generated tokens (its suffix). A prefix
that all prompts have in common is stored once for all of them. Attention is computed over each of the three parts and
merged by log-sum-exp, which is exact (bifurcated attention, arXiv 2403.08845; Hydragen, arXiv 2402.05099).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from serve.backends.local.batch import PromptInput
from serve.backends.local.fused_llama import AttentionFn, FusedLlama
from serve.backends.local.kv_cache import SuffixLayer
from serve.backends.local.prefill import MIN_PREFIX_TOKENS, PrefillSequence, PrefixCache, common_prefix_length

# Prompts without sequences are dropped once at most this share of the prompts is in use: dropping copies the others.
_MIN_USED_SHARE = 0.5


class SharedPrefixCache:
    """KV cache of forked sequences: a prefix shared by all prompts, each prompt's own part, each sequence's suffix.

    `_prompt_indices[i]` is the prompt of sequence i. For attention to the prompts, sequences are scattered into a grid
    of prompts by `_width` (the most sequences of one prompt), so that one batched product serves all prompts;
    `_slots[i]` is the cell of sequence i, and `_is_grid` says that sequences fill the grid in order already.
    """

    def __init__(
        self, prompt_kv: torch.Tensor, mask: torch.Tensor, shared_kv: torch.Tensor | None, scale: float
    ) -> None:
        """Take the keys and values of the prompts, (layers, 2, prompts, heads, columns, head size).

        `mask`, (prompts, columns), is 0 for padding. `shared_kv` is the prefix in front of all prompts, (layers, 2,
        heads, positions, head size), or None. `scale` multiplies the attention scores.
        """
        self._shared_kv = None if shared_kv is None else [(kv[0][None], kv[1][None]) for kv in shared_kv]
        self._prompt_kv = [(kv[0], kv[1]) for kv in prompt_kv]
        self._suffixes = [SuffixLayer() for _ in prompt_kv]
        self._scale = scale
        valid = mask.bool()
        dtype = prompt_kv.dtype
        self._bias = None if bool(valid.all()) else torch.zeros(valid.shape, dtype=dtype, device=mask.device)
        if self._bias is not None:
            self._bias.masked_fill_(~valid, torch.finfo(dtype).min)
        self.positions = mask.sum(-1) + (0 if shared_kv is None else shared_kv.shape[3])
        self._prompt_indices = torch.arange(len(mask), device=mask.device)
        self._update_slots()

    order: torch.Tensor | None = None  # sequences are in the callers' order

    def begin_step(self) -> tuple[torch.Tensor, AttentionFn]:
        """Return the positions of the next tokens and the attention for one forward."""
        positions = self.positions
        self.positions = positions + 1
        return positions, self.attend

    def reorder(self, indices: torch.Tensor) -> None:
        """Keep, reorder, drop or repeat sequences: new sequence i continues old sequence `indices[i]`."""
        for suffix in self._suffixes:
            suffix.batch_select_indices(indices)
        self.positions = self.positions[indices]
        self._prompt_indices = self._prompt_indices[indices]
        used, new_indices = self._prompt_indices.unique(return_inverse=True)
        if len(used) <= _MIN_USED_SHARE * len(self._prompt_kv[0][0]):
            self._prompt_kv = [(keys[used], values[used]) for keys, values in self._prompt_kv]
            self._bias = None if self._bias is None else self._bias[used]
            self._prompt_indices = new_indices
        self._update_slots()

    def attend(self, layer: int, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Return each sequence's attention over shared prefix, prompt and suffix, (sequences, heads, head size)."""
        keys, values = self._suffixes[layer].update(keys[:, :, None], values[:, :, None])
        num_seqs, heads, size = query.shape
        groups = keys.shape[1]
        query = query.reshape(num_seqs, groups, heads // groups, size)
        states = [_attention(query, keys, values, self._scale)]
        states.append(self._prompt_attention(layer, query, self._scale))
        if self._shared_kv is not None:
            flat = query.transpose(0, 1).reshape(1, groups, -1, size)
            attended, log_sum_exp = _attention(flat, *self._shared_kv[layer], self._scale)
            shape = (groups, num_seqs, heads // groups)
            states.append((attended.view(*shape, size).transpose(0, 1), log_sum_exp.view(shape).transpose(0, 1)))
        return merge_attention_states(states).to(query.dtype).reshape(num_seqs, heads, size)

    def _prompt_attention(self, layer: int, query: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention to each sequence's prompt: the sequences of one prompt are the queries of one product."""
        keys, values = self._prompt_kv[layer]
        _, groups, group_size, size = query.shape
        num_prompts, width = len(keys), self._width
        grid = query if self._is_grid else query.new_zeros(num_prompts * width, groups, group_size, size)
        if not self._is_grid:
            grid[self._slots] = query
        grid = (
            grid.view(num_prompts, width, groups, group_size, size)
            .transpose(1, 2)
            .reshape(num_prompts, groups, width * group_size, size)
        )
        bias = None if self._bias is None else self._bias[:, None, None]
        attended, log_sum_exp = _attention(grid, keys, values, scale, bias)
        attended = (
            attended.view(num_prompts, groups, width, group_size, size)
            .transpose(1, 2)
            .reshape(-1, groups, group_size, size)
        )
        log_sum_exp = (
            log_sum_exp.view(num_prompts, groups, width, group_size).transpose(1, 2).reshape(-1, groups, group_size)
        )
        return (attended, log_sum_exp) if self._is_grid else (attended[self._slots], log_sum_exp[self._slots])

    def _update_slots(self) -> None:
        """Recompute the grid cell of every sequence: prompt index * width + rank among the prompt's sequences."""
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
    """Return attention, (batch, heads, queries, head size), and its log-sum-exp, (batch, heads, queries) in float32.

    Two matrix products: for so few queries the fused kernels of torch 2.13 are slower on a CPU. As in transformers'
    eager attention, 16-bit bases round the scores to 16 bits before the softmax.
    """
    scores = (query @ keys.transpose(-1, -2)).float().mul_(scale)
    if bias is not None:
        scores += bias
    probs = scores.softmax(-1)
    # log-sum-exp without a second reduction: the largest probability is exp(largest score - log-sum-exp), and with at
    # most a few thousand columns it never underflows.
    log_sum_exp = scores.amax(-1) - probs.amax(-1).log()
    return probs.to(values.dtype) @ values, log_sum_exp


def merge_attention_states(states: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Merge (attention, log-sum-exp) pairs over disjoint keys into attention over all keys, in float32.

    Each part is weighted by its share of the sum of exponentials, which is the softmax of the log-sum-exps.
    """
    weights = torch.stack([log_sum_exp for _, log_sum_exp in states]).softmax(0)[..., None]
    merged = states[0][0] * weights[0]
    for (attended, _), weight in zip(states[1:], weights[1:], strict=True):
        merged.addcmul_(attended, weight)
    return merged


def build_shared_prefix(
    model: FusedLlama, prefilled: Sequence[tuple[PromptInput, PrefillSequence]]
) -> SharedPrefixCache:
    """Build the cache of prefilled prompts; a prefix that all have in common, with the same adapter, is stored once."""
    shared = _shared_length(prefilled)
    prompt_kvs = [sequence.kv[:, :, :, shared:] for _, sequence in prefilled]
    columns = max(kv.shape[3] for kv in prompt_kvs)
    layers, heads, size = model.kv_shape
    prompt_kv = prompt_kvs[0].new_zeros((layers, 2, len(prompt_kvs), heads, columns, size))
    mask = torch.zeros((len(prompt_kvs), columns), dtype=torch.long, device=model.device)
    for index, kv in enumerate(prompt_kvs):
        prompt_kv[:, :, index, :, columns - kv.shape[3] :] = kv
        mask[index, columns - kv.shape[3] :] = 1
    shared_kv = prefilled[0][1].kv[:, :, :, :shared] if shared else None
    return SharedPrefixCache(prompt_kv, mask, shared_kv, model.scale)


def _shared_length(prefilled: Sequence[tuple[PromptInput, PrefillSequence]]) -> int:
    """Return the number of leading positions that all prompts share; 0 for one prompt or for too few positions."""
    (first, sequence), *others = prefilled
    if not others or not all(
        PrefixCache.same_adapter(first.applied_adapter, prompt.applied_adapter) for prompt, _ in others
    ):
        return 0
    tokens = min(common_prefix_length(first.tokens[:-1], prompt.tokens[:-1]) for prompt, _ in others)
    num_virtual_tokens = sequence.kv.shape[3] - len(first.tokens)
    return num_virtual_tokens + tokens if tokens >= MIN_PREFIX_TOKENS else 0
