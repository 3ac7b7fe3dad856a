"""The cache folder (bases, indexes, adapters, jobs, votes), folders that appear whole, and checks of disk space.

The product was called Peft Arena before. What a person made under that name is taken over by `take_over_old_cache` and
`adopt_old_variables`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from common.format import format_bytes
from errors import DiskSpaceError, PromptOrTuneError

# Takes one line of progress at a time.
ProgressFn = Callable[[str], None]


_OLD_PREFIX, _PREFIX = "PEFT_ARENA_", "PROMPT_OR_TUNE_"
_OLD_NAME, _NAME = "peft-arena", "prompt-or-tune"


def cache_dir() -> Path:
    """`PROMPT_OR_TUNE_HOME`, or ~/.cache/prompt-or-tune."""
    return Path(os.environ.get("PROMPT_OR_TUNE_HOME") or f"~/.cache/{_NAME}").expanduser()


def adopt_old_variables(report: ProgressFn) -> None:
    """Give environment variables of the old name (PEFT_ARENA_HOME, ...) their new names, where those are not set."""
    old = sorted(name for name in os.environ if name.startswith(_OLD_PREFIX))
    adopted = [name for name in old if _PREFIX + name.removeprefix(_OLD_PREFIX) not in os.environ]
    for name in adopted:
        os.environ[_PREFIX + name.removeprefix(_OLD_PREFIX)] = os.environ[name]
    if adopted:
        report(f"{', '.join(adopted)}: these variables begin with {_PREFIX} now; their values are used.")


def take_over_old_cache(report: ProgressFn, parent: Path | None = None) -> None:
    """Move the cache of the old name to the new one, once; `report` gets one line.

    `parent` holds both folders; without it ~/.cache does, and nothing is moved where PROMPT_OR_TUNE_HOME names another
    folder. A link stays under the old name, because jobs on disk hold absolute paths. Where both folders exist, each
    entry that the new one lacks is moved (one level deep for adapters and jobs), and the rest stays. Where the folder
    cannot be moved, the new name becomes a link to it.
    """
    if parent is None:
        if os.environ.get("PROMPT_OR_TUNE_HOME"):
            return
        parent = Path("~/.cache").expanduser()
    old, new = parent / _OLD_NAME, parent / _NAME
    if old.is_symlink() or not old.is_dir():
        return
    if new.exists():
        moved = sum(_move_missing(entry, new / entry.name) for entry in sorted(old.iterdir()))
        if moved:
            report(f"{moved} folders and files of {old} were moved to {new}; what both have stays where it is.")
        return
    try:
        old.rename(new)
    except FileNotFoundError:  # another process moved it at this moment
        return
    except OSError:
        with suppress(OSError):
            new.symlink_to(old, target_is_directory=True)
            report(f"{new} is a link to {old}, which cannot be moved: nothing in it is lost.")
        return
    with suppress(OSError):
        old.symlink_to(new, target_is_directory=True)
    report(f"{old} was moved to {new}: bases, adapters, jobs and votes are all there.")


def _move_missing(entry: Path, target: Path) -> int:
    """Move `entry` where there is no `target`, or what a folder holds that `target` lacks; the number of moves."""
    if target.is_dir() and entry.is_dir():
        pairs = [(child, target / child.name) for child in sorted(entry.iterdir())]
    else:
        pairs = [(entry, target)]
    moved = 0
    for source, destination in pairs:
        if not destination.exists():
            with suppress(OSError):
                source.rename(destination)
                moved += 1
    return moved


def make_dir(path: Path) -> Path:
    """Create `path` and its parents. Raises PromptOrTuneError where the disk or its permissions forbid it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PromptOrTuneError(
            f"Cannot create {path} ({error.strerror}): set PROMPT_OR_TUNE_HOME to a folder that you may write to."
        ) from error
    return path


def check_disk_space(folder: Path, required_bytes: int) -> None:
    """Raise DiskSpaceError unless the disk under `folder` has `required_bytes` free."""
    free = shutil.disk_usage(folder).free
    if free < required_bytes:
        raise DiskSpaceError(
            f"{folder} has {format_bytes(free)} free and {format_bytes(required_bytes)} are needed: "
            "free some room, or set PROMPT_OR_TUNE_HOME to a folder on a larger disk."
        )


@contextmanager
def atomic_dir(target: Path) -> Iterator[Path]:
    """Give a temporary folder that is renamed to `target` when the block succeeds, and deleted when it fails.

    A `target` that another process made in the meantime stays. Raises DiskSpaceError where the disk is full.
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
