"""Reads the prompts of lines that join: piece by piece, several short ones at once, nothing that is known again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from serve.backends.local.dress import BatchedAdapters, TokenSpan
from serve.backends.local.fused import FusedLlama
from serve.backends.local.prefix import KVPrefix, SoftPrompt
from serve.backends.local.prefixes import MIN_PREFIX_TOKENS, PrefixCache, common_prefix_length
from serve.backends.local.reading import PrefillSequence
from serve.backends.local.state import PromptInput
from serve.backends.local.worn import AppliedAdapter

# Places that are read at once: lines that speak wait so long for their next token, and so does a cancel.
PREFILL_CHUNK = 512

BatchAdaptersFn = Callable[[Sequence[TokenSpan]], BatchedAdapters | None]


class ChunkedPrefill:
    """The prompts of some lines, in their order. `dressed` makes ready what the places of a forward wear."""

    def __init__(
        self,
        model: FusedLlama,
        prefix_cache: PrefixCache,
        batch_adapters: BatchAdaptersFn,
        prompts: Sequence[PromptInput],
    ) -> None:
        self._model = model
        self._prefix_cache = prefix_cache
        self._batch_adapters = batch_adapters
        self._prompts = prompts
        self._sequences: list[PrefillSequence] = []
        self._logits: list[torch.Tensor | None] = [None] * len(prompts)

    @property
    def sequences(self) -> list[PrefillSequence]:
        """What was read, line by line."""
        return self._sequences

    @property
    def logits(self) -> torch.Tensor:
        """The logits of each line's first new token, (lines, vocabulary)."""
        return torch.stack([row for row in self._logits if row is not None])

    def prefill_chunk(self) -> bool:
        """Reads the next piece; whether all has been read."""
        pieces = self._next_chunk()
        spans: list[TokenSpan] = []
        tokens: list[int] = []
        places: list[int] = []
        parts: list[tuple[slice, PrefillSequence]] = []
        lasts: dict[int, int] = {}
        for line, taken in pieces:
            reading, asked = self._sequences[line], self._prompts[line]
            rows = slice(len(tokens), len(tokens) + len(taken))
            # The prompt's tokens that were not known are its last ones.
            skipped = len(asked.tokens) - reading.count
            tokens += asked.tokens[skipped + reading.done : skipped + reading.done + len(taken)]
            places += taken
            parts.append((rows, reading))
            if asked.applied_adapter is not None:
                spans.append((rows, asked.applied_adapter))
            if len(taken) == reading.remaining:
                lasts[line] = rows.stop - 1
        embedded = self._model.embed(torch.tensor(tokens, device=self._model.device))
        logits = self._forward(embedded, places, parts, self._batch_adapters(spans), list(lasts.values()))
        for (line, taken), (_, reading) in zip(pieces, parts, strict=True):
            reading.commit(taken)
            if not reading.remaining:
                self._prefix_cache.insert(self._prompts[line].applied_adapter, self._prompts[line].tokens, reading.kv)
        for line, row in zip(lasts, logits, strict=True):
            self._logits[line] = row
        return all(row is not None for row in self._logits)

    def _next_chunk(self) -> list[tuple[int, range]]:
        """Which places of which lines to read now."""
        room = PREFILL_CHUNK
        piece: list[tuple[int, range]] = []
        for line, reading in enumerate(self._sequences):
            if reading.remaining and room:
                piece.append((line, reading.next_chunk(room)))
                room -= len(piece[-1][1])
        while len(self._sequences) < len(self._prompts) and room:
            line = len(self._sequences)
            known = self._cached_kv(self._prompts[line])
            if self._should_wait(line, 0 if known is None else known[0], [other for other, _ in piece]):
                break
            skipped, before = known or (0, None)
            self._prefix_cache.hits += skipped > 0
            reading = PrefillSequence(self._model, len(self._prompts[line].tokens) - skipped, before)
            self._sequences.append(reading)
            piece.append((line, reading.next_chunk(room)))
            room -= len(piece[-1][1])
        return piece

    def _should_wait(self, index: int, num_cached: int, others: Sequence[int]) -> bool:
        """Whether one of the lines in this piece reads what this one could then skip."""
        mine = self._prompts[index]
        return any(
            PrefixCache.same_adapter(mine.applied_adapter, theirs.applied_adapter)
            and common_prefix_length(theirs.tokens, mine.tokens) - num_cached >= MIN_PREFIX_TOKENS
            for theirs in (self._prompts[other] for other in others)
        )

    def _cached_kv(self, prompt: PromptInput) -> tuple[int, torch.Tensor] | None:
        """How many of the line's tokens need not be read, and the keys and values of all before the rest."""
        found = self._prefix_cache.match_prefix(prompt.applied_adapter, prompt.tokens)
        if (
            found is None
            and prompt.applied_adapter is not None
            and prompt.applied_adapter.adapter.prompt_prefix is not None
        ):
            known = self._prompt_prefix_kv(prompt.applied_adapter)
            self._prefix_cache.insert(prompt.applied_adapter, (), known)
            return 0, known
        return found

    def _prompt_prefix_kv(self, applied_adapter: AppliedAdapter) -> torch.Tensor:
        """Keys and values of what the adapter puts before a prompt; virtual tokens are read by the bare base."""
        ahead = applied_adapter.adapter.prompt_prefix
        if isinstance(ahead, KVPrefix):
            return torch.stack([torch.stack(pair) for pair in zip(ahead.keys, ahead.values, strict=True)])
        if not isinstance(ahead, SoftPrompt):
            raise TypeError(f"Nothing stands before the prompts of {applied_adapter}.")
        reading = PrefillSequence(self._model, len(ahead.embeddings))
        places = reading.next_chunk(reading.count)
        rows = slice(0, reading.count)
        self._forward(ahead.embeddings, list(places), [(rows, reading)], None, [reading.count - 1])
        return reading.kv

    def _forward(
        self,
        embedded: torch.Tensor,
        positions: list[int],
        parts: Sequence[tuple[slice, PrefillSequence]],
        batched_adapters: BatchedAdapters | None,
        logits_indices: list[int],
    ) -> torch.Tensor:
        """Logits of the rows `lasts`."""

        def attend(layer: int, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
            seen = torch.empty_like(query)
            for rows, reading in parts:
                seen[rows] = reading.attend(layer, query[rows], keys[rows], values[rows])
            return seen

        device = self._model.device
        kept = torch.tensor(logits_indices, device=device, dtype=torch.long)
        return self._model.forward(embedded, torch.tensor(positions, device=device), attend, batched_adapters, kept)
