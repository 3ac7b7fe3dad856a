"""Ref-counted LRU of loaded adapters.

The adapters in memory: at most so many and so many bytes of them; what was used longest ago makes room.

Whoever needs an adapter takes a lease on it and loads it, where it is not there, in its own thread while the engine's
worker goes on decoding. A folder is looked at each time: what is leased is what lies on disk now, so a new version
under an old name is never answered with the old one. Rows in flight keep what they wear, as the backend promises.

Which adapters are in memory, who uses them, and which of them may go: sums alone, no threads and no backend.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Condition, Lock
from types import TracebackType

from adapters.store import AdapterFolder, Store
from adapters.weights import WEIGHTS_NAME
from errors import AdapterError, BusyError
from serve.types import Backend


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


# A folder that changes while it is loaded is tried anew, but not for as long as somebody writes into it.
_MAX_LOAD_ATTEMPTS = 3


class Lease:
    """Keeps an adapter in memory until it is released; `folder` is what was checked and loaded."""

    def __init__(self, folder: AdapterFolder, release_fn: Callable[[], None]) -> None:
        self.folder = folder
        self._release_fn: Callable[[], None] | None = release_fn
        self._lock = Lock()

    def release(self) -> None:
        """Gives the adapter back; a second time changes nothing."""
        with self._lock:
            give_back, self._release_fn = self._release_fn, None
        if give_back is not None:
            give_back()

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


class AdapterCache:
    """The adapters in memory: a bounded LRU (count and bytes). Thread-safe.

    The backend is never called under the lock: it may wait for the worker, and the worker for a lease's release.
    What one thread loads or unloads is marked as moving instead, and other threads that need it wait.
    """

    def __init__(
        self, backend: Backend, store: Store, *, max_count: int = 64, max_bytes: int = 2 << 30, timeout: float = 30.0
    ) -> None:
        self._backend = backend
        self._store = store
        self._timeout = timeout
        self._state = CacheState(max_count, max_bytes)
        self._changed = Condition(Lock())
        # Held while room is made, so that two that need room do not both take what one of them has freed.
        self._eviction_lock = Lock()

    def acquire(self, name: str, timeout: float | None = None) -> Lease:
        """The adapter as it lies in the store now, in memory until the lease is released.

        AdapterError or UnknownNameError where it may not be loaded: nothing of it is in memory then. BusyError where
        for `timeout` seconds, by default those of all calls, all that is in memory was leased; 0 waits for no lease.
        """
        asked = time.monotonic()
        deadline = asked + (self._timeout if timeout is None else timeout)
        while True:
            folder = self._store.open(name, self._backend.base)
            with self._changed:
                move = self._state.in_flight.get(name)
                if move is None:
                    if (resident := self._lookup(name, folder)) is not None:
                        return self._make_lease(name, resident)
                    move = self._state.in_flight[name] = InFlightLoad()
                    break
                # Not the room is waited for here: that other thread loads what this one wants.
                self._wait_for(name, move, max(deadline, asked + self._timeout))
                if move.error is not None and move.folder == folder:
                    raise AdapterError(str(move.error))
        try:
            return self._make_lease(name, self._load(name, move, deadline))
        except AdapterError as fault:
            move.error = fault
            raise
        finally:
            self._end_load(name)

    def pin(self, name: str) -> None:
        """Loads the adapter and keeps it in memory, in use or not; errors as of `acquire`."""
        with self.acquire(name), self._changed:
            self._state.pinned.add(name)

    def unpin(self, name: str) -> None:
        """Lets the adapter make room again."""
        with self._changed:
            self._state.pinned.discard(name)
            self._changed.notify_all()

    def unload(self, name: str) -> None:
        """Takes the adapter, pinned or not, out of memory: now, or when its last lease is given back.

        Who acquires it before that keeps it. BusyError where it is being loaded all the time.
        """
        deadline = time.monotonic() + self._timeout
        with self._changed:
            self._state.pinned.discard(name)
            self._changed.notify_all()
            while (move := self._state.in_flight.get(name)) is not None:
                self._wait_for(name, move, deadline)
            resident = self._state.entries.get(name)
            if resident is None:
                return
            resident.unload_pending = True
            if resident.leases:
                return
            self._state.in_flight[name] = InFlightLoad()
        self._unload_marked(name)

    def status(self) -> AdapterCacheStatus:
        """What is in memory now."""
        with self._changed:
            return self._state.status()

    def _lookup(self, name: str, folder: AdapterFolder) -> CacheEntry | None:
        resident = self._state.lease(name, folder)
        self._state.hits += resident is not None
        return resident

    def _make_lease(self, name: str, entry: CacheEntry) -> Lease:
        begun = time.monotonic()
        return Lease(entry.folder, lambda: self._release(name, entry, begun))

    def _release(self, name: str, entry: CacheEntry, leased_at: float) -> None:
        with self._changed:
            leaves = self._state.release(name, entry, time.monotonic() - leased_at)
            if leaves:
                self._state.in_flight[name] = InFlightLoad()
            self._changed.notify_all()
        if leaves:
            self._unload_marked(name)

    def _load(self, name: str, load: InFlightLoad, deadline: float) -> CacheEntry:
        """Loads what the store has under `name` now, and leases it. No other thread moves that name meanwhile."""
        needed = attempts = 0
        while True:
            # Looked at again: the version that led here may have been replaced before this thread's turn.
            folder = load.folder = self._store.open(name, self._backend.base)
            with self._changed:
                if (resident := self._lookup(name, folder)) is not None:
                    return resident
            self._reserve(name, load, max(needed, _file_bytes(folder)), deadline)
            begun = time.perf_counter()
            attempts += 1
            try:
                self._backend.load_adapter(folder)
            except AdapterError:
                if attempts < _MAX_LOAD_ATTEMPTS and self._store.open(name, self._backend.base) != folder:
                    continue
                raise
            needed = self._backend.adapter_bytes(name)
            with self._changed:
                self._state.loads += 1
                self._state.load_seconds += time.perf_counter() - begun
                if (resident := self._state.insert(name, folder, load, needed)) is not None:
                    return resident
            # It is larger than its file: out again, until there is room for what it takes.
            self._backend.unload_adapter(name)

    def _reserve(self, name: str, load: InFlightLoad, size: int, deadline: float) -> None:
        """Reserves `size` bytes for the move, once enough is unloaded that is neither leased nor pinned."""
        if size > self._state.max_bytes:
            raise AdapterError(
                f"Adapter '{name}' takes {size / 1e6:.1f} MB and all adapters together may take "
                f"{self._state.max_bytes / 1e6:.1f} MB: allow more, or train one of a smaller rank."
            )
        with self._changed:
            if self._state.reserve(load, size):
                return
        if not self._eviction_lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise self._busy_error()
        try:
            while (victim := self._next_victim(name, load, size, deadline)) is not None:
                try:
                    self._unload(victim)
                finally:
                    if victim != name:
                        self._end_load(victim)
                with self._changed:
                    self._state.evictions += 1
        finally:
            self._eviction_lock.release()

    def _next_victim(self, name: str, load: InFlightLoad, size: int, deadline: float) -> str | None:
        """What must be unloaded next, marked as moving; None once there is room, which is reserved then."""
        with self._changed:
            while not self._state.reserve(load, size):
                victim = self._state.victim(name)
                if victim is not None:
                    self._state.in_flight.setdefault(victim, InFlightLoad())
                    return victim
                if not self._state.can_free_later(name):
                    raise AdapterError(
                        f"There is no room for adapter '{name}': those in memory are pinned, unpin one or allow more."
                    )
                if not self._changed.wait(deadline - time.monotonic()):
                    raise self._busy_error()
        return None

    def _unload_marked(self, name: str) -> None:
        """Unloads what this thread has marked as moving."""
        try:
            self._unload(name)
        finally:
            self._end_load(name)

    def _unload(self, name: str) -> None:
        self._backend.unload_adapter(name)
        with self._changed:
            self._state.entries.pop(name, None)

    def _end_load(self, name: str) -> None:
        with self._changed:
            self._state.in_flight.pop(name, None)
            self._changed.notify_all()

    def _wait_for(self, name: str, load: InFlightLoad, deadline: float) -> None:
        """Waits, giving the lock away, until the other thread is done with that name."""
        while self._state.in_flight.get(name) is load:
            if not self._changed.wait(deadline - time.monotonic()):
                raise self._busy_error()

    def _busy_error(self) -> BusyError:
        seconds = max(1.0, self._state.mean_lease_seconds)
        return BusyError(f"The memory for adapters is all in use: try again in about {seconds:.0f} s.", seconds)


def _file_bytes(folder: AdapterFolder) -> int:
    try:
        return (folder.path / WEIGHTS_NAME).stat().st_size
    except OSError:  # it vanished a moment ago, and the backend will say so
        return 0
