"""Child spec, scratch directory.

From a program and a layer to the job that the child is given, and to the command that starts it.

A program's own folder on the host, for the layers that cannot mount one; gone when the program is.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import marshal
import math
import os
import platform
import random
import shutil
import struct
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from evaluate.sandbox import isolation, seccomp
from evaluate.sandbox.types import MEBIBYTE, Program

SANDBOX_LAYERS = ("bubblewrap", "landlock")
UNSAFE_LAYER = "unsafe-rlimits"
STACK_BYTES = 64 * MEBIBYTE
OPEN_FILES = 64

# Ids that systemd keeps for users who exist only while a service runs (DynamicUser): each program is one of them, so
# that none can reach another's files or signals, and RLIMIT_NPROC counts its threads alone.
FIRST_UID, LAST_UID = 61184, 65519
_UID_OFFSETS: Iterator[int] = itertools.count(random.randrange(LAST_UID - FIRST_UID))

# Reads the child's code and the job from a descriptor, and closes it before anything else happens.
BOOTSTRAP = (
    "import marshal,sys;f=open(int(sys.argv[1]),'rb');code=marshal.load(f);job=marshal.load(f);f.close();"
    "space={'__name__':'sandbox'};exec(code,space);space['main'](job,int(sys.argv[2]))"
)


@dataclass(frozen=True)
class ChildSpec:
    """What the child needs to know, as `child.py` reads it; marshalled, so plain values only."""

    code: str
    scratch: str  # the current folder, empty, and the only one that can be written
    mount: str  # options of a tmpfs to mount there; '' where the folder is there already
    limits: dict[str, tuple[int, int]]  # soft and hard, by their names in `resource`
    user: int | None  # to become; None to stay
    parent: int | None  # to end with, by pid; None where bubblewrap sees to it
    readable: tuple[str, ...]
    packages: tuple[str, ...]
    ruleset: bytes  # Landlock's; b"" where it is not used
    rules: list[isolation.LandlockRule]
    filter: bytes  # seccomp's, with `own_pid` where the child's pid belongs; b"" where it is not used
    own_pid: bytes = struct.pack("<I", seccomp.PID_PLACEHOLDER)


def build_child_spec(layer: str, program: Program, scratch: str | None) -> ChildSpec:
    """The job of that program; `scratch` is its folder on the host, which bubblewrap does without."""
    limits = program.limits
    user = next_uid() if can_drop_root() else None
    cpu = math.ceil(limits.cpu_seconds)
    at_most = {
        "RLIMIT_AS": limits.memory_bytes,
        "RLIMIT_FSIZE": limits.file_bytes,
        "RLIMIT_NOFILE": OPEN_FILES,
        "RLIMIT_CORE": 0,
        "RLIMIT_STACK": STACK_BYTES,
        "RLIMIT_MEMLOCK": 0,
        "RLIMIT_MSGQUEUE": 0,
    }
    resources = {name: (int(value), int(value)) for name, value in at_most.items()}
    resources["RLIMIT_CPU"] = (cpu, cpu + 1)  # at the first SIGXCPU, which tells us why; at the second SIGKILL
    if user is not None or (layer == "bubblewrap" and isolation.nproc_limit_is_per_program()):
        resources["RLIMIT_NPROC"] = (limits.processes, limits.processes)
    wrapped = layer == "bubblewrap"
    known = isolation.landlock_abi_version() if layer == "landlock" else 0
    folder = isolation.SCRATCH_MOUNT if wrapped else str(scratch)
    return ChildSpec(
        code=program.code,
        scratch=folder,
        mount=f"mode=1777,size={limits.file_bytes},nr_inodes={limits.files + 1}" if wrapped else "",
        limits=resources,
        user=user,
        parent=None if wrapped else os.getpid(),
        readable=isolation.readable_paths(),
        packages=isolation.package_dirs(),
        ruleset=isolation.build_ruleset(known) if known else b"",
        rules=[*isolation.shared_rules(known, isolation.readable_paths()), isolation.scratch_rule(known, folder)]
        if known
        else [],
        filter=b"" if layer == UNSAFE_LAYER else seccomp_filter(platform.machine()),
    )


def child_command(layer: str, spec_fd: int, ready_fd: int) -> list[str]:
    """The command that starts the child, which finds the job and the way back at those descriptors."""
    python = [isolation.python_executable(), *isolation.PYTHON_FLAGS, "-c", BOOTSTRAP, str(spec_fd), str(ready_fd)]
    return isolation.bwrap_command(str(isolation.find_bwrap()), python) if layer == "bubblewrap" else python


@cache
def seccomp_filter(machine: str) -> bytes:
    """The seccomp filter of that machine."""
    return seccomp.build_filter(machine)


@cache
def compiled_child() -> bytes:
    """child.py, compiled and marshalled."""
    source = Path(__file__).with_name("child.py").read_text(encoding="utf-8")
    return marshal.dumps(compile(source, "sandbox", "exec", dont_inherit=True, optimize=2))


@cache
def can_drop_root() -> bool:
    """Whether we are root and can become others: in some containers root is the only user, an ordinary one outside."""
    if os.geteuid() != 0:
        return False
    for line in Path("/proc/self/uid_map").read_text(encoding="ascii").splitlines():
        first, _, length = map(int, line.split())
        if first <= FIRST_UID and first + length > LAST_UID:
            return True
    return False


def next_uid() -> int:
    """A user for one program."""
    return FIRST_UID + next(_UID_OFFSETS) % (LAST_UID - FIRST_UID + 1)


SCRATCH_PREFIX = "prompt-or-tune-sandbox-"
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
