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

LAYERS = ("bubblewrap", "landlock")
UNSAFE = "unsafe-rlimits"
STACK_BYTES = 64 * MEBIBYTE
OPEN_FILES = 64

# Ids that systemd keeps for users who exist only while a service runs (DynamicUser): each program is one of them, so
# that none can reach another's files or signals, and RLIMIT_NPROC counts its threads alone.
FIRST_USER, LAST_USER = 61184, 65519
_USERS: Iterator[int] = itertools.count(random.randrange(LAST_USER - FIRST_USER))

# Reads the child's code and the job from a descriptor, and closes it before anything else happens.
BOOT = (
    "import marshal,sys;f=open(int(sys.argv[1]),'rb');code=marshal.load(f);job=marshal.load(f);f.close();"
    "space={'__name__':'sandbox'};exec(code,space);space['main'](job,int(sys.argv[2]))"
)


@dataclass(frozen=True)
class Job:
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
    rules: list[landlock.Rule]
    filter: bytes  # seccomp's, with `own_pid` where the child's pid belongs; b"" where it is not used
    own_pid: bytes = struct.pack("<I", seccomp.OWN_PID)


def job_for(layer: str, program: Program, scratch: str | None) -> Job:
    """The job of that program; `scratch` is its folder on the host, which bubblewrap does without."""
    limits = program.limits
    user = next_user() if drops_root() else None
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
    if user is not None or (layer == "bubblewrap" and bubblewrap.counts_threads()):
        resources["RLIMIT_NPROC"] = (limits.processes, limits.processes)
    wrapped = layer == "bubblewrap"
    known = landlock.version() if layer == "landlock" else 0
    folder = bubblewrap.SCRATCH if wrapped else str(scratch)
    return Job(
        code=program.code,
        scratch=folder,
        mount=f"mode=1777,size={limits.file_bytes},nr_inodes={limits.files + 1}" if wrapped else "",
        limits=resources,
        user=user,
        parent=None if wrapped else os.getpid(),
        readable=runtime.readable(),
        packages=runtime.packages(),
        ruleset=landlock.ruleset(known) if known else b"",
        rules=[*landlock.shared(known, runtime.readable()), landlock.own(known, folder)] if known else [],
        filter=b"" if layer == UNSAFE else system_calls(platform.machine()),
    )


def command(layer: str, job: int, ready: int) -> list[str]:
    """The command that starts the child, which finds the job and the way back at those descriptors."""
    python = [runtime.executable(), *runtime.FLAGS, "-c", BOOT, str(job), str(ready)]
    return bubblewrap.command(str(bubblewrap.program()), python) if layer == "bubblewrap" else python


@cache
def system_calls(machine: str) -> bytes:
    """The seccomp filter of that machine."""
    return seccomp.build(machine)


@cache
def child_code() -> bytes:
    """child.py, compiled and marshalled."""
    source = Path(__file__).with_name("child.py").read_text(encoding="utf-8")
    return marshal.dumps(compile(source, "sandbox", "exec", dont_inherit=True, optimize=2))


@cache
def drops_root() -> bool:
    """Whether we are root and can become others: in some containers root is the only user, an ordinary one outside."""
    if os.geteuid() != 0:
        return False
    for line in Path("/proc/self/uid_map").read_text(encoding="ascii").splitlines():
        first, _, length = map(int, line.split())
        if first <= FIRST_USER and first + length > LAST_USER:
            return True
    return False


def next_user() -> int:
    """A user for one program."""
    return FIRST_USER + next(_USERS) % (LAST_USER - FIRST_USER + 1)
