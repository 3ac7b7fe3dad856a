"""Staging folder, checks as steps, atomic install.

The last step of what brings an adapter into a store: made aside, checked there, then renamed to its place.

The checks of something that is to be installed, told one by one as they pass.
"""

from __future__ import annotations

import errno
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from adapters import checks
from common.hub import disk_error
from errors import AdapterError

# After this long nobody is at work in a scratch folder.
ABANDONED_SECONDS = 24 * 3600


def target_folder(root: Path, name: str, overwrite: bool, reserved: Collection[str]) -> Path:
    """The folder `name` under `root`; AdapterError where it cannot be named so, or is there and not to be replaced."""
    checks.check_name(name)
    if name in reserved:
        raise AdapterError(f"There is an adapter '{name}' already: give this one another name, or delete that one.")
    if (root / name).exists() and not overwrite:
        raise AdapterError(
            f"There is an adapter '{name}' in {root} already: choose another one with --name, or add --overwrite."
        )
    return root / name


@contextmanager
def staging_folder(root: Path, name: str) -> Iterator[Path]:
    """A hidden folder under `root` (so that a rename installs), gone when the block ends."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(root)
        aside = Path(tempfile.mkdtemp(prefix=f".{name}-pull-", dir=root))
    except OSError as error:
        raise AdapterError(
            f"Cannot write to {root} ({error.strerror or error}): choose another folder with --root, "
            "or set PROMPT_OR_TUNE_HOME to one that you may write to."
        ) from error
    try:
        yield aside
    except OSError as error:
        raise disk_error(error, f"'{name}' could not be written to {root}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def install(folder: Path, target: Path, staging: Path, overwrite: bool) -> None:
    """Renames the folder to its place; one that stood there comes back if that fails."""
    old = staging / "replaced"
    replaced = overwrite and target.exists()
    if replaced:
        target.rename(old)
    try:
        folder.rename(target)
    except OSError as error:
        if replaced:
            old.rename(target)
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            raise AdapterError(
                f"An adapter '{target.name}' was put into {target.parent} in the meantime: choose another name."
            ) from error
        raise


def _remove_abandoned(root: Path) -> None:
    """Removes what a process that was killed half way left behind, once nobody can be at it any more."""
    for left in root.glob(".*-pull-*"):
        if time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
            shutil.rmtree(left, ignore_errors=True)


@dataclass(frozen=True)
class Step:
    """One check: what it is about, and whether it passed. Why one failed is said by the error that follows it."""

    name: str
    ok: bool


StepFn = Callable[[Step], None]


def ignore_steps(_: Step) -> None:
    """For whoever wants to hear of errors alone."""


@contextmanager
def report_step(report: StepFn, name: str) -> Iterator[None]:
    """Reports the check as passed when the block ends, and as failed when it raises."""
    try:
        yield
    except BaseException:
        report(Step(name, ok=False))
        raise
    report(Step(name, ok=True))
