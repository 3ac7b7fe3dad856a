"""Atomic file writes and inter-process file locks.

A lock is an flock on a file, taken through the package filelock: the system releases it when its process ends, however
it ends. A process id in a file would not do, since after a restart it may belong to another program.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import AcquireReturnProxy, FileLock, Timeout

from common.paths import create_folders, is_private
from errors import PromptOrTuneError

if sys.platform != "win32":
    import fcntl

_POLL_SECONDS = 0.02
# `is_locked` holds a lock for microseconds; a process that wants the lock for longer must not give up because of that.
_DEFAULT_TIMEOUT_SECONDS = 1.0


def atomic_write(path: Path, content: str | bytes) -> None:
    """Replace the content of the file in one step: a reader, or a crash, sees the old content or the new."""
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        create_folders(path.parent)
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _new_file_mode(path)), "wb") as file:  # noqa: PTH123
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _new_file_mode(path: Path) -> int:
    """What is written into a private folder is private as well."""
    return 0o600 if is_private(path.parent) else 0o666


def check_writable(path: Path) -> None:
    """Raise PromptOrTuneError where the file could not be written, before an hour of work depends on it."""
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
    """Return the error for a file that could not be written."""
    return PromptOrTuneError(
        f"Cannot write {path} ({error.strerror}): choose a folder with free space that you may write to."
    )


def acquire_lock(path: Path, timeout: float = _DEFAULT_TIMEOUT_SECONDS) -> AcquireReturnProxy[FileLock] | None:
    """Lock the file for this process; the result is a context manager that releases it, and `.lock` the lock itself.

    Returns None where another process held it for `timeout` seconds. Raises PromptOrTuneError where the file cannot be
    written.
    """
    try:
        path.touch(_new_file_mode(path))  # FileLock would create missing folders
        # Any thread may release it. No fallback to a soft lock, which would outlive a crash.
        lock = FileLock(path, timeout, thread_local=False, poll_interval=_POLL_SECONDS, fallback_to_soft=False)
        return lock.acquire()
    except Timeout:
        return None
    except OSError as error:
        raise write_error(path, error) from error


@contextmanager
def file_lock(path: Path, timeout: float) -> Iterator[None]:
    """Hold the lock in the block; raises PromptOrTuneError where another process held it for `timeout` seconds."""
    lock = acquire_lock(path, timeout)
    if lock is None:
        raise PromptOrTuneError(
            f"Another process has held {path} for {timeout:.0f} seconds: check what that process waits for."
        )
    with lock:
        yield


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock. Creates no file.

    The probe is a shared lock, which filelock does not have, so that two processes that look at the same time do not
    take each other for a holder.
    """
    if sys.platform == "win32":
        lock = acquire_lock(path, timeout=0) if path.exists() else None
        if lock is not None:
            lock.lock.release()
        return lock is None and path.exists()
    try:
        file = path.open("rb")
    except OSError:
        return False
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
