"""A backend that only keeps adapters: it reads their files as the real one does, and notes what it was asked."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np

from adapters.store import AdapterFolder
from adapters.weights import WEIGHTS_NAME, read_raw_tensors
from serve.engine.adapter_cache import AdapterCache
from serve.types import Backend
from tests.adapters.folders import BASE, LAYERS, key, store, tensors, write_adapter


class Keeper:
    """`factor` is how much larger an adapter is in memory than its tensors; `before` runs at the start of a load."""

    base = BASE

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor
        self.before: Callable[[str], None] = lambda _: None
        self.kept: dict[str, bytes] = {}
        self.loads: list[str] = []
        self.unloads: list[str] = []
        self.most = 0
        self._lock = threading.Lock()

    def load_adapter(self, folder: AdapterFolder) -> None:
        with self._lock:
            self.loads.append(folder.name)
        self.before(folder.name)
        body = read_raw_tensors(folder.path / WEIGHTS_NAME, folder.sha256, folder.name)
        with self._lock:
            self.kept[folder.name] = bytes(body.data)
            self.most = max(self.most, len(self.kept))

    def unload_adapter(self, name: str) -> None:
        with self._lock:
            self.unloads.append(name)
            self.kept.pop(name, None)

    def adapter_bytes(self, name: str) -> int:
        return round(len(self.kept[name]) * self.factor)


def residents(root: Path, keeper: Keeper, **limits: Any) -> AdapterCache:
    return AdapterCache(cast("Backend", keeper), store(root), **limits)


def write(root: Path, name: str, value: float = 1.0) -> Path:
    """An adapter whose first number is `value`, new or in place of what was there."""
    found = tensors()
    found[key(LAYERS[0], "A")][:] = value
    if (root / name).is_dir():
        from safetensors.numpy import save_file

        save_file(found, root / name / WEIGHTS_NAME)
        return root / name
    return write_adapter(root / name, weights=found)


def first_number(kept: bytes) -> float:
    """The number that `write` wrote: safetensors puts the tensors in the order of their names."""
    return float(np.frombuffer(kept[:4], np.float32)[0])
