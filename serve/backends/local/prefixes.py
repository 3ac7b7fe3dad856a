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

from serve.backends.local.worn import Adapter, Worn

# Less is quicker read again than looked after.
LEAST = 32
MAX_BYTES = 256 << 20

Tokens = tuple[int, ...]
# The adapter by its identity, how strongly it is worn, and the tokens.
_Key = tuple[tuple[int, float], Tokens]


@dataclass(frozen=True)
class _Entry:
    """What was read: keys and values (layers, 2, heads, places, head size) of `ahead` virtual places and the tokens."""

    worn: Worn | None
    known: torch.Tensor
    ahead: int

    @property
    def size(self) -> int:
        return self.known.untyped_storage().nbytes()


class Prefixes:
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

    def find(self, worn: Worn | None, tokens: Sequence[int]) -> tuple[int, torch.Tensor] | None:
        """The longest known beginning of `tokens` under what is worn: how many of them, and their keys and values.

        At least one token is left to read. Without a shared beginning, an adapter's virtual tokens alone (0 tokens).
        """
        asked = tuple(tokens)[:-1]
        with self._lock:
            common = {key: shared_tokens(key[1], asked) for key in self._entries if key[0] == _who(worn)}
            if not common:
                return None
            key = _best(common)
            entry, length = self._entries[key], common[key] if common[key] >= LEAST else 0
            if length == 0 and entry.ahead == 0:
                return None
            self._entries.move_to_end(key)
            known = entry.known[:, :, :, : entry.ahead + length]
            if length < len(key[1]):
                # It came again, so it is a beginning of its own: the rest of that prompt may go.
                known = known.clone()
                self._put((_who(worn), key[1][:length]), _Entry(worn, known, entry.ahead))
            return length, known

    @staticmethod
    def same(one: Worn | None, other: Worn | None) -> bool:
        """Whether what was read under the one serves the other."""
        return _who(one) == _who(other)

    def keep(self, worn: Worn | None, tokens: Sequence[int], known: torch.Tensor) -> None:
        """Keeps what was read of a prompt, or of virtual tokens alone. `known` is not copied and must not change."""
        ahead = known.shape[3] - len(tokens)
        if not ahead and len(tokens) < LEAST:
            return
        with self._lock:
            self._put((_who(worn), tuple(tokens)), _Entry(worn, known, ahead))

    def forget(self, adapter: Adapter) -> None:
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


def _who(worn: Worn | None) -> tuple[int, float]:
    return (0, 1.0) if worn is None else (id(worn.adapter), worn.scale)


def _best(common: dict[_Key, int]) -> _Key:
    """The entry that saves most; one that is used whole rather than one that shares a few tokens more.

    Two problems may begin with the same words by chance: that does not make another beginning.
    """
    most = max(common.values())
    whole = [key for key, length in common.items() if length == len(key[1]) and most - length < LEAST]
    return max(whole or common, key=common.__getitem__)


def shared_tokens(known: Tokens, asked: Tokens) -> int:
    """How many tokens both begin with."""
    if known == asked[: len(known)]:
        return len(known)
    shorter = min(len(known), len(asked))
    return next((at for at in range(shorter) if known[at] != asked[at]), shorter)
