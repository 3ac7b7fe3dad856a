"""Files and folders: the cache folder, folders that appear whole, atomic writes, locks between processes, disk space.

The product was called Peft Arena before. What a person made under that name is taken over by `take_over_old_cache` and
`adopt_old_variables`.

A lock is an flock on a file, taken through the package filelock: the system releases it when its process ends, however
it ends. A process id in a file would not do, since after a restart it may belong to another program.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import AcquireReturnProxy, FileLock, Timeout

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
    """Create `path` and its parents as `create_folders` does.

    Raises PromptOrTuneError where the disk or its permissions forbid it.
    """
    try:
        create_folders(path)
    except OSError as error:
        raise PromptOrTuneError(
            f"Cannot create {path} ({error.strerror}): set PROMPT_OR_TUNE_HOME to a folder that you may write to."
        ) from error
    return path


# What people made: their rows, jobs, adapters, duels, votes and runs. Bases and indexes are public.
_PRIVATE_NAMES = ("adapters", "arena", "datasets", "jobs", "runs", "uploads", "votes.sqlite")
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def create_folders(path: Path) -> None:
    """Create `path` and its parents, private ones in a private folder. Raises OSError."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    if missing and is_private(missing[-1].parent):
        for folder in missing:
            _restrict(folder)


def is_private(folder: Path) -> bool:
    """Return whether nobody but its owner can enter the folder; always False on Windows."""
    try:
        return os.name == "posix" and not stat.S_IMODE(folder.stat().st_mode) & _OTHERS
    except OSError:
        return False


def make_private_dir(path: Path) -> Path:
    """Create `path` and its parents, and let nobody but its owner enter it. Raises PromptOrTuneError as `make_dir`."""
    restrict_tree(make_dir(path))
    return path


def protect_home(home: Path) -> None:
    """Let nobody but the owner read what people made in the cache folder; new files in it are private, too.

    Only what belongs to this user is changed, no link is followed, and the folder itself is only where nothing but
    what this product made lies in it. A folder that is closed already is not looked through.
    """
    if os.name != "posix" or home.is_symlink() or not home.is_dir():
        return
    for name in _PRIVATE_NAMES:
        restrict_tree(home / name)
    with suppress(OSError):
        known = {*_PRIVATE_NAMES, "bases", "indexes"}
        if all(entry.name.startswith((".", "votes.sqlite")) or entry.name in known for entry in home.iterdir()):
            _restrict(home)


def restrict_tree(path: Path) -> None:
    """Make a folder private, with all that is in it, unless it is private already; or a file."""
    if path.is_symlink() or not path.exists() or (path.is_dir() and is_private(path)):
        return
    for folder, _, files in os.walk(path):
        for file in files:
            _restrict(Path(folder) / file)
        if Path(folder) != path:
            _restrict(Path(folder))
    _restrict(path)  # last, as a closed folder is not looked through again


def _restrict(path: Path) -> None:
    """Take the rights of others from a file or folder of this user; links, and files with several names, stay."""
    if os.name != "posix":
        return
    with suppress(OSError):
        found = path.lstat()
        shared = stat.S_ISREG(found.st_mode) and found.st_nlink > 1
        plain = stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)
        mode = stat.S_IMODE(found.st_mode)
        if plain and not shared and found.st_uid == os.geteuid() and mode & _OTHERS and not mode & stat.S_ISVTX:
            path.chmod(mode & ~_OTHERS)


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
        if is_private(target.parent):
            restrict_tree(building)
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
