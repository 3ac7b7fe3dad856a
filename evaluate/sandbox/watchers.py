"""Watchers of a running program, for what no resource limit of the kernel covers.

- ProgramClock measures the time that counts against `Limits.wall_seconds`: wall time without the time for which the
  program was ready to run and waited for a processor, as the scheduler counts it.
- FileWatcher counts the files of a program under Landlock, deleted ones that it still uses included.
- ThreadWatcher counts its threads, where RLIMIT_NPROC would count those of other processes too.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from common.format import format_bytes
from evaluate.sandbox.types import ExecutionStatus, Limits

BUSY_FACTOR = 10  # times `Limits.wall_seconds` that a program may take on a machine whose processors are busy
CHECKS_PER_MAP_READING = 5  # reading a process's memory map takes longer than the other checks


@dataclass(frozen=True)
class LimitExceeded:
    """Why a program is ended: its status, and a description of the limit."""

    status: ExecutionStatus
    limit: str


Watcher = Callable[[Limits], LimitExceeded | None]


class ProgramClock:
    """Clock of a process from `started`, a time of `time.monotonic`. Without schedstat in /proc it shows wall time."""

    def __init__(self, pid: int, started: float) -> None:
        self._threads_folder = f"/proc/{pid}/task"
        self._started = started
        self._waited: dict[str, int] = {}  # nanoseconds, by thread, of ended threads too
        self.seconds = 0.0

    def check(self, now: float, limits: Limits) -> LimitExceeded | None:
        """Advance to `now`; return the time limit if it is exceeded."""
        self._read_waiting_times()
        elapsed = now - self._started
        # The scheduler adds a waiting time when it ends, which may be several checks later.
        self.seconds = max(0.0, elapsed - sum(self._waited.values()) / 1e9)
        if self.seconds >= limits.wall_seconds:
            return LimitExceeded("timeout", f"{limits.wall_seconds:g} s of time")
        if elapsed >= (longest := BUSY_FACTOR * limits.wall_seconds):
            return LimitExceeded("timeout", f"{longest:g} s of time on a busy machine")
        return None

    def _read_waiting_times(self) -> None:
        with contextlib.suppress(OSError):  # the process has just ended, or there is no such file
            for thread in os.listdir(self._threads_folder):  # noqa: PTH208 - called often, and faster than pathlib
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    schedstat = Path(f"{self._threads_folder}/{thread}/schedstat").read_bytes()
                    self._waited[thread] = int(schedstat.split()[1])


class FileWatcher:
    """Watcher of the files of a process that runs in `folder`; `user` is its user id unless it is our own."""

    def __init__(self, folder: str, pid: int, user: int | None) -> None:
        self._folder, self._process, self._user = folder, f"/proc/{pid}", user
        self._checks = 0

    def __call__(self, limits: Limits) -> LimitExceeded | None:
        """Return the limit that the files of the folder exceed together with the deleted files in use."""
        self._checks += 1
        try:
            sizes = list(self._sizes(limits.files))
            sizes += self._deleted_sizes(limits.file_bytes)
        except OSError as error:
            return LimitExceeded("output", f"a folder that cannot be read ({error.strerror})")
        if len(sizes) > limits.files:
            return LimitExceeded("output", f"{limits.files} files")
        if sum(sizes) > limits.file_bytes:
            return LimitExceeded("output", f"{format_bytes(limits.file_bytes, 1024)} of files")
        return None

    def _sizes(self, most: int) -> Iterator[int]:
        """Yield the size of every file of the folder, 0 for a folder; end after `most` and one more."""
        count, folders = 0, [self._folder]
        while folders:
            with contextlib.suppress(FileNotFoundError), os.scandir(folders.pop()) as entries:
                for entry in entries:
                    count += 1
                    if count > most + 1:
                        return
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                        yield 0
                    else:
                        with contextlib.suppress(FileNotFoundError):  # it has just been deleted
                            yield entry.stat(follow_symlinks=False).st_size

    def _deleted_sizes(self, largest: int) -> list[int]:
        """Return the sizes of deleted files that are open, and `largest` for one that is only mapped into memory."""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the process has just ended
            try:
                return self._look_at_deleted(largest)
            except PermissionError:
                if self._user is None:
                    return []
            with file_access_as(self._user), contextlib.suppress(PermissionError):  # root without CAP_SYS_PTRACE
                return self._look_at_deleted(largest)
        return []

    def _look_at_deleted(self, largest: int) -> list[int]:
        sizes: dict[int, int] = {}
        for number in os.listdir(f"{self._process}/fd"):  # noqa: PTH208
            path = f"{self._process}/fd/{number}"
            with contextlib.suppress(FileNotFoundError):
                if self._is_deleted(os.readlink(path)):  # noqa: PTH115
                    facts = os.stat(path)  # noqa: PTH116
                    if facts.st_nlink == 0:
                        sizes[facts.st_ino] = facts.st_size if stat.S_ISREG(facts.st_mode) else 0
        if self._checks % CHECKS_PER_MAP_READING == 0:
            for line in Path(f"{self._process}/maps").read_text(encoding="utf-8", errors="replace").splitlines():
                words = line.split(maxsplit=5)  # address, permissions, offset, device, inode, path
                if len(words) == 6 and self._is_deleted(words[5]):
                    sizes.setdefault(int(words[4]), largest)
        return list(sizes.values())

    def _is_deleted(self, path: str) -> bool:
        return path.startswith(f"{self._folder}/") and path.endswith(" (deleted)")


class ThreadWatcher:
    """Watcher of the number of a process's threads."""

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")

    def __call__(self, limits: Limits) -> LimitExceeded | None:
        try:
            lines = self._status.read_text(encoding="ascii", errors="replace").splitlines()
        except OSError:
            return None  # it has just ended
        threads = next((int(line.split()[1]) for line in lines if line.startswith("Threads:")), 0)
        return LimitExceeded("killed", f"{limits.processes} threads") if threads > limits.processes else None


@contextlib.contextmanager
def file_access_as(user: int) -> Iterator[None]:
    """Access files as that user and group in this thread, until the end of the block; root's other rights stay."""
    libc = ctypes.CDLL(None)
    group, own = libc.setfsgid(user), libc.setfsuid(user)
    try:
        yield
    finally:
        libc.setfsuid(own)
        libc.setfsgid(group)
