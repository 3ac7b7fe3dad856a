"""The adapters in memory: at most so many and so many bytes of them; what was used longest ago makes room.

Whoever needs an adapter takes a lease on it and loads it, where it is not there, in its own thread while the engine's
worker goes on decoding. A folder is looked at each time: what is leased is what lies on disk now, so a new version
under an old name is never answered with the old one. Rows in flight keep what they wear, as the backend promises.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Condition, Lock
from types import TracebackType

from adapters.store import AdapterFolder, Store
from adapters.weights import WEIGHTS_NAME
from errors import AdapterError, BusyError
from serve.ledger import Ledger, Move, Resident, ResidentsStatus
from serve.rows import Backend

# A folder that changes while it is loaded is tried anew, but not for as long as somebody writes into it.
_ATTEMPTS = 3


class Lease:
    """Keeps an adapter in memory until it is released; `folder` is what was checked and loaded."""

    def __init__(self, folder: AdapterFolder, give_back: Callable[[], None]) -> None:
        self.folder = folder
        self._give_back: Callable[[], None] | None = give_back
        self._lock = Lock()

    def release(self) -> None:
        """Gives the adapter back; a second time changes nothing."""
        with self._lock:
            give_back, self._give_back = self._give_back, None
        if give_back is not None:
            give_back()

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Residents:
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
        self._ledger = Ledger(max_count, max_bytes)
        self._changed = Condition(Lock())
        # Held while room is made, so that two that need room do not both take what one of them has freed.
        self._making_room = Lock()

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
                move = self._ledger.moving.get(name)
                if move is None:
                    if (resident := self._hit(name, folder)) is not None:
                        return self._lease(name, resident)
                    move = self._ledger.moving[name] = Move()
                    break
                # Not the room is waited for here: that other thread loads what this one wants.
                self._await_end(name, move, max(deadline, asked + self._timeout))
                if move.fault is not None and move.folder == folder:
                    raise AdapterError(str(move.fault))
        try:
            return self._lease(name, self._bring(name, move, deadline))
        except AdapterError as fault:
            move.fault = fault
            raise
        finally:
            self._end(name)

    def pin(self, name: str) -> None:
        """Loads the adapter and keeps it in memory, in use or not; errors as of `acquire`."""
        with self.acquire(name), self._changed:
            self._ledger.pinned.add(name)

    def unpin(self, name: str) -> None:
        """Lets the adapter make room again."""
        with self._changed:
            self._ledger.pinned.discard(name)
            self._changed.notify_all()

    def unload(self, name: str) -> None:
        """Takes the adapter, pinned or not, out of memory: now, or when its last lease is given back.

        Who acquires it before that keeps it. BusyError where it is being loaded all the time.
        """
        deadline = time.monotonic() + self._timeout
        with self._changed:
            self._ledger.pinned.discard(name)
            self._changed.notify_all()
            while (move := self._ledger.moving.get(name)) is not None:
                self._await_end(name, move, deadline)
            resident = self._ledger.residents.get(name)
            if resident is None:
                return
            resident.leaving = True
            if resident.leases:
                return
            self._ledger.moving[name] = Move()
        self._drop(name)

    def status(self) -> ResidentsStatus:
        """What is in memory now."""
        with self._changed:
            return self._ledger.status()

    def _hit(self, name: str, folder: AdapterFolder) -> Resident | None:
        resident = self._ledger.lease(name, folder)
        self._ledger.hits += resident is not None
        return resident

    def _lease(self, name: str, resident: Resident) -> Lease:
        begun = time.monotonic()
        return Lease(resident.folder, lambda: self._give_back(name, resident, begun))

    def _give_back(self, name: str, resident: Resident, begun: float) -> None:
        with self._changed:
            leaves = self._ledger.give_back(name, resident, time.monotonic() - begun)
            if leaves:
                self._ledger.moving[name] = Move()
            self._changed.notify_all()
        if leaves:
            self._drop(name)

    def _bring(self, name: str, move: Move, deadline: float) -> Resident:
        """Loads what the store has under `name` now, and leases it. No other thread moves that name meanwhile."""
        needed = attempts = 0
        while True:
            # Looked at again: the version that led here may have been replaced before this thread's turn.
            folder = move.folder = self._store.open(name, self._backend.base)
            with self._changed:
                if (resident := self._hit(name, folder)) is not None:
                    return resident
            self._make_room(name, move, max(needed, _file_bytes(folder)), deadline)
            begun = time.perf_counter()
            attempts += 1
            try:
                self._backend.load_adapter(folder)
            except AdapterError:
                if attempts < _ATTEMPTS and self._store.open(name, self._backend.base) != folder:
                    continue
                raise
            needed = self._backend.adapter_bytes(name)
            with self._changed:
                self._ledger.loads += 1
                self._ledger.load_seconds += time.perf_counter() - begun
                if (resident := self._ledger.admit(name, folder, move, needed)) is not None:
                    return resident
            # It is larger than its file: out again, until there is room for what it takes.
            self._backend.unload_adapter(name)

    def _make_room(self, name: str, move: Move, size: int, deadline: float) -> None:
        """Reserves `size` bytes for the move, once enough is unloaded that is neither leased nor pinned."""
        if size > self._ledger.max_bytes:
            raise AdapterError(
                f"Adapter '{name}' takes {size / 1e6:.1f} MB and all adapters together may take "
                f"{self._ledger.max_bytes / 1e6:.1f} MB: allow more, or train one of a smaller rank."
            )
        with self._changed:
            if self._ledger.reserve(move, size):
                return
        if not self._making_room.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise self._busy()
        try:
            while (victim := self._next_victim(name, move, size, deadline)) is not None:
                try:
                    self._unload(victim)
                finally:
                    if victim != name:
                        self._end(victim)
                with self._changed:
                    self._ledger.evictions += 1
        finally:
            self._making_room.release()

    def _next_victim(self, name: str, move: Move, size: int, deadline: float) -> str | None:
        """What must be unloaded next, marked as moving; None once there is room, which is reserved then."""
        with self._changed:
            while not self._ledger.reserve(move, size):
                victim = self._ledger.victim(name)
                if victim is not None:
                    self._ledger.moving.setdefault(victim, Move())
                    return victim
                if not self._ledger.may_hope(name):
                    raise AdapterError(
                        f"There is no room for adapter '{name}': those in memory are pinned, unpin one or allow more."
                    )
                if not self._changed.wait(deadline - time.monotonic()):
                    raise self._busy()
        return None

    def _drop(self, name: str) -> None:
        """Unloads what this thread has marked as moving."""
        try:
            self._unload(name)
        finally:
            self._end(name)

    def _unload(self, name: str) -> None:
        self._backend.unload_adapter(name)
        with self._changed:
            self._ledger.residents.pop(name, None)

    def _end(self, name: str) -> None:
        with self._changed:
            self._ledger.moving.pop(name, None)
            self._changed.notify_all()

    def _await_end(self, name: str, move: Move, deadline: float) -> None:
        """Waits, giving the lock away, until the other thread is done with that name."""
        while self._ledger.moving.get(name) is move:
            if not self._changed.wait(deadline - time.monotonic()):
                raise self._busy()

    def _busy(self) -> BusyError:
        seconds = max(1.0, self._ledger.usual_lease)
        return BusyError(f"The memory for adapters is all in use: try again in about {seconds:.0f} s.", seconds)


def _file_bytes(folder: AdapterFolder) -> int:
    try:
        return (folder.path / WEIGHTS_NAME).stat().st_size
    except OSError:  # it vanished a moment ago, and the backend will say so
        return 0
