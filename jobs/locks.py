"""Locks that a process holds on a file, and that the system takes back when the process ends, however it ends.

A number of a process says nothing after a restart: it may be a stranger's by then. Whether a lock is free does.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from errors import PromptOrTuneError
from evaluate.files import write_error

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_POLL_SECONDS = 0.02
# Whoever only looks holds a lock for microseconds; who wants it for long must not give up on that.
_DEFAULT_TIMEOUT_SECONDS = 1.0


def acquire_lock(path: Path, timeout: float = _DEFAULT_TIMEOUT_SECONDS) -> FileIO | None:
    """The file, locked for this process until it is closed; None where another has it for `patience` seconds."""
    deadline = time.monotonic() + timeout
    try:
        file = FileIO(path, "ab")
    except OSError as fault:
        raise write_error(path, fault) from fault
    while not _try_lock(file, exclusive=True):
        if time.monotonic() >= deadline:
            file.close()
            return None
        time.sleep(_POLL_SECONDS)
    return file


@contextmanager
def file_lock(path: Path, timeout: float) -> Iterator[None]:
    """The lock for as long as the block lasts; PromptOrTuneError where another process keeps it all the time."""
    file = acquire_lock(path, timeout)
    if file is None:
        raise PromptOrTuneError(f"Another process has held {path} for {timeout:.0f} seconds: see what it waits for.")
    try:
        yield
    finally:
        file.close()


def is_locked(path: Path) -> bool:
    """Whether a living process has the lock."""
    try:
        file = FileIO(path, "rb")
    except OSError:
        return False
    with file:
        return not _try_lock(file, exclusive=False)


def _try_lock(file: FileIO, exclusive: bool) -> bool:
    try:
        if sys.platform == "win32":
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
