"""Landlock: which files a process may open, said by the process itself (Documentation/userspace-api/landlock.rst).

Kernels know more or fewer rights, by the version of their interface (ABI): all that this one knows are denied, and then
a few are given back beneath certain paths. What an older one lacks (truncating, sockets), the seccomp filter denies.
"""

from __future__ import annotations

import ctypes
import struct
from functools import cache
from pathlib import Path

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
