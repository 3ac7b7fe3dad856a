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
from adapters.weights import MIN_STAT_AGE_NS, WEIGHTS_NAME
from errors import AdapterError

if TYPE_CHECKING:
    from adapters.store import AdapterFolder

# Of JSON in the files; what is made of it takes several times as much memory.
_MAX_CACHE_BYTES = 32 << 20
_STAT_FILES = (CONFIG_NAME, MANIFEST_NAME, WEIGHTS_NAME)
_CacheKey = tuple[str, str, bool, bool]
StatKey = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class _CheckResult:
    stat_key: StatKey
    base: BaseIdentity | None
    result: AdapterFolder | str
    cost: int


class CheckCache:
    """What checking a folder came to: the adapter, or why it was refused. Of any thread; bounded in bytes.

    The times of a folder show what was added to it, removed or renamed, those of the files that are read show what
    was written into them. Neither shows how large a file has become that nobody reads.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._results: OrderedDict[_CacheKey, _CheckResult] = OrderedDict()
        self._bytes = 0

    def get(
        self, folder: Path, name: str, stat: StatKey | None, base: BaseIdentity | None, *, need_digest: bool
    ) -> AdapterFolder | None:
        """What was found when the folder had this stamp, None where that is not known; AdapterError as it was.

        Where the `whole` is not needed, its digests may be missing.
        """
        with self._lock:
            for key in [_cache_key(folder, name, base, each) for each in ((True,) if need_digest else (True, False))]:
                checked = self._results.get(key)
                if checked is not None and checked.stat_key == stat and checked.base == base:
                    self._results.move_to_end(key)
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
        stat: StatKey,
        base: BaseIdentity | None,
        result: AdapterFolder | str,
        *,
        has_digest: bool,
    ) -> None:
        """Keeps what was found; what was asked for longest ago goes."""
        cost = 256 + sum(size for _, size, *_ in stat[1:-1])
        with self._lock:
            for each in (True, False):
                self._evict(_cache_key(folder, name, base, each))
            self._results[_cache_key(folder, name, base, has_digest)] = _CheckResult(stat, base, result, cost)
            self._bytes += cost
            while self._bytes > _MAX_CACHE_BYTES:
                self._evict(next(iter(self._results)))

    def _evict(self, key: _CacheKey) -> None:
        checked = self._results.pop(key, None)
        if checked is not None:
            self._bytes -= checked.cost


def _cache_key(folder: Path, name: str, base: BaseIdentity | None, has_digest: bool) -> _CacheKey:
    return (str(folder), name, base is None, has_digest)


def stat_key(folder: Path) -> StatKey | None:
    """Changes whenever the folder or one of the files that are read does; None where nothing may be remembered.

    A folder that changed a moment ago may change again within one tick of the clock.
    """
    found = [_stat_tuple(str(folder)), *(_stat_tuple(f"{folder}/{name}") for name in _STAT_FILES)]
    settled = time.time_ns() - max(status[-1] for status in found) > MIN_STAT_AGE_NS
    return tuple(found) if settled else None


def is_permanent(error: BaseException | None) -> bool:
    """Whether a refusal will be the same next time: not where the system could not read, as it may by then."""
    while error is not None:
        if isinstance(error, OSError):
            return False
        error = error.__cause__
    return True


def _stat_tuple(path: str) -> tuple[int, ...]:
    try:
        found = os.lstat(path)
    except OSError:
        return (0, 0, 0, 0, 0, 0)
    return (found.st_mode, found.st_size, found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns)
