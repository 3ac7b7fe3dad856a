"""Which adapters are in memory, who uses them, and which of them may go: sums alone, no threads and no backend."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, field

from adapters.store import AdapterFolder
from errors import AdapterError


@dataclass(eq=False)
class Resident:
    """One version of an adapter in memory. `leaving`: it is unloaded once its last lease is given back."""

    folder: AdapterFolder
    bytes: int
    used: float
    leases: int = 0
    leaving: bool = False


@dataclass(eq=False)
class Move:
    """A name that one thread is loading or unloading. `bytes` is the room that is kept for what it loads."""

    folder: AdapterFolder | None = None
    bytes: int | None = None
    fault: AdapterError | None = None


@dataclass(frozen=True)
class ResidentStatus:
    """One adapter in memory; `last_used` is in seconds since the epoch."""

    name: str
    digest: str
    bytes: int
    leases: int
    pinned: bool
    last_used: float


@dataclass(frozen=True)
class ResidentsStatus:
    """What is in memory, what was used longest ago first, and what it took.

    `bytes` counts replaced versions that rows in flight still wear. `hits`, `loads` and `evictions` count from the
    start on; `load_seconds` is the time that the loads took together.
    """

    count: int
    bytes: int
    max_count: int
    max_bytes: int
    adapters: tuple[ResidentStatus, ...]
    hits: int
    loads: int
    evictions: int
    load_seconds: float


@dataclass(eq=False)
class Ledger:
    """The books of `Residents`, which calls everything here under its lock."""

    max_count: int
    max_bytes: int
    residents: OrderedDict[str, Resident] = field(default_factory=OrderedDict)
    # Versions that the backend has under their name no more, and somebody still has a lease on.
    replaced: list[Resident] = field(default_factory=list)
    moving: dict[str, Move] = field(default_factory=dict)
    pinned: set[str] = field(default_factory=set)
    hits: int = 0
    loads: int = 0
    evictions: int = 0
    load_seconds: float = 0.0
    # Seconds for which a lease is held, of late.
    usual_lease: float = 0.0

    def lease(self, name: str, folder: AdapterFolder) -> Resident | None:
        """What is in memory, with one lease more, if that is this version; it stays then, whoever wanted it to go."""
        resident = self.residents.get(name)
        if resident is None:
            return None
        resident.leaving = False
        if resident.folder != folder:
            return None
        resident.leases += 1
        self._use(name, resident)
        return resident

    def give_back(self, name: str, resident: Resident, seconds: float) -> bool:
        """One lease less, after so many seconds; whether the adapter must be unloaded now."""
        self.usual_lease += (seconds - self.usual_lease) / 10
        resident.leases -= 1
        if resident.leases:
            return False
        if resident in self.replaced:
            self.replaced.remove(resident)
            return False
        self._use(name, resident)
        return resident.leaving and name not in self.moving

    def admit(self, name: str, folder: AdapterFolder, move: Move, size: int) -> Resident | None:
        """What was loaded in place of any earlier version, leased; None where it needs more room than there is."""
        before = self.residents.pop(name, None)
        if before is not None and before.leases:
            self.replaced.append(before)
        if not self.reserve(move, size):
            return None
        move.bytes = None
        self.residents[name] = Resident(folder, size, time.time())
        return self.lease(name, folder)

    def reserve(self, move: Move, size: int) -> bool:
        """Keeps `size` bytes for the move, in place of what it had; False where they are not there."""
        move.bytes = None
        taken = [each.bytes for each in (*self.residents.values(), *self.replaced)]
        taken += [each.bytes for each in self.moving.values() if each.bytes is not None]
        if len(taken) >= self.max_count or sum(taken) + size > self.max_bytes:
            return False
        move.bytes = size
        return True

    def victim(self, name: str) -> str | None:
        """What makes room for `name`: neither leased nor pinned, and used longest ago.

        An earlier version of `name` itself may go even if it is pinned, as another one is on its way.
        """
        for each, resident in self.residents.items():
            if not resident.leases and (each == name or (each not in self.pinned and each not in self.moving)):
                return each
        return None

    def may_hope(self, name: str) -> bool:
        """Whether something that takes room now can make room for `name` later on."""
        leased = any(each.leases and (key == name or key not in self.pinned) for key, each in self.residents.items())
        moving = any(
            key != name and (move.bytes is not None or key in self.residents) for key, move in self.moving.items()
        )
        return leased or moving or bool(self.replaced)

    def status(self) -> ResidentsStatus:
        """What is in memory now."""
        adapters = tuple(
            ResidentStatus(name, each.folder.digest, each.bytes, each.leases, name in self.pinned, each.used)
            for name, each in self.residents.items()
        )
        return ResidentsStatus(
            len(adapters),
            sum(each.bytes for each in (*self.residents.values(), *self.replaced)),
            self.max_count,
            self.max_bytes,
            adapters,
            self.hits,
            self.loads,
            self.evictions,
            self.load_seconds,
        )

    def _use(self, name: str, resident: Resident) -> None:
        resident.used = time.time()
        self.residents.move_to_end(name)
