"""Prefix cache: LRU cache of keys and values by adapter and token ids, so that common prefixes are prefilled once.

Few-shot prompts repeat their examples, and chats repeat their system turn: hundreds of equal tokens in prompt after
prompt. Keys and values depend on the base (each base has its own cache, so its revision and quantization need no key),
on the adapter and its scale, and on the token ids. An adapter's virtual tokens are in front of its tokens.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock

import torch

from serve.backends.local.lora.registry import AppliedAdapter, LoadedAdapter

# Shorter prefixes are faster to compute again than to store.
MIN_PREFIX_TOKENS = 32
MAX_BYTES = 256 << 20

TokenIds = tuple[int, ...]
# (adapter identity, scale) and the tokens.
_Key = tuple[tuple[int, float], TokenIds]


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
