"""Bubblewrap, Landlock, runtime paths.

bubblewrap: namespaces of its own (processes, network, mounts, ...) around the child, and little mounted in them.

What is mounted: Python's library and the system's shared libraries, read-only; five harmless devices; a small tmpfs,
which the child mounts itself because bubblewrap cannot limit the number of files in one. There is no /proc. Root needs
no user namespace, and does without: in one, it would be root still, for whom the number of threads has no limit.

Landlock: which files a process may open, said by the process itself (Documentation/userspace-api/landlock.rst).

Kernels know more or fewer rights, by the version of their interface (ABI): all that this one knows are denied, and then
a few are given back beneath certain paths. What an older one lacks (truncating, sockets), the seccomp filter denies.

The Python that runs inside: its executable, what it must be able to read, and its environment.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import struct
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

# -P and -s keep the current folder and the user's packages off the path, -S the start-up files of packages, -B bytecode
# off the disk. Not -I: it would also ignore PYTHONHASHSEED, and what a program prints of a set would differ by the run.
PYTHON_FLAGS = ("-P", "-s", "-S", "-B")


@cache
def python_executable() -> str:
    """The interpreter beneath the virtual environment, whose own folder may lie in the checkout."""
    return os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable)


@cache
def package_dirs() -> tuple[str, ...]:
    """The folders with installed packages, numpy's among them."""
    return tuple(
        path for path in sys.path if Path(path).name in {"site-packages", "dist-packages"} and Path(path).is_dir()
    )


@cache
def readable_paths() -> tuple[str, ...]:
    """Every path that the program may read, symlinks both as they are named and as they lead; none lies in another."""
    wanted = [
        *SYSTEM_PATHS,
        f"{sys.base_prefix}/lib",
        sysconfig.get_path("stdlib"),
        sysconfig.get_config_var("LIBDIR") or "",
        *package_dirs(),
    ]
    found = {path for path in wanted if path and Path(path).exists()}
    found |= {os.path.realpath(path) for path in found}
    kept: list[str] = []
    for path in sorted(found, key=len):
        if not any(path.startswith(other + "/") for other in kept):
            kept.append(path)
    return tuple(kept)


def child_environment(scratch: str) -> dict[str, str]:
    """The whole environment of the program: nothing of ours is handed on."""
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


SCRATCH_MOUNT = "/sandbox"  # not /tmp, where the virtual environment may lie
BWRAP_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
NAMESPACE_FLAGS = ("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try")


def find_bwrap() -> str | None:
    """Where bwrap is; None where it is not installed."""
    return shutil.which("bwrap")


def nproc_limit_is_per_program() -> bool:
    """Whether RLIMIT_NPROC counts a program's threads alone, for it has a user namespace of its own (Linux 5.14)."""
    release = platform.release().split(".")
    return os.geteuid() != 0 and (int(release[0]), int(release[1])) >= (5, 14)


def bwrap_command(bwrap: str, child_command: list[str]) -> list[str]:
    """The command that runs `inside` in the namespaces. Open descriptors are handed on."""
    words = [bwrap, *NAMESPACE_FLAGS, "--hostname", "sandbox", "--die-with-parent", "--cap-drop", "ALL"]
    # To mount the tmpfs and to become another user; the child gives up both before the program starts.
    needed = ["CAP_SYS_ADMIN"]
    if os.geteuid() == 0:
        needed += ["CAP_SETUID", "CAP_SETGID"]
    else:
        words.append("--unshare-user")
    for capability in needed:
        words += ["--cap-add", capability]
    mounted = dict.fromkeys([*readable_paths(), python_executable()])
    # Left to itself, bubblewrap makes the folders above a mount for root alone.
    above = {str(folder) for path in mounted for folder in Path(path).parents}
    for folder in sorted(above - {"/"}):
        words += ["--dir", folder]
    for path in mounted:
        words += ["--ro-bind", path, path]
    words += ["--perms", "0755", "--tmpfs", "/dev"]
    for path in BWRAP_DEVICES:
        words += ["--dev-bind", path, path]
    words += ["--dir", SCRATCH_MOUNT, "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/"]
    return [*words, "--", *child_command]


CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same on every machine
VERSION_QUERY = 1

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE = (1 << bit for bit in range(6))
MAKE_CHAR, MAKE_DIR, MAKE_REG, MAKE_SOCK, MAKE_FIFO, MAKE_BLOCK, MAKE_SYM = (1 << bit for bit in range(6, 13))
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15

RIGHTS_BY_VERSION = {1: (1 << 13) - 1, 2: REFER, 3: TRUNCATE, 5: IOCTL_DEV}
NETWORK_MIN_ABI, NETWORK = 4, 0b11  # bind, connect
SCOPES_MIN_ABI, SCOPES = 6, 0b11  # abstract Unix sockets, signals

READ_ONLY = READ_FILE | READ_DIR
SCRATCH_RIGHTS = READ_ONLY | WRITE_FILE | TRUNCATE | MAKE_REG | MAKE_DIR | REMOVE_FILE | REMOVE_DIR | REFER
DEVICE_RIGHTS = {
    "/dev/null": READ_FILE | WRITE_FILE,
    "/dev/zero": READ_FILE,
    "/dev/urandom": READ_FILE,
    "/dev/random": READ_FILE,
}
FILE_RIGHTS = (
    EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
)  # the rights that a rule for a single file may name

LandlockRule = tuple[str, int]  # a path and the rights beneath it


@cache
def landlock_abi_version() -> int:
    """The kernel's ABI version; 0 where it has no Landlock, or has it switched off."""
    libc = ctypes.CDLL(None, use_errno=True)
    answer = libc.syscall(ctypes.c_long(CREATE_RULESET), None, ctypes.c_size_t(0), ctypes.c_uint32(VERSION_QUERY))
    return max(0, int(answer))


def handled_rights(abi_version: int) -> int:
    """All rights over files that ABI version `known` has."""
    return sum(rights for since, rights in RIGHTS_BY_VERSION.items() if since <= abi_version)


def build_ruleset(abi_version: int) -> bytes:
    """`struct landlock_ruleset_attr` as long as that version has it: files, then network, then scopes."""
    words = [handled_rights(abi_version)]
    if abi_version >= NETWORK_MIN_ABI:
        words.append(NETWORK)
    if abi_version >= SCOPES_MIN_ABI:
        words.append(SCOPES)
    return struct.pack(f"<{len(words)}Q", *words)


@cache
def shared_rules(abi_version: int, readable: tuple[str, ...]) -> tuple[LandlockRule, ...]:
    """What every program may open: Python's library to read, and harmless devices."""
    given = [(path, READ_ONLY) for path in readable]
    given += [(path, rights) for path, rights in DEVICE_RIGHTS.items() if Path(path).exists()]
    return tuple(
        (path, rights & handled_rights(abi_version) & (-1 if Path(path).is_dir() else FILE_RIGHTS))
        for path, rights in given
    )


def scratch_rule(abi_version: int, folder: str) -> LandlockRule:
    """What one program may do in its own folder: all but links, sockets and devices."""
    return folder, SCRATCH_RIGHTS & handled_rights(abi_version)
