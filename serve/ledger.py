"""Which adapters are in memory, who uses them, and which of them may go: sums alone, no threads and no backend."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, field

from adapters.store import AdapterFolder
from errors import AdapterError


@dataclass(eq=False)
class CacheEntry:
    """One version of an adapter in memory. `leaving`: it is unloaded once its last lease is given back."""

    folder: AdapterFolder
    bytes: int
    last_used: float
    leases: int = 0
    unload_pending: bool = False


@dataclass(eq=False)
class InFlightLoad:
    """A name that one thread is loading or unloading. `bytes` is the room that is kept for what it loads."""

    folder: AdapterFolder | None = None
    bytes: int | None = None
    error: AdapterError | None = None


@dataclass(frozen=True)
class CachedAdapterStatus:
    """One adapter in memory; `last_used` is in seconds since the epoch."""

    name: str
    digest: str
    bytes: int
    leases: int
    pinned: bool
    last_used: float


@dataclass(frozen=True)
class AdapterCacheStatus:
    """What is in memory, what was used longest ago first, and what it took.

    `bytes` counts replaced versions that rows in flight still wear. `hits`, `loads` and `evictions` count from the
    start on; `load_seconds` is the time that the loads took together.
    """

    count: int
    bytes: int
    max_count: int
    max_bytes: int
    adapters: tuple[CachedAdapterStatus, ...]
    hits: int
    loads: int
    evictions: int
    load_seconds: float


@dataclass(eq=False)
class CacheState:
    """The books of `AdapterCache`, which calls everything here under its lock."""

    max_count: int
    max_bytes: int
    entries: OrderedDict[str, CacheEntry] = field(default_factory=OrderedDict)
    # Versions that the backend has under their name no more, and somebody still has a lease on.
    replaced: list[CacheEntry] = field(default_factory=list)
    in_flight: dict[str, InFlightLoad] = field(default_factory=dict)
    pinned: set[str] = field(default_factory=set)
    hits: int = 0
    loads: int = 0
    evictions: int = 0
    load_seconds: float = 0.0
    # Seconds for which a lease is held, of late.
    mean_lease_seconds: float = 0.0

    def lease(self, name: str, folder: AdapterFolder) -> CacheEntry | None:
        """What is in memory, with one lease more, if that is this version; it stays then, whoever wanted it to go."""
        resident = self.entries.get(name)
        if resident is None:
            return None
        resident.unload_pending = False
        if resident.folder != folder:
            return None
        resident.leases += 1
        self._touch(name, resident)
        return resident

    def release(self, name: str, entry: CacheEntry, seconds: float) -> bool:
        """One lease less, after so many seconds; whether the adapter must be unloaded now."""
        self.mean_lease_seconds += (seconds - self.mean_lease_seconds) / 10
        entry.leases -= 1
        if entry.leases:
            return False
        if entry in self.replaced:
            self.replaced.remove(entry)
            return False
        self._touch(name, entry)
        return entry.unload_pending and name not in self.in_flight

    def insert(self, name: str, folder: AdapterFolder, load: InFlightLoad, size: int) -> CacheEntry | None:
        """What was loaded in place of any earlier version, leased; None where it needs more room than there is."""
        before = self.entries.pop(name, None)
        if before is not None and before.leases:
            self.replaced.append(before)
        if not self.reserve(load, size):
            return None
        load.bytes = None
        self.entries[name] = CacheEntry(folder, size, time.time())
        return self.lease(name, folder)

    def reserve(self, load: InFlightLoad, size: int) -> bool:
        """Keeps `size` bytes for the move, in place of what it had; False where they are not there."""
        load.bytes = None
        taken = [each.bytes for each in (*self.entries.values(), *self.replaced)]
        taken += [each.bytes for each in self.in_flight.values() if each.bytes is not None]
        if len(taken) >= self.max_count or sum(taken) + size > self.max_bytes:
            return False
        load.bytes = size
        return True

    def victim(self, name: str) -> str | None:
        """What makes room for `name`: neither leased nor pinned, and used longest ago.

        An earlier version of `name` itself may go even if it is pinned, as another one is on its way.
        """
        for each, resident in self.entries.items():
            if not resident.leases and (each == name or (each not in self.pinned and each not in self.in_flight)):
                return each
        return None

    def can_free_later(self, name: str) -> bool:
        """Whether something that takes room now can make room for `name` later on."""
        leased = any(each.leases and (key == name or key not in self.pinned) for key, each in self.entries.items())
        moving = any(
            key != name and (move.bytes is not None or key in self.entries) for key, move in self.in_flight.items()
        )
        return leased or moving or bool(self.replaced)

    def status(self) -> AdapterCacheStatus:
        """What is in memory now."""
        adapters = tuple(
            CachedAdapterStatus(name, each.folder.digest, each.bytes, each.leases, name in self.pinned, each.last_used)
            for name, each in self.entries.items()
        )
        return AdapterCacheStatus(
            len(adapters),
            sum(each.bytes for each in (*self.entries.values(), *self.replaced)),
            self.max_count,
            self.max_bytes,
            adapters,
            self.hits,
            self.loads,
            self.evictions,
            self.load_seconds,
        )

    def _touch(self, name: str, entry: CacheEntry) -> None:
        entry.last_used = time.time()
        self.entries.move_to_end(name)
