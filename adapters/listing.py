"""Which folders of a root are adapters, asked often: thousands of them must not be looked into each time."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from adapters.checks import CONFIG_NAME
from adapters.weights import MIN_STAT_AGE_NS
from errors import AdapterError

# A folder that stays, but is no adapter any more, is noticed within this time; whoever opens it sees it at once.
_RECHECK_SECONDS = 1.0


@dataclass(frozen=True)
class _DirectoryScan:
    """What a root held: its adapters, and the folders that may become some without the root showing it."""

    stat_key: tuple[int, int, int]
    scanned_at: float
    adapters: tuple[str, ...]
    others: tuple[str, ...]


class AdapterDirectory:
    """The names of one root's adapters. Of any thread; a folder that is added or removed is seen at the next call."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._last_scan: _DirectoryScan | None = None

    def names(self) -> tuple[str, ...]:
        """Names of the folders that look like adapters, in no order; none of them is checked yet."""
        try:
            if not self.root.is_dir():
                return ()
            status = self.root.stat()
            stamp = (status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
            known = self._last_scan
            if known is None or not self._is_current(known, stamp):
                now, settled = time.monotonic(), time.time_ns() - status.st_ctime_ns > MIN_STAT_AGE_NS
                known = _DirectoryScan(stamp, now, *self._scan())
                # A second change within one tick of the clock would not show in the root's times.
                self._last_scan = known if settled else None
            return known.adapters
        except OSError as fault:
            raise AdapterError(f"The adapters in {self.root} cannot be read ({fault.strerror or fault}).") from fault

    def _is_current(self, scan: _DirectoryScan, stat_key: tuple[int, int, int]) -> bool:
        fresh = scan.stat_key == stat_key and time.monotonic() - scan.scanned_at < _RECHECK_SECONDS
        return fresh and not any(has_file(f"{self.root}/{name}", CONFIG_NAME) for name in scan.others)

    def _scan(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        adapters, others = [], []
        with os.scandir(self.root) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if has_file(entry.path, CONFIG_NAME):
                    adapters.append(entry.name)
                elif entry.is_symlink() or entry.is_dir():
                    others.append(entry.name)
        return tuple(adapters), tuple(others)


def looks_like_adapter(folder: Path) -> bool:
    """Hidden folders are left out: that is how a folder is named while it is being written."""
    return not folder.name.startswith(".") and has_file(str(folder), CONFIG_NAME)


def looks_like_model(folder: Path) -> bool:
    """Whether a whole model lies there, as full fine-tuning and `merge` leave it."""
    return (
        not folder.name.startswith(".")
        and has_file(str(folder), "config.json")
        and not has_file(str(folder), CONFIG_NAME)
    )


def has_file(folder: str, name: str) -> bool:
    """Whether there is such a file, or a link to one; False for a folder that may not be entered."""
    return os.path.isfile(f"{folder}/{name}")  # noqa: PTH113 - five times as fast, and asked thousands of times
