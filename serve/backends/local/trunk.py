"""Prompts that were just read become the stems of lines that branch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from serve.backends.local.fused import FusedModel
from serve.backends.local.prefixes import LEAST, Prefixes, shared_tokens
from serve.backends.local.reading import Reading
from serve.backends.local.state import Line
from serve.backends.local.stems import Stems


def grow_stems(model: FusedModel, read: Sequence[tuple[Line, Reading]]) -> Stems:
    """Stems of the prompts; what all of them begin with, under the same adapter, is held once."""
    shared = _shared(read)
    own = [reading.known[:, :, :, shared:] for _, reading in read]
    columns = max(known.shape[3] for known in own)
    layers, heads, size = model.kv_shape
    together = own[0].new_zeros((layers, 2, len(own), heads, columns, size))
    mask = torch.zeros((len(own), columns), dtype=torch.long, device=model.device)
    for line, known in enumerate(own):
        together[:, :, line, :, columns - known.shape[3] :] = known
        mask[line, columns - known.shape[3] :] = 1
    beginning = read[0][1].known[:, :, :, :shared] if shared else None
    return Stems(together, mask, beginning, model.scale)


def _shared(read: Sequence[tuple[Line, Reading]]) -> int:
    """How many places all lines have in common at their start; 0 where too few, or where there is one line alone."""
    (first, reading), *others = read
    if not others or not all(Prefixes.same(first.worn, line.worn) for line, _ in others):
        return 0
    tokens = min(shared_tokens(first.tokens[:-1], line.tokens[:-1]) for line, _ in others)
    ahead = reading.known.shape[3] - len(first.tokens)
    return ahead + tokens if tokens >= LEAST else 0
