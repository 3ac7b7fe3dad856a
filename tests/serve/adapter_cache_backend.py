"""Backends for tests of the adapter cache, and a simple model of the cache to compare it with."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from adapters.store import AdapterFolder
from adapters.weights import WEIGHTS_NAME, read_raw_tensors
from errors import AdapterError, BusyError
from serve.engine.adapter_cache import AdapterCache
from serve.types import Backend
from tests.adapters.folders import BASE, LAYERS, MANIFEST, key, store, tensors, write_adapter


class RecordingBackend:
    """Loads adapter files as the local backend does, and records loads and unloads.

    `factor` is the ratio of an adapter's size in memory to that of its tensors; `before` runs before each load.
    """

    base = BASE

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor
        self.before: Callable[[str], None] = lambda _: None
        self.loaded: dict[str, bytes] = {}
        self.loads: list[str] = []
        self.unloads: list[str] = []
        self.max_loaded = 0
        self._lock = threading.Lock()

    def load_adapter(self, folder: AdapterFolder) -> None:
        with self._lock:
            self.loads.append(folder.name)
        self.before(folder.name)
        body = read_raw_tensors(folder.path / WEIGHTS_NAME, folder.sha256, folder.name)
        with self._lock:
            self.loaded[folder.name] = bytes(body.data)
            self.max_loaded = max(self.max_loaded, len(self.loaded))

    def unload_adapter(self, name: str) -> None:
        with self._lock:
            self.unloads.append(name)
            self.loaded.pop(name, None)

    def adapter_bytes(self, name: str) -> int:
        return round(len(self.loaded[name]) * self.factor)


def make_cache(root: Path, backend: RecordingBackend, **limits: Any) -> AdapterCache:
    return AdapterCache(cast("Backend", backend), store(root), **limits)


def write(root: Path, name: str, value: float = 1.0) -> Path:
    """Write an adapter whose first weight is `value`, replacing an earlier one of that name."""
    weights = tensors()
    weights[key(LAYERS[0], "A")][:] = value
    if (root / name).is_dir():
        from safetensors.numpy import save_file

        save_file(weights, root / name / WEIGHTS_NAME)
        return root / name
    return write_adapter(root / name, weights=weights)


def first_weight(data: bytes) -> float:
    """Return the weight that `write` set: safetensors stores tensors in the order of their names."""
    return float(np.frombuffer(data[:4], np.float32)[0])


MAX_COUNT, MAX_BYTES = 3, 100
SIZES = {"a": 5, "b": 10, "c": 20, "d": 60, "e": 101}


class VersionedStore:
    """A store with one folder per name of SIZES, whose version a test can change."""

    def __init__(self, root: Path) -> None:
        self.version = dict.fromkeys(SIZES, 0)
        self.root = root
        for name, size in SIZES.items():
            (root / name).mkdir()
            (root / name / WEIGHTS_NAME).write_bytes(bytes(size))

    def open(self, name: str, base: object) -> AdapterFolder:
        assert base == BASE
        return AdapterFolder(name, self.root / name, MANIFEST, {}, f"version {self.version[name]}")


class VersionedBackend:
    """A backend that records the loaded versions; adapters in `broken` cannot be loaded."""

    base = BASE

    def __init__(self) -> None:
        self.loaded: dict[str, str] = {}
        self.broken: set[str] = set()

    def load_adapter(self, folder: AdapterFolder) -> None:
        if folder.name in self.broken:
            raise AdapterError(f"Adapter '{folder.name}' is broken: train it again.")
        self.loaded[folder.name] = folder.digest

    def unload_adapter(self, name: str) -> None:
        del self.loaded[name]

    def adapter_bytes(self, name: str) -> int:
        return SIZES[name]


@dataclass
class ModelEntry:
    name: str
    version: int
    leases: int = 0
    unload_pending: bool = False


@dataclass
class CacheModel:
    """The rules of the cache for one thread. `loaded` is in LRU order; `replaced` are earlier versions with leases."""

    loaded: list[ModelEntry] = field(default_factory=list)
    replaced: list[ModelEntry] = field(default_factory=list)
    pinned: set[str] = field(default_factory=set)

    def find(self, name: str) -> ModelEntry | None:
        return next((entry for entry in self.loaded if entry.name == name), None)

    def acquire(self, name: str, version: int, broken: bool) -> ModelEntry:
        entry = self.find(name)
        if entry is not None:
            entry.unload_pending = False
        if entry is None or entry.version != version:
            self.make_room(name)
            if broken:
                raise AdapterError(name)
            entry = self.find(name)
            if entry is not None:
                self.loaded.remove(entry)
                self.replaced += [entry] if entry.leases else []
            entry = ModelEntry(name, version)
            self.loaded.append(entry)
        entry.leases += 1
        self.use(entry)
        return entry

    def make_room(self, name: str) -> None:
        if SIZES[name] > MAX_BYTES:
            raise AdapterError(name)
        while len(self.loaded + self.replaced) == MAX_COUNT or self.bytes() + SIZES[name] > MAX_BYTES:
            evictable = [entry for entry in self.loaded if entry.name == name or entry.name not in self.pinned]
            idle = [entry for entry in evictable if not entry.leases]
            if not idle:
                raise BusyError(name, 1)
            self.loaded.remove(idle[0])

    def use(self, entry: ModelEntry) -> None:
        self.loaded.remove(entry)
        self.loaded.append(entry)

    def bytes(self) -> int:
        return sum(SIZES[entry.name] for entry in self.loaded + self.replaced)

    def release(self, entry: ModelEntry) -> None:
        entry.leases -= 1
        if entry.leases:
            return
        if entry in self.replaced:
            self.replaced.remove(entry)
        elif entry.unload_pending:
            self.loaded.remove(entry)
        else:
            self.use(entry)

    def unload(self, name: str) -> None:
        self.pinned.discard(name)
        entry = self.find(name)
        if entry is not None:
            entry.unload_pending = True
            if not entry.leases:
                self.loaded.remove(entry)
