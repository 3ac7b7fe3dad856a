"""The adapters in memory against a model of a few lines: whatever is asked in whatever order, both hold the same."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from adapters.store import AdapterFolder, Store
from adapters.weights import WEIGHTS_NAME
from errors import AdapterError, BusyError, PromptOrTuneError
from serve.engine.adapter_cache import AdapterCache, Lease
from serve.types import Backend
from tests.adapters.folders import BASE, MANIFEST

MAX_COUNT, MAX_BYTES = 3, 100
SIZES = {"a": 5, "b": 10, "c": 20, "d": 60, "e": 101}
names = st.sampled_from(sorted(SIZES))


class Versions:
    """A store whose folders are as large as they say, and of which each name has a version."""

    def __init__(self, root: Path) -> None:
        self.version = dict.fromkeys(SIZES, 0)
        self.root = root
        for name, size in SIZES.items():
            (root / name).mkdir()
            (root / name / WEIGHTS_NAME).write_bytes(bytes(size))

    def open(self, name: str, base: object) -> AdapterFolder:
        assert base == BASE
        return AdapterFolder(name, self.root / name, MANIFEST, {}, f"version {self.version[name]}")


class Shelf:
    """A backend that notes which version it has of what; names in `broken` cannot be loaded."""

    base = BASE

    def __init__(self) -> None:
        self.has: dict[str, str] = {}
        self.broken: set[str] = set()

    def load_adapter(self, folder: AdapterFolder) -> None:
        if folder.name in self.broken:
            raise AdapterError(f"Adapter '{folder.name}' is broken: mend it.")
        self.has[folder.name] = folder.digest

    def unload_adapter(self, name: str) -> None:
        del self.has[name]

    def adapter_bytes(self, name: str) -> int:
        return SIZES[name]


@dataclass
class Entry:
    name: str
    version: int
    leases: int = 0
    leaving: bool = False


@dataclass
class Model:
    """The rules, one thread at a time. `kept` is in the order of use; `old` are replaced versions on lease."""

    kept: list[Entry] = field(default_factory=list)
    old: list[Entry] = field(default_factory=list)
    pinned: set[str] = field(default_factory=set)

    def find(self, name: str) -> Entry | None:
        return next((entry for entry in self.kept if entry.name == name), None)

    def acquire(self, name: str, version: int, broken: bool) -> Entry:
        here = self.find(name)
        if here is not None:
            here.leaving = False
        if here is None or here.version != version:
            self.make_room(name)
            if broken:
                raise AdapterError(name)
            here = self.find(name)
            if here is not None:
                self.kept.remove(here)
                self.old += [here] if here.leases else []
            here = Entry(name, version)
            self.kept.append(here)
        here.leases += 1
        self.use(here)
        return here

    def make_room(self, name: str) -> None:
        if SIZES[name] > MAX_BYTES:
            raise AdapterError(name)
        while len(self.kept + self.old) == MAX_COUNT or self.bytes() + SIZES[name] > MAX_BYTES:
            may_go = [each for each in self.kept if each.name == name or each.name not in self.pinned]
            idle = [each for each in may_go if not each.leases]
            if not idle:
                raise BusyError(name, 1)
            self.kept.remove(idle[0])

    def use(self, entry: Entry) -> None:
        self.kept.remove(entry)
        self.kept.append(entry)

    def bytes(self) -> int:
        return sum(SIZES[entry.name] for entry in self.kept + self.old)

    def release(self, entry: Entry) -> None:
        entry.leases -= 1
        if entry.leases:
            return
        if entry in self.old:
            self.old.remove(entry)
        elif entry.leaving:
            self.kept.remove(entry)
        else:
            self.use(entry)

    def unload(self, name: str) -> None:
        self.pinned.discard(name)
        entry = self.find(name)
        if entry is not None:
            entry.leaving = True
            if not entry.leases:
                self.kept.remove(entry)


class Residence(RuleBasedStateMachine):
    """Both are asked the same; after each step they must hold the same, and the backend what they say."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="residents-"))
        self.versions, self.shelf, self.model = Versions(self.root), Shelf(), Model()
        self.real = AdapterCache(
            cast("Backend", self.shelf), cast("Store", self.versions), max_count=MAX_COUNT, max_bytes=MAX_BYTES
        )
        self.leases: list[tuple[Lease, Entry]] = []

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    @rule(name=names)
    def acquire(self, name: str) -> None:
        self.leases += [pair for pair in [self.both(name)] if pair]

    def both(self, name: str) -> tuple[Lease, Entry] | None:
        try:
            entry = self.model.acquire(name, self.versions.version[name], name in self.shelf.broken)
        except BusyError:
            kinds: tuple[type[PromptOrTuneError], ...] = (BusyError, AdapterError)  # the second where all are pinned
        except AdapterError:
            kinds = (AdapterError,)
        else:
            lease = self.real.acquire(name, timeout=0.0)
            assert lease.folder.digest == f"version {entry.version}"
            return lease, entry
        with pytest.raises(kinds):
            self.real.acquire(name, timeout=0.0)
        return None

    @rule(place=st.integers(0, 30))
    def release(self, place: int) -> None:
        if self.leases:
            lease, entry = self.leases.pop(place % len(self.leases))
            lease.release()
            lease.release()
            self.model.release(entry)

    @rule(name=names)
    def pin(self, name: str) -> None:
        pair = self.both(name)
        if pair is not None:
            pair[0].release()
            self.real.pin(name)
            self.model.pinned.add(name)
            self.model.release(pair[1])

    @rule(name=names)
    def unpin(self, name: str) -> None:
        self.real.unpin(name)
        self.model.pinned.discard(name)

    @rule(name=names)
    def unload(self, name: str) -> None:
        self.real.unload(name)
        self.model.unload(name)

    @rule(name=names)
    def change(self, name: str) -> None:
        self.versions.version[name] += 1

    @rule(name=names)
    def break_or_mend(self, name: str) -> None:
        self.shelf.broken ^= {name}

    @invariant()
    def both_hold_the_same(self) -> None:
        status = self.real.status()
        assert [(each.name, each.digest, each.leases) for each in status.adapters] == [
            (each.name, f"version {each.version}", each.leases) for each in self.model.kept
        ]
        assert {each.name for each in status.adapters if each.pinned} == self.model.pinned & set(self.shelf.has)
        assert status.bytes == self.model.bytes() <= MAX_BYTES
        assert self.shelf.has == {each.name: each.digest for each in status.adapters}


Residence.TestCase.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)
TestResidence: Any = Residence.TestCase
