"""What the kernel does not count under Landlock: size and number of a program's files, an ordinary user's threads."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from evaluate.sandbox.outcome import MEBIBYTE, ExecutionStatus, Limits


@dataclass(frozen=True)
class LimitExceeded:
    """Why a program is ended: the status it gets, and the limit in words."""

    status: ExecutionStatus
    limit: str


Watcher = Callable[[Limits], LimitExceeded | None]


def file_watcher(folder: str) -> Watcher:
    """Looks at all that lies in a program's folder."""

    def look(limits: Limits) -> LimitExceeded | None:
        size = count = 0
        folders = [folder]
        while folders:
            try:
                with os.scandir(folders.pop()) as entries:
                    for entry in entries:
                        count += 1
                        if count > limits.files:
                            return LimitExceeded("output", f"{limits.files} files")
                        if entry.is_dir(follow_symlinks=False):
                            folders.append(entry.path)
                        else:
                            size += entry.stat(follow_symlinks=False).st_size
            except FileNotFoundError:
                continue  # it has just been deleted
            except OSError as fault:
                return LimitExceeded("output", f"a folder that cannot be looked into ({fault.strerror})")
        if size > limits.file_bytes:
            return LimitExceeded("output", f"{limits.file_bytes / MEBIBYTE:g} MB of files")
        return None

    return look


def thread_watcher(pid: int) -> Watcher:
    """Looks at how many threads that process has."""
    status = Path(f"/proc/{pid}/status")

    def look(limits: Limits) -> LimitExceeded | None:
        try:
            lines = status.read_text(encoding="ascii", errors="replace").splitlines()
        except OSError:
            return None  # it has just ended
        threads = next((int(line.split()[1]) for line in lines if line.startswith("Threads:")), 0)
        return LimitExceeded("killed", f"{limits.processes} threads") if threads > limits.processes else None

    return look
