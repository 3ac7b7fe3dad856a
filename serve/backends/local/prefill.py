"""Chunked prefill of several prompts, and the prefix cache, so that common beginnings are prefilled once.

Prefix cache: LRU cache of keys and values by adapter and token ids, so that common prefixes are prefilled once.
Few-shot prompts repeat their examples, and chats repeat their system turn: hundreds of equal tokens in prompt after
prompt. Keys and values depend on the base (each base has its own cache, so its revision and quantization need no key),
on the adapter and its scale, and on the token ids. An adapter's virtual tokens are in front of its tokens.

A forward computes at most PREFILL_CHUNK tokens: a piece of one long prompt, or several short prompts together. Tokens
whose keys and values are in the prefix cache are skipped.

Keys and values of all layers are one tensor, (layers, 2, key/value heads, positions, head size), so that copying a
prefix to or from the prefix cache is one tensor operation.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock

import torch

from serve.backends.local.batch import PromptInput
from serve.backends.local.fused_llama import FusedLlama
from serve.backends.local.lora.adapter import AppliedAdapter, KVPrefix, LoadedAdapter, SoftPrompt
from serve.backends.local.lora.batch import BatchedAdapters, TokenSpan

# Shorter prefixes are faster to compute again than to store.
MIN_PREFIX_TOKENS = 32
MAX_BYTES = 256 << 20

TokenIds = tuple[int, ...]
# (adapter identity, scale) and the tokens.
_Key = tuple[tuple[int, float], TokenIds]
# Number of query positions whose attention is computed together on a CPU.
_QUERY_BLOCK = 96
_sdpa = torch.nn.functional.scaled_dot_product_attention


@dataclass(frozen=True)
class _Entry:
    """Keys and values, (layers, 2, heads, positions, head size), of `num_virtual_tokens` and the tokens of the key.

    The entry refers to the adapter so that its id, which is part of the key, is not reused for another object.
    """

    applied_adapter: AppliedAdapter | None
    kv: torch.Tensor
    num_virtual_tokens: int

    @property
    def size(self) -> int:
        return self.kv.untyped_storage().nbytes()


class PrefixCache:
    """The most recently used prefixes, bounded in bytes. Thread-safe.

    A finished prompt is inserted whole. When another prompt shares only its beginning, that beginning becomes an entry
    of its own, which stays recent while the rest of the first prompt ages and is evicted.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.max_bytes = max_bytes
        # Prompts that used a cached prefix; counted by the prefill, because a match may be looked up more than once.
        self.hits = 0
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    @property
    def bytes(self) -> int:
        """The memory of all entries."""
        return self._bytes

    def match_prefix(
        self, applied_adapter: AppliedAdapter | None, tokens: Sequence[int]
    ) -> tuple[int, torch.Tensor] | None:
        """Return the longest cached prefix of `tokens` with this adapter: its number of tokens, its keys and values.

        At least one token is left to compute, because its logits are needed. Without a common prefix, the result is the
        adapter's virtual tokens alone (0 tokens), or None if there are none.
        """
        prefix = tuple(tokens)[:-1]
        with self._lock:
            common = {
                key: common_prefix_length(key[1], prefix)
                for key in self._entries
                if key[0] == adapter_key(applied_adapter)
            }
            if not common:
                return None
            key = _best_match(common)
            entry, length = self._entries[key], common[key] if common[key] >= MIN_PREFIX_TOKENS else 0
            if length == 0 and entry.num_virtual_tokens == 0:
                return None
            self._entries.move_to_end(key)
            kv = entry.kv[:, :, :, : entry.num_virtual_tokens + length]
            if length < len(key[1]):
                # A copy, not a view: a view would keep the memory of the whole prompt after its eviction.
                kv = kv.clone()
                self._put(
                    (adapter_key(applied_adapter), key[1][:length]),
                    _Entry(applied_adapter, kv, entry.num_virtual_tokens),
                )
            return length, kv

    @staticmethod
    def same_adapter(first: AppliedAdapter | None, second: AppliedAdapter | None) -> bool:
        """Return whether keys and values computed with one are valid for the other."""
        return adapter_key(first) == adapter_key(second)

    def insert(self, applied_adapter: AppliedAdapter | None, tokens: Sequence[int], kv: torch.Tensor) -> None:
        """Add a prefilled prompt, or virtual tokens alone. `kv` is not copied and must not change afterwards."""
        num_virtual_tokens = kv.shape[3] - len(tokens)
        if not num_virtual_tokens and len(tokens) < MIN_PREFIX_TOKENS:
            return
        with self._lock:
            self._put((adapter_key(applied_adapter), tuple(tokens)), _Entry(applied_adapter, kv, num_virtual_tokens))

    def evict_adapter(self, adapter: LoadedAdapter) -> None:
        """Remove all entries of an unloaded adapter."""
        with self._lock:
            for key in [key for key in self._entries if key[0][0] == id(adapter)]:
                self._bytes -= self._entries.pop(key).size

    def clear(self) -> None:
        """Remove all entries."""
        with self._lock:
            self._entries.clear()
            self._bytes = 0

    def _put(self, key: _Key, entry: _Entry) -> None:
        replaced = self._entries.pop(key, None)
        self._bytes += entry.size - (0 if replaced is None else replaced.size)
        self._entries[key] = entry
        while self._bytes > self.max_bytes and self._entries:
            _, oldest = self._entries.popitem(last=False)
            self._bytes -= oldest.size


def adapter_key(applied_adapter: AppliedAdapter | None) -> tuple[int, float]:
    """Return the adapter's part of a cache key: its identity in this process and its scale; (0, 1.0) for None."""
    return (0, 1.0) if applied_adapter is None else (id(applied_adapter.adapter), applied_adapter.scale)


def _best_match(lengths: dict[_Key, int]) -> _Key:
    """Return the key of the entry to use: the longest match, but a nearly as long complete entry is preferred.

    Two prompts may begin with a few equal words behind their common examples by chance: preferring the complete entry
    avoids a new entry for each such pair.
    """
    longest = max(lengths.values())
    complete = [
        key for key, length in lengths.items() if length == len(key[1]) and longest - length < MIN_PREFIX_TOKENS
    ]
    return max(complete or lengths, key=lengths.__getitem__)


def common_prefix_length(cached: TokenIds, tokens: TokenIds) -> int:
    """Return the length of the longest common prefix."""
    if cached == tokens[: len(cached)]:
        return len(cached)
    shorter = min(len(cached), len(tokens))
    return next((index for index in range(shorter) if cached[index] != tokens[index]), shorter)


class PrefillSequence:
    """Keys and values of one prompt during its prefill.

    For each chunk: `next_chunk`, then the forward, which calls `attend` once per layer, then `commit`.
    """

    def __init__(self, model: FusedLlama, count: int, prefix_kv: torch.Tensor | None = None) -> None:
        """Reserve `count` positions behind `prefix_kv`, cached keys and values, which are copied."""
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
        """The number of computed positions."""
        return self._end - self._prefix_length

    @property
    def remaining(self) -> int:
        """The number of positions to compute."""
        return self.count - self.done

    def next_chunk(self, max_tokens: int) -> range:
        """Return the next positions, at most `max_tokens`, and prepare their causal mask."""
        positions = range(self._end, self._end + min(max_tokens, self.remaining))
        device = self.kv.device
        columns = torch.arange(positions.stop, device=device)
        hidden = columns > torch.arange(positions.start, positions.stop, device=device)[:, None]
        self._bias = torch.zeros(hidden.shape, device=device, dtype=self.kv.dtype)
        self._bias.masked_fill_(hidden, torch.finfo(self.kv.dtype).min)
        return positions

    def commit(self, positions: range) -> None:
        """Mark `positions` as computed, after their forward."""
        self._end = positions.stop

    def attend(self, layer: int, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Store the chunk's keys and values and return its causal attention, (positions, heads, head size)."""
        end = self._end + len(query)
        layer_kv = self.kv[layer]
        layer_kv[0, :, self._end : end] = keys.transpose(0, 1)
        layer_kv[1, :, self._end : end] = values.transpose(0, 1)
        keys, values = layer_kv[0, :, :end], layer_kv[1, :, :end]
        if query.device.type == "cpu":
            return self._matmul_attention(query, keys, values)
        group_size = query.shape[1] // len(keys)
        keys, values = keys.repeat_interleave(group_size, 0), values.repeat_interleave(group_size, 0)
        attended = _sdpa(query.transpose(0, 1)[None], keys[None], values[None], self._bias, scale=self._scale)
        return attended[0].transpose(0, 1)

    def _matmul_attention(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Attention as matrix products over blocks of queries; columns that a whole block may not see are skipped.

        On a CPU this is faster than torch 2.13's fused attention.
        """
        count, heads, size = query.shape
        groups, before = len(keys), keys.shape[1] - count
        query = (query * self._scale).view(count, groups, -1, size).permute(1, 2, 0, 3)
        attended = query.new_empty(query.shape)
        for begin in range(0, count, _QUERY_BLOCK):
            end = min(begin + _QUERY_BLOCK, count)
            columns = before + end
            block = query[:, :, begin:end]
            scores = torch.bmm(block.reshape(groups, -1, size), keys[:, :columns].transpose(1, 2))
            scores.view(groups, -1, end - begin, columns).add_(self._bias[begin:end, :columns])
            probs = scores.softmax(-1)
            attended[:, :, begin:end] = torch.bmm(probs, values[:, :columns]).view(block.shape)
        return attended.permute(2, 0, 1, 3).reshape(count, heads, size)


# Tokens per forward. Running sequences wait one such forward for their next token, and so does a cancel.
PREFILL_CHUNK = 512

BatchAdaptersFn = Callable[[Sequence[TokenSpan]], BatchedAdapters | None]


class ChunkedPrefill:
    """Prefill of several prompts in their order. `batch_adapters` prepares the adapters of one forward's rows."""

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
        """The sequences in the order of the prompts."""
        return self._sequences

    @property
    def logits(self) -> torch.Tensor:
        """The logits of each prompt's first new token, (prompts, vocabulary)."""
        return torch.stack([row for row in self._logits if row is not None])

    def prefill_chunk(self) -> bool:
        """Compute the next chunk; return whether all prompts are prefilled."""
        chunks = self._next_chunk()
        spans: list[TokenSpan] = []
        tokens: list[int] = []
        positions: list[int] = []
        row_sequences: list[tuple[slice, PrefillSequence]] = []
        last_rows: dict[int, int] = {}
        for index, chunk_positions in chunks:
            sequence, prompt = self._sequences[index], self._prompts[index]
            rows = slice(len(tokens), len(tokens) + len(chunk_positions))
            # Cached tokens are the first ones of the prompt; `count` are the others.
            num_cached = len(prompt.tokens) - sequence.count
            tokens += prompt.tokens[num_cached + sequence.done : num_cached + sequence.done + len(chunk_positions)]
            positions += chunk_positions
            row_sequences.append((rows, sequence))
            if prompt.applied_adapter is not None:
                spans.append((rows, prompt.applied_adapter))
            if len(chunk_positions) == sequence.remaining:
                last_rows[index] = rows.stop - 1
        embeddings = self._model.embed(torch.tensor(tokens, device=self._model.device))
        logits = self._forward(
            embeddings, positions, row_sequences, self._batch_adapters(spans), list(last_rows.values())
        )
        for (index, chunk_positions), (_, sequence) in zip(chunks, row_sequences, strict=True):
            sequence.commit(chunk_positions)
            if not sequence.remaining:
                self._prefix_cache.insert(
                    self._prompts[index].applied_adapter, self._prompts[index].tokens, sequence.kv
                )
        for index, row in zip(last_rows, logits, strict=True):
            self._logits[index] = row
        return all(row is not None for row in self._logits)

    def _next_chunk(self) -> list[tuple[int, range]]:
        """Choose up to PREFILL_CHUNK tokens: (prompt index, positions) pairs, begun prompts first.

        A prompt that another one in this chunk would make cheaper (`_should_wait`) waits for the next chunk, and so do
        those behind it: prompts start in their order.
        """
        budget = PREFILL_CHUNK
        chunk: list[tuple[int, range]] = []
        for index, sequence in enumerate(self._sequences):
            if sequence.remaining and budget:
                chunk.append((index, sequence.next_chunk(budget)))
                budget -= len(chunk[-1][1])
        while len(self._sequences) < len(self._prompts) and budget:
            index = len(self._sequences)
            cached = self._cached_kv(self._prompts[index])
            if self._should_wait(index, 0 if cached is None else cached[0], [other for other, _ in chunk]):
                break
            num_cached, before = cached or (0, None)
            self._prefix_cache.hits += num_cached > 0
            sequence = PrefillSequence(self._model, len(self._prompts[index].tokens) - num_cached, before)
            self._sequences.append(sequence)
            chunk.append((index, sequence.next_chunk(budget)))
            budget -= len(chunk[-1][1])
        return chunk

    def _should_wait(self, index: int, num_cached: int, others: Sequence[int]) -> bool:
        """Return whether a prompt of this chunk computes a prefix that prompt `index` can take from the cache after it.

        Rows of one request often share their few-shot examples: without this wait each of them would compute these.
        """
        prompt = self._prompts[index]
        return any(
            PrefixCache.same_adapter(prompt.applied_adapter, other_prompt.applied_adapter)
            and common_prefix_length(other_prompt.tokens, prompt.tokens) - num_cached >= MIN_PREFIX_TOKENS
            for other_prompt in (self._prompts[other] for other in others)
        )

    def _cached_kv(self, prompt: PromptInput) -> tuple[int, torch.Tensor] | None:
        """Return the number of the prompt's tokens to skip, and the keys and values in front of the others."""
        match = self._prefix_cache.match_prefix(prompt.applied_adapter, prompt.tokens)
        if (
            match is None
            and prompt.applied_adapter is not None
            and prompt.applied_adapter.adapter.prompt_prefix is not None
        ):
            cached = self._prompt_prefix_kv(prompt.applied_adapter)
            self._prefix_cache.insert(prompt.applied_adapter, (), cached)
            return 0, cached
        return match

    def _prompt_prefix_kv(self, applied_adapter: AppliedAdapter) -> torch.Tensor:
        """Return the keys and values of the adapter's prompt prefix; the bare base computes those of virtual tokens."""
        prompt_prefix = applied_adapter.adapter.prompt_prefix
        if isinstance(prompt_prefix, KVPrefix):
            return torch.stack(
                [torch.stack(pair) for pair in zip(prompt_prefix.keys, prompt_prefix.values, strict=True)]
            )
        if not isinstance(prompt_prefix, SoftPrompt):
            raise TypeError(f"{applied_adapter} has no prompt prefix.")
        sequence = PrefillSequence(self._model, len(prompt_prefix.embeddings))
        positions = sequence.next_chunk(sequence.count)
        rows = slice(0, sequence.count)
        self._forward(prompt_prefix.embeddings, list(positions), [(rows, sequence)], None, [sequence.count - 1])
        return sequence.kv

    def _forward(
        self,
        embeddings: torch.Tensor,
        positions: list[int],
        row_sequences: Sequence[tuple[slice, PrefillSequence]],
        batched_adapters: BatchedAdapters | None,
        logits_indices: list[int],
    ) -> torch.Tensor:
        """Run the base over the rows of several sequences; return the logits of `logits_indices`."""

        def attend(layer: int, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
            attended = torch.empty_like(query)
            for rows, sequence in row_sequences:
                attended[rows] = sequence.attend(layer, query[rows], keys[rows], values[rows])
            return attended

        device = self._model.device
        indices = torch.tensor(logits_indices, device=device, dtype=torch.long)
        return self._model.forward(
            embeddings, torch.tensor(positions, device=device), attend, batched_adapters, indices
        )
