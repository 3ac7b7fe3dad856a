"""Folders that were checked before, for as long as nothing about them has changed."""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from adapters.checks import CONFIG_NAME
from adapters.manifest import MANIFEST_NAME, BaseIdentity
from adapters.weights import SETTLED_NS, WEIGHTS_NAME
from errors import AdapterError

if TYPE_CHECKING:
    from adapters.store import AdapterFolder

# Of JSON in the files; what is made of it takes several times as much memory.
_MAX_BYTES = 32 << 20
_READ = (CONFIG_NAME, MANIFEST_NAME, WEIGHTS_NAME)
_Key = tuple[str, str, bool, bool]
Stamp = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class _Checked:
    stamp: Stamp
    base: BaseIdentity | None
    result: AdapterFolder | str
    cost: int


class Remembered:
    """What checking a folder came to: the adapter, or why it was refused. Of any thread; bounded in bytes.

    The times of a folder show what was added to it, removed or renamed, those of the files that are read show what
    was written into them. Neither shows how large a file has become that nobody reads.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._checked: OrderedDict[_Key, _Checked] = OrderedDict()
        self._bytes = 0

    def get(
        self, folder: Path, name: str, stamp: Stamp | None, base: BaseIdentity | None, *, whole: bool
    ) -> AdapterFolder | None:
        """What was found when the folder had this stamp, None where that is not known; AdapterError as it was.

        Where the `whole` is not needed, its digests may be missing.
        """
        with self._lock:
            for key in [_key(folder, name, base, each) for each in ((True,) if whole else (True, False))]:
                checked = self._checked.get(key)
                if checked is not None and checked.stamp == stamp and checked.base == base:
                    self._checked.move_to_end(key)
                    break
            else:
                return None
        if isinstance(checked.result, str):
            raise AdapterError(checked.result)
        return checked.result

    def put(
        self,
        folder: Path,
        name: str,
        stamp: Stamp,
        base: BaseIdentity | None,
        result: AdapterFolder | str,
        *,
        whole: bool,
    ) -> None:
        """Keeps what was found; what was asked for longest ago goes."""
        cost = 256 + sum(size for _, size, *_ in stamp[1:-1])
        with self._lock:
            for each in (True, False):
                self._forget(_key(folder, name, base, each))
            self._checked[_key(folder, name, base, whole)] = _Checked(stamp, base, result, cost)
            self._bytes += cost
            while self._bytes > _MAX_BYTES:
                self._forget(next(iter(self._checked)))

    def _forget(self, key: _Key) -> None:
        checked = self._checked.pop(key, None)
        if checked is not None:
            self._bytes -= checked.cost


def _key(folder: Path, name: str, base: BaseIdentity | None, whole: bool) -> _Key:
    return (str(folder), name, base is None, whole)


def stamp(folder: Path) -> Stamp | None:
    """Changes whenever the folder or one of the files that are read does; None where nothing may be remembered.

    A folder that changed a moment ago may change again within one tick of the clock.
    """
    found = [_status(str(folder)), *(_status(f"{folder}/{name}") for name in _READ)]
    settled = time.time_ns() - max(status[-1] for status in found) > SETTLED_NS
    return tuple(found) if settled else None


def lasting(fault: BaseException | None) -> bool:
    """Whether a refusal will be the same next time: not where the system could not read, as it may by then."""
    while fault is not None:
        if isinstance(fault, OSError):
            return False
        fault = fault.__cause__
    return True


def _status(path: str) -> tuple[int, ...]:
    try:
        found = os.lstat(path)
    except OSError:
        return (0, 0, 0, 0, 0, 0)
    return (found.st_mode, found.st_size, found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns)
