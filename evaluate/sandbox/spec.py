"""Input and output of the sandbox, and ChildSpec: what its child is given, the command that starts it, its folder."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import marshal
import math
import os
import platform
import random
import resource
import shutil
import struct
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Literal

from errors import PromptOrTuneError, SandboxClosedError, SandboxError
from evaluate.sandbox import isolation, seccomp

ExecutionStatus = Literal["ok", "error", "timeout", "memory", "output", "killed", "refused"]
MEBIBYTE = 1024 * 1024
SANDBOX_LAYERS = ("bubblewrap", "landlock")
UNSAFE_LAYER = "unsafe-rlimits"
STACK_BYTES = 64 * MEBIBYTE  # of the first thread; the program may raise it
THREAD_STACK_BYTES = 4 * MEBIBYTE  # of other threads, unless the program sets another size
LONGEST_THREAD_STACK = 0.5  # of the memory
OPEN_FILES = 64

# Ids that systemd reserves for services with DynamicUser. Each program runs as one of them, so that it cannot reach
# another's files or signal it, and RLIMIT_NPROC counts only its threads.
FIRST_UID, LAST_UID = 61184, 65519
_UID_OFFSETS: Iterator[int] = itertools.count(random.randrange(LAST_UID - FIRST_UID))

# Reads the child's code and its spec from a descriptor, and closes it first of all. A third argument is a descriptor
# for stderr, which a shell does not pass on as such (isolation.init_command).
BOOTSTRAP = (
    "import marshal,os,sys;spec,ready,*errors=map(int,sys.argv[1:]);[(os.dup2(e,2),os.close(e)) for e in errors];"
    "f=open(spec,'rb');code=marshal.load(f);job=marshal.load(f);f.close();"
    "space={'__name__':'sandbox'};exec(code,space);space['main'](job,ready)"
)


@dataclass(frozen=True)
class Limits:
    """Resource limits of one program. Raises PromptOrTuneError for a limit that is not a positive number."""

    wall_seconds: float = 10.0
    """From the program's first line to its end, without the time for which it waits for a processor. On a busy machine
    the clock may show up to 10 times as much."""
    cpu_seconds: float = 10.0
    """Processor time of all its threads; rounded up, because the kernel counts whole seconds."""
    memory_bytes: int = 512 * MEBIBYTE
    """Address space (RLIMIT_AS). numpy needs about half of the default."""
    processes: int = 128
    """Threads, including the first: a program cannot start processes."""
    output_bytes: int = MEBIBYTE
    """Of stdout and stderr together."""
    file_bytes: int = 8 * MEBIBYTE
    """Of any file it writes, and of all of them together, deleted files included that it still uses."""
    files: int = 256
    """Files and folders that exist at a time."""

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            if not (value > 0 and math.isfinite(value)):
                raise PromptOrTuneError(f"The sandbox's limit {limit.name} is {value}: give a number above 0.")


@dataclass(frozen=True)
class Program:
    """Python source, its stdin, and its limits."""

    code: str
    stdin: str = ""
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class ExecutionResult:
    """How a program ended.

    `status` is one of: ok (exit status 0), error (an exception or another exit status), timeout, memory, output (it
    printed or wrote too much), killed (ended by a signal: a crash, its own kill, too many threads), refused (it was not
    started; `stderr` says why). `stdout` and `stderr` hold at most `Limits.output_bytes` together, with undecodable
    bytes replaced. `seconds` is wall time from the program's first line, waiting for a processor included. `limit`
    describes the limit that was exceeded or the signal that ended it, '' otherwise.
    """

    status: ExecutionStatus
    stdout: str
    stderr: str
    layer: str
    seconds: float
    limit: str = ""


def require_run(result: ExecutionResult) -> ExecutionResult:
    """Return the result of a program that ran; raise SandboxError if the sandbox did not start it or was closed."""
    reason = result.stderr.removeprefix("The program was not started: ").rstrip(".")
    if result.limit == "stopped from outside" or (result.status == "refused" and reason == "the sandbox is closed"):
        raise SandboxClosedError("The sandbox was closed before all tests had run.")
    if result.status == "refused":
        raise SandboxError(f"The sandbox could not start a program ({reason}).")
    return result


@dataclass(frozen=True)
class ChildSpec:
    """Input of `child.py`, which receives it by marshal: plain values only."""

    code: str
    scratch: str  # the working folder, empty, and the only writable one
    mount: str  # options of a tmpfs to mount there, in namespaces of bubblewrap; '' if the folder exists already
    limits: dict[int, tuple[int, int]]  # soft and hard, by the numbers in `resource`
    user: int | None  # id to change to; None to stay
    parent: int | None  # pid whose end ends the child; None if bubblewrap ensures that
    readable: tuple[str, ...]
    package_folders: tuple[str, ...]
    package_names: tuple[str, ...]
    thread_stack: int
    longest_stack: int
    ruleset: bytes  # Landlock's; b"" if it is not used
    rules: list[isolation.LandlockRule]
    filter: bytes  # seccomp's, with `own_pid` in place of the child's pid; b"" if it is not used
    own_pid: bytes = struct.pack("<I", seccomp.PID_PLACEHOLDER)


def build_child_spec(layer: str, program: Program, scratch: str | None) -> ChildSpec:
    """Build the spec of a program; `scratch` is its folder on the host, None for bubblewrap."""
    limits = program.limits
    user = next_uid() if can_drop_root() else None
    cpu = math.ceil(limits.cpu_seconds)
    maximums = {
        resource.RLIMIT_AS: limits.memory_bytes,
        resource.RLIMIT_FSIZE: limits.file_bytes,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    limits_by_number = {number: (int(value), int(value)) for number, value in maximums.items()}
    highest = resource.getrlimit(resource.RLIMIT_STACK)[1]
    limits_by_number[resource.RLIMIT_STACK] = (STACK_BYTES if highest < 0 else min(STACK_BYTES, highest), highest)
    limits_by_number[resource.RLIMIT_CPU] = (
        cpu,
        cpu + 1,
    )  # SIGXCPU at the soft limit shows the reason; SIGKILL at the hard one
    if user is not None or (layer == "bubblewrap" and isolation.nproc_limit_is_per_program()):
        limits_by_number[resource.RLIMIT_NPROC] = (limits.processes, limits.processes)
    bubblewrap = layer == "bubblewrap"
    abi_version = isolation.landlock_abi_version() if layer == "landlock" else 0
    folder = isolation.SCRATCH_MOUNT if bubblewrap else str(scratch)
    return ChildSpec(
        code=program.code,
        scratch=folder,
        mount=f"mode=1777,size={limits.file_bytes},nr_inodes={limits.files + 1}" if bubblewrap else "",
        limits=limits_by_number,
        user=user,
        parent=None if bubblewrap else os.getpid(),
        readable=isolation.readable_paths(),
        package_folders=isolation.package_dirs(),
        package_names=isolation.IMPORTABLE_PACKAGES,
        thread_stack=THREAD_STACK_BYTES,
        longest_stack=int(LONGEST_THREAD_STACK * limits.memory_bytes),
        ruleset=isolation.build_ruleset(abi_version) if abi_version else b"",
        rules=[
            *isolation.shared_rules(abi_version, isolation.readable_paths()),
            isolation.scratch_rule(abi_version, folder),
        ]
        if abi_version
        else [],
        filter=b"" if layer == UNSAFE_LAYER else seccomp_filter(platform.machine(), user is not None),
    )


def child_command(layer: str, spec_fd: int, ready_fd: int) -> list[str]:
    """Return the command that starts the child, with the descriptors of its spec and of the ready pipe."""
    python = [isolation.python_executable(), *isolation.PYTHON_FLAGS, "-c", BOOTSTRAP, str(spec_fd), str(ready_fd)]
    if layer != "bubblewrap":
        return python
    spare_fd = next(number for number in range(3, 10) if number not in {spec_fd, ready_fd})
    return isolation.bwrap_command(str(isolation.find_bwrap()), isolation.init_command(python, spare_fd))


@cache
def seccomp_filter(machine: str, own_user: bool) -> bytes:
    """Return the seccomp filter for a machine type, and for programs that each have their own user or ours."""
    return seccomp.build_filter(machine, own_user)


@cache
def compiled_child() -> bytes:
    """Return child.py, compiled and marshalled."""
    source = Path(__file__).with_name("child.py").read_text(encoding="utf-8")
    return marshal.dumps(compile(source, "sandbox", "exec", dont_inherit=True, optimize=2))


@cache
def can_drop_root() -> bool:
    """Return whether this process is root and can change to other users; in some containers root is the only user."""
    if os.geteuid() != 0:
        return False
    for line in Path("/proc/self/uid_map").read_text(encoding="ascii").splitlines():
        first, _, length = map(int, line.split())
        if first <= FIRST_UID and first + length > LAST_UID:
            return True
    return False


def next_uid() -> int:
    """Return the user id for the next program."""
    return FIRST_UID + next(_UID_OFFSETS) % (LAST_UID - FIRST_UID + 1)


SCRATCH_PREFIX = "prompt-or-tune-sandbox-"
SCRATCH_STALE_SECONDS = 60  # a younger folder may not be locked yet


@contextlib.contextmanager
def scratch_dir() -> Iterator[str]:
    """Create an empty folder, locked (by flock on the folder itself) and deleted at the end of the block."""
    path = tempfile.mkdtemp(prefix=SCRATCH_PREFIX)
    lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield path
    finally:
        _remove_tree(path)
        os.close(lock)


def chown_to_user(path: str, user: int) -> None:
    """Give the folder to the user that the program runs as. Raises OSError if root may not."""
    try:
        os.chown(path, user, user)
    except PermissionError:
        raise OSError("root has lost its right to give files to other users (CAP_CHOWN)") from None


def remove_stale_scratch_dirs() -> None:
    """Remove folders that a killed process left behind: their lock is free."""
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
    """Restore our permissions on folders, which the program may have removed; links are not followed."""
    with contextlib.suppress(OSError):
        Path(path).chmod(0o700)
        with os.scandir(path) as entries:
            inner = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        for folder in inner:
            _restore_permissions(folder)
