"""Atomic file write, inter-process file lock.

Files that are written whole, in one step.

Locks that a process holds on a file, and that the system takes back when the process ends, however it ends.

A number of a process says nothing after a restart: it may be a stranger's by then. Whether a lock is free does.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from errors import PromptOrTuneError


def atomic_write(path: Path, content: str | bytes) -> None:
    """Puts `content` into the file in one step: a reader, or a crash, sees the old content or the new."""
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Fails now, not after an hour, where the file could not be written."""
    if path.is_dir():
        raise PromptOrTuneError(f"{path} is a folder: name a file.")
    probe = path.with_name(f".{path.name}.{os.getpid()}.probe")
    atomic_write(probe, "")
    probe.unlink()


def read_utf8(path: Path | None) -> str:
    """The text of a file, or of stdin for None or "-", with its line ends as they are and without a byte order mark.

    Raises PromptOrTuneError, with the path, where it cannot be read or is not UTF-8.
    """
    name = "standard input" if path is None or str(path) == "-" else str(path)
    try:
        content = sys.stdin.buffer.read() if path is None or str(path) == "-" else path.read_bytes()
        return content.decode("utf-8-sig")
    except OSError as error:
        raise PromptOrTuneError(f"{name} cannot be read ({error.strerror}): name a file that exists.") from None
    except UnicodeDecodeError as error:
        raise PromptOrTuneError(f"{name} is not UTF-8 text (byte {error.start}): save it as UTF-8.") from None


def write_error(path: Path, error: OSError) -> PromptOrTuneError:
    """The sentence for a file that could not be written."""
    return PromptOrTuneError(f"Cannot write {path} ({error.strerror}): choose a place with room that you may write to.")


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
    except OSError as error:
        raise write_error(path, error) from error
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
