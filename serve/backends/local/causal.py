"""The state of a decoder-only base: prompts padded on the left, in one key/value cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from serve.backends.local.beginnings import Beginnings
from serve.backends.local.cache import is_plain, new_cache, new_tails
from serve.backends.local.prefix import Prefix, as_prefix, begin_cache
from serve.backends.local.state import CancelledError, OnRows, pad
from serve.backends.local.stems import Stems, can_branch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# A prompt is read in pieces, so that a cancel during a long one takes effect between two of them.
PREFILL_CHUNK = 512
# Prompts are read together when the shorter one has at least this share of the longer one's tokens,
SIMILAR = 0.6
# and while they are no more tokens than this: what comes of them should fit a CPU's cache, and prompts that are read
# alone have no padding, so that attention needs no mask.
READ_AT_ONCE = 512


@dataclass(frozen=True)
class Uniform:
    """Said of a batch whose rows all wear the same adapter, or none: then what their prompts share is read once."""

    adapter: str | None
    beginnings: Beginnings


class CausalState:
    """Rows of a decoder-only base, padded on the left so that all of them end at the same column.

    A row's prefix stands before its padding. Its place counts, the padding's does not: position ids follow the mask.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        pad_token: int,
        prefixes: Sequence[Prefix | None],
        uniform: Uniform | None = None,
    ) -> None:
        self._model: Any = model
        self._pad = pad_token
        self._prefixes = prefixes
        self._uniform = uniform
        self._cache: Any = None
        self._stems: Stems | None = None
        self._mask = torch.empty(0)
        self._next = torch.empty(0)

    @torch.inference_mode()
    def start(self, prompts: Sequence[Sequence[int]], on_rows: OnRows, cancelled: Callable[[], bool]) -> torch.Tensor:
        prompts = self._without_beginning(prompts, on_rows, cancelled)
        groups = self._groups([len(prompt) for prompt in prompts])
        parts = []
        for rows in groups:
            on_rows(rows)
            parts.append(self._read([prompts[row] for row in rows], [self._prefixes[row] for row in rows], cancelled))
        order = torch.tensor([row for rows in groups for row in rows], device=self._model.device).argsort()
        self._cache = self._joined([cache for cache, _, _ in parts], order)
        longest = max(mask.shape[1] for _, mask, _ in parts)
        self._mask = torch.cat([self._padded(mask, longest, 1) for _, mask, _ in parts])[order]
        self._next = self._mask.sum(-1, keepdim=True)
        on_rows(range(len(prompts)))
        return torch.cat([logits for _, _, logits in parts])[order]

    def _without_beginning(
        self, prompts: Sequence[Sequence[int]], on_rows: OnRows, cancelled: Callable[[], bool]
    ) -> Sequence[Sequence[int]]:
        """What is left of the prompts when the beginning that they share has become part of their prefix."""
        if self._uniform is None or not is_plain(new_cache(self._model.config)):
            return prompts
        alone = self._prefixes[:1]

        def read(tokens: Sequence[int]) -> Prefix:
            on_rows([0])
            cache, _, _ = self._read([tokens], alone, cancelled)
            return as_prefix(cache)

        found = self._uniform.beginnings.shared(prompts, self._uniform.adapter, read)
        if found is None:
            return prompts
        length, prefix = found
        self._prefixes = [prefix] * len(prompts)
        return [prompt[length:] for prompt in prompts]

    def _shared(self) -> Prefix | None:
        """The prefix that stands before every prompt, if it is one and the same."""
        first = self._prefixes[0]
        return first if all(prefix is first for prefix in self._prefixes) else None

    def _padded(self, part: torch.Tensor, columns: int, dim: int) -> torch.Tensor:
        """`part` with blank columns to the left of the prompts, after the prefix that all of them share."""
        shared = self._shared()
        at = 0 if shared is None else len(shared)
        shape = list(part.shape)
        shape[dim] = columns - shape[dim]
        after = part.narrow(dim, at, part.shape[dim] - at)
        return torch.cat([part.narrow(dim, 0, at), part.new_zeros(shape), after], dim)

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

    def _read(
        self, prompts: Sequence[Sequence[int]], prefixes: Sequence[Prefix | None], cancelled: Callable[[], bool]
    ) -> tuple[Any, torch.Tensor, torch.Tensor]:
        """Cache, mask and last logits of one group."""
        self._cache = new_cache(self._model.config)
        known = begin_cache(self._cache, prefixes, self._model.device)
        ids, mask = pad(prompts, self._pad, left=True)
        ids, mask = ids.to(self._model.device), torch.cat([known, mask.to(self._model.device)], dim=1)
        before = known.shape[1]
        places = (mask.cumsum(-1) - 1).clamp(min=0)[:, before:]
        logits = torch.empty(0)
        for begin in range(0, ids.shape[1], PREFILL_CHUNK):
            if cancelled():
                raise CancelledError
            end = min(begin + PREFILL_CHUNK, ids.shape[1])
            logits = self._forward(ids[:, begin:end], mask[:, : before + end], places[:, begin:end])
        return self._cache, mask, logits

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
                pairs.append(torch.cat([self._padded(part, longest, 2) for part in parts])[order])
            joined.update(pairs[0], pairs[1], number)
        return joined

    @torch.inference_mode()
    def branch(self) -> None:
        if can_branch(self._model, self._cache):
            self._stems = Stems(self._cache, self._mask, self._shared())
            self._cache = new_tails(self._cache)

    @torch.inference_mode()
    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        ids = tokens.to(self._model.device)[:, None]
        if self._stems is None:
            self._mask = torch.cat([self._mask, self._mask.new_ones((len(tokens), 1))], dim=1)
        with nullcontext() if self._stems is None else self._stems.attended(self._model):
            logits = self._forward(ids, self._mask if self._stems is None else None, self._next)
        self._next = self._next + 1
        return logits

    @torch.inference_mode()
    def select(self, rows: torch.Tensor) -> None:
        rows = rows.to(self._model.device)
        self._cache.batch_select_indices(rows)
        self._next = self._next[rows]
        if self._stems is None:
            self._mask = self._mask[rows]
        else:
            self._stems.select(rows)

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor | None, places: torch.Tensor) -> torch.Tensor:
        out = self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=places,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return out.logits[:, -1]
