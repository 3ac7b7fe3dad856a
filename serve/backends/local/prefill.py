"""Chunked prefill of several prompts.

Reads the prompts of lines that join: piece by piece, several short ones at once, nothing that is known again.

A prompt that is being read: its tokens, and the keys and values of what stands before them and of them.

Keys and values of all layers lie in one tensor, (layers, 2, key/value heads, places, head size): what is kept of one
line for another (prefixes.py), copied or dropped, is one tensor operation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from serve.backends.local.fused_llama import FusedLlama
from serve.backends.local.lora.batch import BatchedAdapters, TokenSpan
from serve.backends.local.lora.prompt_learning import KVPrefix, SoftPrompt
from serve.backends.local.lora.registry import AppliedAdapter
from serve.backends.local.model_runner import PromptInput
from serve.backends.local.prefix_cache import MIN_PREFIX_TOKENS, PrefixCache, common_prefix_length

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
