"""Keys and values of what was read before, so that a beginning that comes again is not read again.

ICL shows every problem the same examples, and a chat begins with the same system turn: hundreds of tokens that are the
same in prompt after prompt. What was read belongs to the base (there is one cache a base, so its revision and
quantization are part of every key), to the very adapter that was worn meanwhile, and to the token ids; under another
adapter it would be wrong. Virtual tokens are the beginning that an adapter brings along.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock

import torch

from serve.backends.local.lora.registry import AppliedAdapter, LoadedAdapter

# Less is quicker read again than looked after.
MIN_PREFIX_TOKENS = 32
MAX_BYTES = 256 << 20

TokenIds = tuple[int, ...]
# The adapter by its identity, how strongly it is worn, and the tokens.
_Key = tuple[tuple[int, float], TokenIds]


@dataclass(frozen=True)
class _Entry:
    """What was read: keys and values (layers, 2, heads, places, head size) of `ahead` virtual places and the tokens."""

    applied_adapter: AppliedAdapter | None
    kv: torch.Tensor
    num_virtual_tokens: int

    @property
    def size(self) -> int:
        return self.kv.untyped_storage().nbytes()


class PrefixCache:
    """The beginnings read last, bounded in bytes; those that came again outlive those seen once. Thread-safe."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.max_bytes = max_bytes
        # Lines that began with what was known; whoever reads counts them.
        self.hits = 0
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    @property
    def bytes(self) -> int:
        """How much memory the kept keys and values take."""
        return self._bytes

    def match_prefix(
        self, applied_adapter: AppliedAdapter | None, tokens: Sequence[int]
    ) -> tuple[int, torch.Tensor] | None:
        """The longest known beginning of `tokens` under what is worn: how many of them, and their keys and values.

        At least one token is left to read. Without a shared beginning, an adapter's virtual tokens alone (0 tokens).
        """
        asked = tuple(tokens)[:-1]
        with self._lock:
            common = {
                key: common_prefix_length(key[1], asked)
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
            known = entry.kv[:, :, :, : entry.num_virtual_tokens + length]
            if length < len(key[1]):
                # It came again, so it is a beginning of its own: the rest of that prompt may go.
                known = known.clone()
                self._put(
                    (adapter_key(applied_adapter), key[1][:length]),
                    _Entry(applied_adapter, known, entry.num_virtual_tokens),
                )
            return length, known

    @staticmethod
    def same_adapter(one: AppliedAdapter | None, other: AppliedAdapter | None) -> bool:
        """Whether what was read under the one serves the other."""
        return adapter_key(one) == adapter_key(other)

    def insert(self, applied_adapter: AppliedAdapter | None, tokens: Sequence[int], kv: torch.Tensor) -> None:
        """Keeps what was read of a prompt, or of virtual tokens alone. `known` is not copied and must not change."""
        ahead = kv.shape[3] - len(tokens)
        if not ahead and len(tokens) < MIN_PREFIX_TOKENS:
            return
        with self._lock:
            self._put((adapter_key(applied_adapter), tuple(tokens)), _Entry(applied_adapter, kv, ahead))

    def evict_adapter(self, adapter: LoadedAdapter) -> None:
        """Drops what was read under an adapter that has gone."""
        with self._lock:
            for key in [key for key in self._entries if key[0][0] == id(adapter)]:
                self._bytes -= self._entries.pop(key).size

    def clear(self) -> None:
        """Drops everything."""
        with self._lock:
            self._entries.clear()
            self._bytes = 0

    def _put(self, key: _Key, entry: _Entry) -> None:
        old = self._entries.pop(key, None)
        self._bytes += entry.size - (0 if old is None else old.size)
        self._entries[key] = entry
        while self._bytes > self.max_bytes and self._entries:
            _, oldest = self._entries.popitem(last=False)
            self._bytes -= oldest.size


def adapter_key(applied_adapter: AppliedAdapter | None) -> tuple[int, float]:
    """What keys a cached prefix by adapter: its identity in this process and its scale; (0, 1.0) without one."""
    return (0, 1.0) if applied_adapter is None else (id(applied_adapter.adapter), applied_adapter.scale)


def _best_match(lengths: dict[_Key, int]) -> _Key:
    """The entry that saves most; one that is used whole rather than one that shares a few tokens more.

    Two problems may begin with the same words by chance: that does not make another beginning.
    """
    most = max(lengths.values())
    whole = [key for key, length in lengths.items() if length == len(key[1]) and most - length < MIN_PREFIX_TOKENS]
    return max(whole or lengths, key=lengths.__getitem__)


def common_prefix_length(cached: TokenIds, tokens: TokenIds) -> int:
    """How many tokens both begin with."""
    if cached == tokens[: len(cached)]:
        return len(cached)
    shorter = min(len(cached), len(tokens))
    return next((at for at in range(shorter) if cached[at] != tokens[at]), shorter)
