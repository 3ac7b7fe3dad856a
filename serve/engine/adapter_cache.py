"""Adapter cache: reference-counted LRU of the adapters in memory, limited in number and bytes.

A request that needs an adapter acquires a lease on it. If the adapter is not in memory, the thread that acquires it
also loads it, while the engine's thread goes on decoding. Each `acquire` opens the folder again, so a lease always
refers to the version now on disk: a new version under an old name is never answered with the old one. Running rows
keep the version they started with, as `Backend.load_adapter` promises.

CacheState holds the accounting (entries, leases, reservations, choice of a victim) without threads or backend;
AdapterCache adds the locks and calls the backend.
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
from common.format import format_bytes
from errors import AdapterError, BusyError
from serve.types import Backend


@dataclass(eq=False)
class CacheEntry:
    """One version of an adapter in memory. With `unload_pending` it is unloaded when its last lease is released."""

    folder: AdapterFolder
    bytes: int
    last_used: float
    leases: int = 0
    unload_pending: bool = False


@dataclass(eq=False)
class InFlightLoad:
    """Marks a name that one thread is loading or unloading, so that other threads wait for it.

    `bytes` is the memory reserved for the load, `error` its failure for the threads that wait for the same folder.
    """

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
    """State of the cache; `adapters` are in LRU order, least recently used first.

    `bytes` includes replaced versions that running rows still use. `hits`, `loads` and `evictions` are counted from
    the start of the engine; `load_seconds` is the total time of all loads.
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
    """Accounting of `AdapterCache`, which makes every call here under its lock."""

    max_count: int
    max_bytes: int
    entries: OrderedDict[str, CacheEntry] = field(default_factory=OrderedDict)
    # Versions replaced in the backend by a newer one while they were leased: their memory is still in use.
    replaced: list[CacheEntry] = field(default_factory=list)
    in_flight: dict[str, InFlightLoad] = field(default_factory=dict)
    pinned: set[str] = field(default_factory=set)
    hits: int = 0
    loads: int = 0
    evictions: int = 0
    load_seconds: float = 0.0
    # Moving average of the seconds for which a lease is held: the estimate given with BusyError.
    mean_lease_seconds: float = 0.0

    def lease(self, name: str, folder: AdapterFolder) -> CacheEntry | None:
        """Return the entry with one more lease if exactly this version is in memory, else None.

        Cancels a pending unload: the adapter is in use again.
        """
        entry = self.entries.get(name)
        if entry is None:
            return None
        entry.unload_pending = False
        if entry.folder != folder:
            return None
        entry.leases += 1
        self._touch(name, entry)
        return entry

    def release(self, name: str, entry: CacheEntry, seconds: float) -> bool:
        """Remove one lease, held for `seconds`; return whether the caller must unload the adapter now."""
        self.mean_lease_seconds += (seconds - self.mean_lease_seconds) / 10
        entry.leases -= 1
        if entry.leases:
            return False
        if entry in self.replaced:
            # The backend has a newer version under this name, which must stay; the old one is freed by its last row.
            self.replaced.remove(entry)
            return False
        self._touch(name, entry)
        return entry.unload_pending and name not in self.in_flight

    def insert(self, name: str, folder: AdapterFolder, load: InFlightLoad, size: int) -> CacheEntry | None:
        """Return a leased entry for the version just loaded, which replaces an earlier one of that name.

        Returns None if its `size` in memory does not fit; the caller must unload it then.
        """
        earlier = self.entries.pop(name, None)
        if earlier is not None and earlier.leases:
            self.replaced.append(earlier)
        if not self.reserve(load, size):
            return None
        load.bytes = None
        self.entries[name] = CacheEntry(folder, size, time.time())
        return self.lease(name, folder)

    def reserve(self, load: InFlightLoad, size: int) -> bool:
        """Reserve `size` bytes for the load, in place of its earlier reservation; return False if they do not fit.

        Reservations count like entries, so that two concurrent loads do not both take the last free memory.
        """
        load.bytes = None
        used = [entry.bytes for entry in (*self.entries.values(), *self.replaced)]
        used += [other.bytes for other in self.in_flight.values() if other.bytes is not None]
        if len(used) >= self.max_count or sum(used) + size > self.max_bytes:
            return False
        load.bytes = size
        return True

    def victim(self, name: str) -> str | None:
        """Return the least recently used adapter that may be unloaded for `name`: neither leased nor pinned.

        An earlier version of `name` itself may be unloaded even if it is pinned, because `name` is about to be loaded.
        """
        for other, entry in self.entries.items():
            if not entry.leases and (other == name or (other not in self.pinned and other not in self.in_flight)):
                return other
        return None

    def can_free_later(self, name: str) -> bool:
        """Whether memory for `name` may become free later: by a lease, a load, an unload or a replaced version.

        False means that only pinned adapters are left, so that waiting would be in vain.
        """
        leased = any(entry.leases and (key == name or key not in self.pinned) for key, entry in self.entries.items())
        loading = any(
            key != name and (load.bytes is not None or key in self.entries) for key, load in self.in_flight.items()
        )
        return leased or loading or bool(self.replaced)

    def status(self) -> AdapterCacheStatus:
        """Return the current state."""
        adapters = tuple(
            CachedAdapterStatus(
                name, entry.folder.digest, entry.bytes, entry.leases, name in self.pinned, entry.last_used
            )
            for name, entry in self.entries.items()
        )
        return AdapterCacheStatus(
            len(adapters),
            sum(entry.bytes for entry in (*self.entries.values(), *self.replaced)),
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


# A folder that changed during its load is loaded again; the limit ends this if a program keeps writing into it.
_MAX_LOAD_ATTEMPTS = 3


class Lease:
    """Keeps an adapter in memory until it is released; `folder` is the version that was checked and loaded."""

    def __init__(self, folder: AdapterFolder, release_fn: Callable[[], None]) -> None:
        self.folder = folder
        self._release_fn: Callable[[], None] | None = release_fn
        self._lock = Lock()

    def release(self) -> None:
        """Release the lease; further calls have no effect."""
        with self._lock:
            release_fn, self._release_fn = self._release_fn, None
        if release_fn is not None:
            release_fn()

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


class AdapterCache:
    """LRU of the adapters in memory, limited in number and bytes. Thread-safe.

    The backend is never called under the lock: it may wait for the engine's thread, which in turn takes the lock to
    release a lease. Instead, a name that one thread loads or unloads is marked in `in_flight`, and other threads that
    need it wait until the mark is removed.
    """

    def __init__(
        self, backend: Backend, store: Store, *, max_count: int = 64, max_bytes: int = 2 << 30, timeout: float = 30.0
    ) -> None:
        self._backend = backend
        self._store = store
        self._timeout = timeout
        self._state = CacheState(max_count, max_bytes)
        self._changed = Condition(Lock())
        # Held while adapters are evicted: otherwise one thread could reserve the memory that another has just freed,
        # and that thread would evict more than is needed.
        self._eviction_lock = Lock()

    def acquire(self, name: str, timeout: float | None = None) -> Lease:
        """Load the adapter's current version if necessary and return a lease on it.

        Raises AdapterError or UnknownNameError if it cannot be loaded; nothing of it is in memory then. Raises
        BusyError if no memory became free within `timeout` seconds (by default that of the cache) because all
        adapters were leased; with 0 it does not wait for a lease to end.
        """
        begin = time.monotonic()
        deadline = begin + (self._timeout if timeout is None else timeout)
        while True:
            folder = self._store.open(name, self._backend.base)
            with self._changed:
                load = self._state.in_flight.get(name)
                if load is None:
                    if (entry := self._lookup(name, folder)) is not None:
                        return self._make_lease(name, entry)
                    load = self._state.in_flight[name] = InFlightLoad()
                    break
                # Another thread is loading this adapter. `timeout` is about memory and does not apply: even a caller
                # that does not wait for memory waits for this load.
                self._wait_for(name, load, max(deadline, begin + self._timeout))
                if load.error is not None and load.folder == folder:
                    raise AdapterError(str(load.error))
        try:
            return self._make_lease(name, self._load(name, load, deadline))
        except AdapterError as error:
            load.error = error
            raise
        finally:
            self._end_load(name)

    def pin(self, name: str) -> None:
        """Load the adapter and never evict it, whether it is in use or not; raises the errors of `acquire`."""
        with self.acquire(name), self._changed:
            self._state.pinned.add(name)

    def unpin(self, name: str) -> None:
        """Allow the eviction of the adapter again."""
        with self._changed:
            self._state.pinned.discard(name)
            self._changed.notify_all()

    def unload(self, name: str) -> None:
        """Unload the adapter, pinned or not: now, or when its last lease is released.

        It stays in memory if it is acquired again before that. Raises BusyError if another thread is still loading it
        when the timeout of the cache ends.
        """
        deadline = time.monotonic() + self._timeout
        with self._changed:
            self._state.pinned.discard(name)
            self._changed.notify_all()
            while (load := self._state.in_flight.get(name)) is not None:
                self._wait_for(name, load, deadline)
            entry = self._state.entries.get(name)
            if entry is None:
                return
            entry.unload_pending = True
            if entry.leases:
                return
            self._state.in_flight[name] = InFlightLoad()
        self._unload_marked(name)

    def status(self) -> AdapterCacheStatus:
        """Return the current state."""
        with self._changed:
            return self._state.status()

    def _lookup(self, name: str, folder: AdapterFolder) -> CacheEntry | None:
        entry = self._state.lease(name, folder)
        self._state.hits += entry is not None
        return entry

    def _make_lease(self, name: str, entry: CacheEntry) -> Lease:
        leased_at = time.monotonic()
        return Lease(entry.folder, lambda: self._release(name, entry, leased_at))

    def _release(self, name: str, entry: CacheEntry, leased_at: float) -> None:
        with self._changed:
            must_unload = self._state.release(name, entry, time.monotonic() - leased_at)
            if must_unload:
                self._state.in_flight[name] = InFlightLoad()
            self._changed.notify_all()
        if must_unload:
            self._unload_marked(name)

    def _load(self, name: str, load: InFlightLoad, deadline: float) -> CacheEntry:
        """Load the version that the store has now and return its leased entry.

        `load` is the mark of this thread in `in_flight`: no other thread loads or unloads the name meanwhile.
        """
        needed = attempts = 0
        while True:
            # Opened again, because the version found in `acquire` may have been replaced in the meantime.
            folder = load.folder = self._store.open(name, self._backend.base)
            with self._changed:
                if (entry := self._lookup(name, folder)) is not None:
                    return entry
            self._reserve(name, load, max(needed, _file_bytes(folder)), deadline)
            begin = time.perf_counter()
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
                self._state.load_seconds += time.perf_counter() - begin
                if (entry := self._state.insert(name, folder, load, needed)) is not None:
                    return entry
            # It is larger in memory than its file, whose size had been reserved, and does not fit. Unload it and
            # reserve its real size in the next round.
            self._backend.unload_adapter(name)

    def _reserve(self, name: str, load: InFlightLoad, size: int, deadline: float) -> None:
        """Reserve `size` bytes for the load, after evicting as many adapters as necessary.

        Raises AdapterError if `size` can never fit and BusyError at the deadline.
        """
        if size > self._state.max_bytes:
            raise AdapterError(
                f"Adapter '{name}' takes {format_bytes(size)} and all adapters together may take "
                f"{format_bytes(self._state.max_bytes)}: allow more, or train one of a smaller rank."
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
        """Return the adapter to evict next, marked in `in_flight`; None once `size` bytes have been reserved.

        Waits until the deadline for leases to end if every adapter is in use.
        """
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
        """Unload a name that this thread has marked in `in_flight`, and remove the mark."""
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
        """Wait (releasing the lock) until the other thread has removed its mark `load`; BusyError at the deadline."""
        while self._state.in_flight.get(name) is load:
            if not self._changed.wait(deadline - time.monotonic()):
                raise self._busy_error()

    def _busy_error(self) -> BusyError:
        seconds = max(1.0, self._state.mean_lease_seconds)
        return BusyError(f"The memory for adapters is all in use: try again in about {seconds:.0f} s.", seconds)


def _file_bytes(folder: AdapterFolder) -> int:
    try:
        return (folder.path / WEIGHTS_NAME).stat().st_size
    except OSError:  # deleted a moment ago: the load that follows reports it
        return 0
