"""The state of a decoder-only base whose own forward computes: prompts padded on the left, in one cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from serve.backends.local.cache import is_plain, new_cache
from serve.backends.local.hooks import dressed
from serve.backends.local.prefix import Prefix, as_prefix_of, begin_cache
from serve.backends.local.state import Line, pad
from serve.backends.local.worn import Worn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# A prompt is read in pieces, so that a cancel during a long one takes effect between two of them.
PREFILL_CHUNK = 512
# Prompts are read together when the shorter one has at least this share of the longer one's tokens,
SIMILAR = 0.6
# and while they are no more tokens than this: what comes of them should fit a CPU's cache, and prompts that are read
# alone have no padding, so that attention needs no mask.
READ_AT_ONCE = 512

_Read = tuple[Any, torch.Tensor, torch.Tensor]


class CausalState:
    """Lines of a decoder-only base, padded on the left so that all of them end at the same column.

    A line's prefix stands before its padding. Its place counts, the padding's does not: position ids follow the mask.
    """

    joins = False

    def __init__(self, model: PreTrainedModel, pad_token: int, modules: Mapping[str, torch.nn.Module]) -> None:
        self._model: Any = model
        self._pad = pad_token
        self._modules = modules
        self._worn: list[Worn | None] = []
        self._cache: Any = None
        self._mask = torch.empty(0)
        self._next = torch.empty(0)

    @torch.inference_mode()
    def read(self, lines: Sequence[Line]) -> Iterator[torch.Tensor | None]:
        if self._worn:
            raise ValueError("Lines of this base are read together.")
        groups = self._groups([len(line.tokens) for line in lines])
        parts: list[_Read] = []
        for rows in groups:
            for part in self._read([lines[row] for row in rows]):
                if part is not None:
                    parts.append(part)
                yield None
        order = torch.tensor([row for rows in groups for row in rows], device=self._model.device).argsort()
        self._cache = self._joined([cache for cache, _, _ in parts], order)
        longest = max(mask.shape[1] for _, mask, _ in parts)
        self._mask = torch.cat([_padded(mask, longest, 1) for _, mask, _ in parts])[order]
        self._next = self._mask.sum(-1, keepdim=True)
        self._worn = [line.worn for line in lines]
        yield torch.cat([logits for _, _, logits in parts])[order]

    def _groups(self, lengths: Sequence[int]) -> list[list[int]]:
        """Rows by similar length, so that a short prompt is not padded to a prompt with examples; few if they are long.

        Caches other than plain ones (a sliding window, say) cannot be joined: then all rows are one group.
        """
        order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
        if not is_plain(new_cache(self._model.config)):
            return [order]
        groups: list[list[int]] = []
        for row in order:
            longest = lengths[groups[-1][0]] if groups else 0
            fits = groups and (len(groups[-1]) + 1) * longest <= READ_AT_ONCE
            if fits and lengths[row] >= SIMILAR * longest:
                groups[-1].append(row)
            else:
                groups.append([row])
        return groups

    def _read(self, lines: Sequence[Line]) -> Iterator[_Read | None]:
        """Cache, mask and last logits of one group; None between its pieces."""
        cache = new_cache(self._model.config)
        prefixes = [self._ahead(line.worn) for line in lines]
        known = begin_cache(cache, prefixes, self._model.device)
        ids, mask = pad([line.tokens for line in lines], self._pad, left=True)
        ids, mask = ids.to(self._model.device), torch.cat([known, mask.to(self._model.device)], dim=1)
        before = known.shape[1]
        places = (mask.cumsum(-1) - 1).clamp(min=0)[:, before:]
        worn = [line.worn for line in lines]
        logits = torch.empty(0)
        for begin in range(0, ids.shape[1], PREFILL_CHUNK):
            if begin:
                yield None
            end = min(begin + PREFILL_CHUNK, ids.shape[1])
            logits = self._forward(cache, worn, ids[:, begin:end], mask[:, : before + end], places[:, begin:end])
        yield cache, mask, logits

    def _ahead(self, worn: Worn | None) -> Prefix | None:
        ahead = None if worn is None else worn.adapter.ahead
        return None if ahead is None else as_prefix_of(self._model, ahead)

    def _joined(self, caches: list[Any], order: torch.Tensor) -> Any:
        """One cache of all rows: shorter groups get blank columns on the left, which the mask hides."""
        if len(caches) == 1:
            caches[0].batch_select_indices(order)
            return caches[0]
        joined = new_cache(self._model.config)
        longest = max(cache.get_seq_length() for cache in caches)
        for number in range(len(caches[0].layers)):
            pairs = []
            for kind in ("keys", "values"):
                parts = [getattr(cache.layers[number], kind) for cache in caches]
                pairs.append(torch.cat([_padded(part, longest, 2) for part in parts])[order])
            joined.update(pairs[0], pairs[1], number)
        return joined

    def branch(self) -> None:
        """Lines of one prompt copy its cache."""

    @torch.inference_mode()
    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        ids = tokens.to(self._model.device)[:, None]
        self._mask = torch.cat([self._mask, self._mask.new_ones((len(tokens), 1))], dim=1)
        logits = self._forward(self._cache, self._worn, ids, self._mask, self._next)
        self._next = self._next + 1
        return logits

    @torch.inference_mode()
    def select(self, lines: torch.Tensor) -> None:
        lines = lines.to(self._model.device)
        self._worn = [self._worn[line] for line in lines.tolist()]
        self._cache.batch_select_indices(lines)
        self._next, self._mask = self._next[lines], self._mask[lines]

    def _forward(
        self, cache: Any, worn: Sequence[Worn | None], ids: torch.Tensor, mask: torch.Tensor, places: torch.Tensor
    ) -> torch.Tensor:
        with dressed(self._modules, worn):
            out = self._model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=places,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        return torch.as_tensor(out.logits[:, -1])


def _padded(part: torch.Tensor, columns: int, dim: int) -> torch.Tensor:
    """`part` with blank columns on the left."""
    shape = list(part.shape)
    shape[dim] = columns - shape[dim]
    return torch.cat([part.new_zeros(shape), part], dim)
