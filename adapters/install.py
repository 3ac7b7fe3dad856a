"""Installation of an adapter into a store: staging folder, checks reported as steps, atomic rename."""

from __future__ import annotations

import errno
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from adapters import checks
from adapters.manifest import MANIFEST_NAME
from common.files import atomic_dir, atomic_write
from common.hub import disk_error
from errors import AdapterError

# After this long no process is working in a staging folder any more.
ABANDONED_SECONDS = 24 * 3600


def target_folder(root: Path, name: str, overwrite: bool, reserved: Collection[str]) -> Path:
    """Return the folder `name` under `root`; raises AdapterError where the name is not valid or taken."""
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
    """Create a hidden folder under `root`, so that a rename installs, and remove it after the block."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(root)
        staging = Path(tempfile.mkdtemp(prefix=f".{name}-pull-", dir=root))
    except OSError as error:
        raise AdapterError(
            f"Cannot write to {root} ({error.strerror or error}): choose another folder with --root, "
            "or set PROMPT_OR_TUNE_HOME to one that you may write to."
        ) from error
    try:
        yield staging
    except OSError as error:
        raise disk_error(error, f"'{name}' could not be written to {root}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def install(folder: Path, target: Path, staging: Path, overwrite: bool) -> None:
    """Rename the folder to `target`; a folder that it replaces is restored if that fails."""
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


def copy_adapter(source: Path, target: Path) -> None:
    """Copy a trained adapter under another name, which its manifest gets too; the folder appears whole."""
    with atomic_dir(target) as building:
        shutil.copytree(source, building, dirs_exist_ok=True)
        values = json.loads((building / MANIFEST_NAME).read_text(encoding="utf-8"))
        values["name"] = target.name
        values["config"]["adapter_name"] = target.name
        atomic_write(building / MANIFEST_NAME, json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def _remove_abandoned(root: Path) -> None:
    """Remove staging folders of processes that were killed, once no process can be working in them."""
    for folder in root.glob(".*-pull-*"):
        if time.time() - folder.stat().st_mtime > ABANDONED_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Step:
    """A check and whether it passed. The error that follows a failed check says why."""

    name: str
    ok: bool


StepFn = Callable[[Step], None]


def ignore_steps(_: Step) -> None:
    """Do nothing: for callers that want errors only."""


@contextmanager
def report_step(report: StepFn, name: str) -> Iterator[None]:
    """Report the check as passed when the block ends, and as failed when it raises."""
    try:
        yield
    except BaseException:
        report(Step(name, ok=False))
        raise
    report(Step(name, ok=True))
