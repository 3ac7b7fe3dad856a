"""From a program and a layer to the job that the child is given, and to the command that starts it."""

from __future__ import annotations

import itertools
import marshal
import math
import os
import platform
import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from evaluate.sandbox import bubblewrap, landlock, runtime, seccomp
from evaluate.sandbox.outcome import MEBIBYTE, Program

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
    rules: list[landlock.LandlockRule]
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
    if user is not None or (layer == "bubblewrap" and bubblewrap.nproc_limit_is_per_program()):
        resources["RLIMIT_NPROC"] = (limits.processes, limits.processes)
    wrapped = layer == "bubblewrap"
    known = landlock.landlock_abi_version() if layer == "landlock" else 0
    folder = bubblewrap.SCRATCH_MOUNT if wrapped else str(scratch)
    return ChildSpec(
        code=program.code,
        scratch=folder,
        mount=f"mode=1777,size={limits.file_bytes},nr_inodes={limits.files + 1}" if wrapped else "",
        limits=resources,
        user=user,
        parent=None if wrapped else os.getpid(),
        readable=runtime.readable_paths(),
        packages=runtime.package_dirs(),
        ruleset=landlock.build_ruleset(known) if known else b"",
        rules=[*landlock.shared_rules(known, runtime.readable_paths()), landlock.scratch_rule(known, folder)]
        if known
        else [],
        filter=b"" if layer == UNSAFE_LAYER else seccomp_filter(platform.machine()),
    )


def child_command(layer: str, spec_fd: int, ready_fd: int) -> list[str]:
    """The command that starts the child, which finds the job and the way back at those descriptors."""
    python = [runtime.python_executable(), *runtime.PYTHON_FLAGS, "-c", BOOTSTRAP, str(spec_fd), str(ready_fd)]
    return bubblewrap.bwrap_command(str(bubblewrap.find_bwrap()), python) if layer == "bubblewrap" else python


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
