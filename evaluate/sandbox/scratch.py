"""A program's own folder on the host, for the layers that cannot mount one; gone when the program is."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

SCRATCH_PREFIX = "peft-arena-sandbox-"
SCRATCH_STALE_SECONDS = 60  # a folder that is younger may not have been locked yet


@contextlib.contextmanager
def scratch_dir() -> Iterator[str]:
    """An empty folder, locked as long as it is in use."""
    path = tempfile.mkdtemp(prefix=SCRATCH_PREFIX)
    lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield path
    finally:
        _remove_tree(path)
        os.close(lock)


def chown_to_user(path: str, user: int) -> None:
    """Gives the folder to the user that the program runs as. Raises OSError in words where root may not."""
    try:
        os.chown(path, user, user)
    except PermissionError:
        raise OSError("root has lost its right to give files to other users (CAP_CHOWN)") from None


def remove_stale_scratch_dirs() -> None:
    """Removes the folders of programs whose owner was killed before it could: nobody holds their lock."""
    for path in Path(tempfile.gettempdir()).glob(f"{SCRATCH_PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - path.lstat().st_ctime < SCRATCH_STALE_SECONDS:
                continue
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove_tree(str(path))
            finally:
                os.close(lock)


def _remove_tree(path: str) -> None:
    if os.geteuid() != 0:
        _restore_permissions(path)
    shutil.rmtree(path, ignore_errors=True)


def _restore_permissions(path: str) -> None:
    """Takes back the rights that the program may have taken from us on its folders, and on nothing behind a link."""
    with contextlib.suppress(OSError):
        Path(path).chmod(0o700)
        with os.scandir(path) as entries:
            inner = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        for each in inner:
            _restore_permissions(each)
