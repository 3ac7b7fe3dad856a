"""Prompts that were just read become the stems of lines that branch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from serve.backends.local.fused import FusedLlama
from serve.backends.local.prefixes import MIN_PREFIX_TOKENS, PrefixCache, common_prefix_length
from serve.backends.local.reading import PrefillSequence
from serve.backends.local.state import PromptInput
from serve.backends.local.stems import SharedPrefixCache


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
