"""Isolation by bubblewrap and Landlock, and the paths and environment of the Python inside.

bubblewrap starts a shell, and that the child, in namespaces of their own (processes, network, mounts, ...) with few
mounts: Python's library and the system's shared libraries, read-only; five harmless devices; and two that the child
mounts itself: a small tmpfs, because bubblewrap cannot limit the number of files in one, and a /proc with the process
itself alone. Root needs no user namespace and gets none: inside one it would still be root, and the kernel does not
limit root's threads.

Landlock lets a process restrict its own file access (Documentation/userspace-api/landlock.rst). Kernels support
different rights, by the version of their interface (ABI): all rights of this kernel are denied, then some are allowed
beneath certain paths. What an older version lacks (truncating, sockets) is denied by the seccomp filter.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import struct
import subprocess
import sys
import sysconfig
from functools import cache
from pathlib import Path

# The dynamic linker and the libraries that Python and numpy's wheels link against; time zones for zoneinfo.
SYSTEM_PATHS = (
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/etc/ld.so.cache",
    "/etc/alternatives",
    "/usr/share/zoneinfo",
)

# -P and -s keep the current folder and the user's packages off the path, -S skips the start-up files of packages, -B
# writes no bytecode. Not -I: it would also ignore PYTHONHASHSEED, and the order of printed sets would vary.
PYTHON_FLAGS = ("-P", "-s", "-S", "-B")

# The packages that a program may import, if they are installed; docs/sandbox.md lists them. The second line has what
# these import in turn.
IMPORTABLE_PACKAGES = (
    *("numpy", "scipy", "pandas", "sympy", "mpmath", "networkx", "sklearn", "sortedcontainers", "regex", "yaml"),
    *("dateutil", "pytz", "tzdata", "joblib", "tqdm", "typing_extensions", "_yaml", "narwhals", "threadpoolctl"),
)


@cache
def python_executable() -> str:
    """Return the base interpreter of the virtual environment, whose own folder may be inside the checkout."""
    return os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable)


@cache
def package_dirs() -> tuple[str, ...]:
    """Return the folders of installed packages."""
    return tuple(
        path for path in sys.path if Path(path).name in {"site-packages", "dist-packages"} and Path(path).is_dir()
    )


@cache
def readable_paths() -> tuple[str, ...]:
    """Return every path that the program may read, symlinks and their targets; none is inside another."""
    candidates = [
        *SYSTEM_PATHS,
        f"{sys.base_prefix}/lib",
        sysconfig.get_path("stdlib"),
        sysconfig.get_config_var("LIBDIR") or "",
        *package_dirs(),
    ]
    found = {path for path in candidates if path and Path(path).exists()}
    found |= {os.path.realpath(path) for path in found}
    readable: list[str] = []
    for path in sorted(found, key=len):
        if not any(path.startswith(other + "/") for other in readable):
            readable.append(path)
    return tuple(readable)


def child_environment(scratch: str) -> dict[str, str]:
    """Return the complete environment of the program; nothing is inherited."""
    return {
        "HOME": scratch,
        "TMPDIR": scratch,
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        "PYTHONUTF8": "1",
        "PYTHONHASHSEED": "0",
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }


SCRATCH_MOUNT = "/sandbox"  # not /tmp, which may contain the virtual environment
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
DESCRIPTOR_LINKS = {
    "/dev/fd": "/proc/self/fd",
    "/dev/stdin": "/proc/self/fd/0",
    "/dev/stdout": "/proc/self/fd/1",
    "/dev/stderr": "/proc/self/fd/2",
}
NAMESPACE_FLAGS = ("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try")


def find_bwrap() -> str | None:
    """Return the path of bwrap; None if it is not installed."""
    return shutil.which("bwrap")


def nproc_limit_is_per_program() -> bool:
    """Return whether RLIMIT_NPROC counts per user namespace (Linux 5.14), and so only a program's own threads."""
    release = platform.release().split(".")
    return os.geteuid() != 0 and (int(release[0]), int(release[1])) >= (5, 14)


SHELL = "/bin/sh"


def init_command(command: list[str], spare_fd: int) -> list[str]:
    """Return the command of process 1 of the namespaces: a shell that waits for `command` and exits with its status.

    bubblewrap has a process 1 of its own, but does not wait for it, and so leaves it to the first process of the
    machine or container. A shell writes to stderr when a signal ends its command. So that this is not taken for the
    program's, `command` gets stderr as `spare_fd`, a number from 3 to 9 that is not in use, as its last argument.
    """
    return [SHELL, "-c", f'exec {spare_fd}>&2 2>/dev/null; "$@"; exit $?', "sh", *command, str(spare_fd)]


@cache
def needs_proc_of_bwrap(bwrap: str) -> bool:
    """Return whether bubblewrap must mount a /proc, so that the child may mount its own, and is able to.

    In a user namespace the kernel permits it only where another /proc is visible; in some containers none is.
    """
    user = [] if os.geteuid() == 0 else ["--unshare-user"]
    if not user and Path("/proc/self/uid_map").read_text(encoding="ascii").split() == ["0", "0", str(2**32 - 1)]:
        return False  # root, in no user namespace
    command = [
        bwrap,
        *user,
        "--unshare-pid",
        "--as-pid-1",
        "--ro-bind",
        "/",
        "/",
        "--proc",
        "/proc",
        "--",
        SHELL,
        "-c",
        ":",
    ]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def bwrap_command(bwrap: str, child_command: list[str]) -> list[str]:
    """Return the command that runs `child_command` in the namespaces. Open descriptors are inherited."""
    words = [bwrap, *NAMESPACE_FLAGS, "--hostname", "sandbox", "--die-with-parent", "--as-pid-1", "--cap-drop", "ALL"]
    # Needed to mount the tmpfs and /proc and to change the user; the child drops them before the program starts.
    needed = ["CAP_SYS_ADMIN"]
    if os.geteuid() == 0:
        needed += ["CAP_SETUID", "CAP_SETGID"]
    else:
        words.append("--unshare-user")
    for capability in needed:
        words += ["--cap-add", capability]
    mounted = dict.fromkeys([*readable_paths(), python_executable(), SHELL])
    # Without --dir, bubblewrap creates the parents of a mount with access for root only.
    parents = {str(folder) for path in mounted for folder in Path(path).parents}
    for folder in sorted(parents - {"/"}):
        words += ["--dir", folder]
    for path in mounted:
        words += ["--ro-bind", path, path]
    words += ["--perms", "0755", "--tmpfs", "/dev", "--perms", "0555", "--tmpfs", "/dev/shm"]  # noqa: S108
    for path in DEVICES:
        words += ["--dev-bind", path, path]
    for path, target in DESCRIPTOR_LINKS.items():
        words += ["--symlink", target, path]
    words += [
        "--proc" if needs_proc_of_bwrap(bwrap) else "--dir",
        "/proc",
        "--dir",
        SCRATCH_MOUNT,
        "--remount-ro",
        "/dev",
        "--remount-ro",
        "/",
        "--chdir",
        "/",
    ]
    return [*words, "--", *child_command]


CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same on all machines
VERSION_QUERY = 1

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE = (1 << bit for bit in range(6))
MAKE_CHAR, MAKE_DIR, MAKE_REG, MAKE_SOCK, MAKE_FIFO, MAKE_BLOCK, MAKE_SYM = (1 << bit for bit in range(6, 13))
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15

RIGHTS_BY_VERSION = {1: (1 << 13) - 1, 2: REFER, 3: TRUNCATE, 5: IOCTL_DEV}
NETWORK_MIN_ABI, NETWORK = 4, 0b11  # bind, connect
SCOPES_MIN_ABI, SCOPES = 6, 0b11  # abstract Unix sockets, signals

READ_ONLY = READ_FILE | READ_DIR
SCRATCH_RIGHTS = READ_ONLY | WRITE_FILE | TRUNCATE | MAKE_REG | MAKE_DIR | REMOVE_FILE | REMOVE_DIR | REFER
DEVICE_RIGHTS = READ_FILE | WRITE_FILE
FILE_RIGHTS = (
    EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
)  # the rights that a rule for a single file may name

LandlockRule = tuple[str, int]  # a path and the rights beneath it


@cache
def landlock_abi_version() -> int:
    """Return the kernel's Landlock ABI version; 0 if it has none or it is disabled."""
    libc = ctypes.CDLL(None, use_errno=True)
    answer = libc.syscall(ctypes.c_long(CREATE_RULESET), None, ctypes.c_size_t(0), ctypes.c_uint32(VERSION_QUERY))
    return max(0, int(answer))


def handled_rights(abi_version: int) -> int:
    """Return all file rights of that ABI version."""
    return sum(rights for since, rights in RIGHTS_BY_VERSION.items() if since <= abi_version)


def build_ruleset(abi_version: int) -> bytes:
    """Build `struct landlock_ruleset_attr` with the fields of that version: files, network, scopes."""
    words = [handled_rights(abi_version)]
    if abi_version >= NETWORK_MIN_ABI:
        words.append(NETWORK)
    if abi_version >= SCOPES_MIN_ABI:
        words.append(SCOPES)
    return struct.pack(f"<{len(words)}Q", *words)


@cache
def shared_rules(abi_version: int, readable: tuple[str, ...]) -> tuple[LandlockRule, ...]:
    """Return the rules of every program: Python's library to read, and harmless devices."""
    rules = [(path, READ_ONLY) for path in readable]
    rules += [(path, DEVICE_RIGHTS) for path in DEVICES if Path(path).exists()]
    return tuple(
        (path, rights & handled_rights(abi_version) & (-1 if Path(path).is_dir() else FILE_RIGHTS))
        for path, rights in rules
    )


def scratch_rule(abi_version: int, folder: str) -> LandlockRule:
    """Return the rule of a program's own folder: all rights except links, sockets and devices."""
    return folder, SCRATCH_RIGHTS & handled_rights(abi_version)
