"""The user's cache folder: converted bases, retrieval indexes, adapters. Nothing else is written outside a run."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from errors import DiskSpaceError, PromptOrTuneError

# Takes one line of progress at a time.
ProgressFn = Callable[[str], None]


def cache_dir() -> Path:
    """`PROMPT_OR_TUNE_HOME`, or ~/.cache/prompt-or-tune."""
    return Path(os.environ.get("PROMPT_OR_TUNE_HOME") or "~/.cache/prompt-or-tune").expanduser()


def make_dir(path: Path) -> Path:
    """Creates `path` and its parents; one sentence when the disk or its permissions say no."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PromptOrTuneError(
            f"Cannot create {path} ({error.strerror}): set PROMPT_OR_TUNE_HOME to a folder that you may write to."
        ) from error
    return path


def check_disk_space(folder: Path, required_bytes: int) -> None:
    """DiskSpaceError unless the disk under `folder` has `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < required_bytes:
        raise DiskSpaceError(
            f"{folder} has {free / 1e6:.0f} MB free and {required_bytes / 1e6:.0f} MB are needed: "
            "free some room, or set PROMPT_OR_TUNE_HOME to a folder on a larger disk."
        )


@contextmanager
def atomic_dir(target: Path) -> Iterator[Path]:
    """A temporary folder that becomes `target` when the block ends well, and vanishes when it does not.

    Where another process made `target` in the meantime, that one stays.
    """
    make_dir(target.parent)
    building = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield building
        building.chmod(0o755)
        try:
            building.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    except OSError as error:
        if error.errno in (28, 122):  # no space left, or the quota is used up
            raise DiskSpaceError(
                f"The disk under {target.parent} is full: free some room, or set PROMPT_OR_TUNE_HOME to a larger disk."
            ) from error
        raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
