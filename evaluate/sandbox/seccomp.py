"""The filter that the kernel asks before every system call: a list of what is allowed, all else fails with EPERM.

It is assembled here, in the parent, as classic BPF (the kernel's Documentation/userspace-api/seccomp_filter.rst), and
loaded by the child with prctl just before the program's first line, because it also denies execve.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Sequence

from evaluate.sandbox.syscalls import CHECKED, FREE, MACHINES, number

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_*
OWN_PID = 0x5EED50F7  # stands in the filter for the child's pid, which only the child knows; see `for_pid`

ALLOW = 0x7FFF0000
KILL_PROCESS = 0x80000000
ERRNO = 0x00050000

# Instructions of classic BPF, and where `struct seccomp_data` keeps what they load.
LOAD, JUMP_EQUAL, JUMP_ANY_BIT, AND, RETURN = 0x20, 0x15, 0x45, 0x54, 0x06
NUMBER_AT, ARCHITECTURE_AT, ARGUMENTS_AT = 0, 4, 16

Code = list[bytes]


def build(machine: str) -> bytes:
    """The filter for that machine, still with OWN_PID in it. Raises ValueError for a machine without a table."""
    if machine not in MACHINES:
        raise ValueError(f"there is no table of system calls for {machine}, only for {' and '.join(MACHINES)}")
    code = [
        _op(LOAD, ARCHITECTURE_AT),
        _op(JUMP_EQUAL, ARCHITECTURES[machine], 1, 0),
        _op(RETURN, KILL_PROCESS),  # a call through another machine's door, where numbers mean other things
        _op(LOAD, NUMBER_AT),
    ]
    for name in FREE:
        code += _when(number(name, machine), [_op(RETURN, ALLOW)])
    for name in CHECKED:
        code += _when(number(name, machine), ARGUMENTS[name]())
    code.append(_fail(errno.EPERM))
    return b"".join(code)


def for_pid(built: bytes, pid: int) -> bytes:
    """The filter for the process that has that pid."""
    return built.replace(struct.pack("<I", OWN_PID), struct.pack("<I", pid))


def _threads_only() -> Code:
    """clone: with CLONE_THREAD, and without any CLONE_NEW* (new namespaces)."""
    thread, namespaces = 0x00010000, 0x7E020000
    return [
        _argument(0),
        _op(JUMP_ANY_BIT, namespaces, 2, 0),
        _op(JUMP_ANY_BIT, thread, 0, 1),
        _op(RETURN, ALLOW),
        _fail(errno.EPERM),
    ]


def _open(flags_at: int) -> Callable[[], Code]:
    """open, openat: without two flags.

    Not O_TRUNC for what is opened to be read, which Landlock before Linux 6.2 lets pass; and not O_TMPFILE, whose files
    cannot be counted (Python's tempfile then makes an ordinary one).
    """

    def code() -> Code:
        access_mode, truncate, nameless = 0x3, 0x200, 0x400000
        return [
            _argument(flags_at),
            _op(JUMP_ANY_BIT, nameless, 3, 0),
            _op(JUMP_ANY_BIT, truncate, 0, 1),
            _op(JUMP_ANY_BIT, access_mode, 0, 2),
            _op(RETURN, ALLOW),
            _fail(errno.EOPNOTSUPP),
            _fail(errno.EPERM),
        ]

    return code


def _one_of(argument: int, values: Sequence[int]) -> Callable[[], Code]:
    def code() -> Code:
        jumps = [_op(JUMP_EQUAL, value, len(values) - at, 0) for at, value in enumerate(values)]
        return [_argument(argument), *jumps, _fail(errno.EPERM), _op(RETURN, ALLOW)]

    return code


def _stream_pair() -> Code:
    """socketpair: AF_UNIX and SOCK_STREAM, two ends that can reach each other alone."""
    return [
        _argument(0),
        _op(JUMP_EQUAL, 1, 0, 4),
        _argument(1),
        _op(AND, 0xF),
        _op(JUMP_EQUAL, 1, 0, 1),
        _op(RETURN, ALLOW),
        _fail(errno.EPERM),
    ]


def _no_address() -> Code:
    """sendto: to where the socket already leads, so with a null address (both halves of the pointer)."""
    return [
        _argument(4),
        _op(JUMP_EQUAL, 0, 0, 3),
        _argument(4, high=True),
        _op(JUMP_EQUAL, 0, 0, 1),
        _op(RETURN, ALLOW),
        _fail(errno.EPERM),
    ]


ARGUMENTS: dict[str, Callable[[], Code]] = {
    "clone": _threads_only,
    # Its flags lie in memory, where a filter cannot look; glibc then falls back to clone.
    "clone3": lambda: [_fail(errno.ENOSYS)],
    "open": _open(1),
    "openat": _open(2),
    # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_GETLK, F_SETLK, F_SETLKW, F_DUPFD_CLOEXEC, F_GETPIPE_SZ: not
    # F_SETOWN and F_SETSIG, which send signals to others.
    "fcntl": _one_of(1, (0, 1, 2, 3, 4, 5, 6, 7, 1030, 1032)),
    # TCGETS (isatty), TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX.
    "ioctl": _one_of(1, (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)),
    "kill": _one_of(0, (OWN_PID,)),
    "tgkill": _one_of(0, (OWN_PID,)),
    "prctl": _one_of(0, (15, 16)),  # PR_SET_NAME, PR_GET_NAME: threads have names
    "prlimit64": _one_of(0, (0,)),  # its own
    "socketpair": _stream_pair,
    "sendto": _no_address,
}


def _when(call: int | None, then: Code) -> Code:
    """`then`, which ends in returns alone, for that call; nothing where the machine has no such call."""
    return [] if call is None else [_op(JUMP_EQUAL, call, 0, len(then)), *then]


def _argument(at: int, high: bool = False) -> bytes:
    """Loads an argument's lower half, which is all the kernel itself reads of an int or of flags."""
    return _op(LOAD, ARGUMENTS_AT + 8 * at + (4 if high else 0))


def _fail(number: int) -> bytes:
    return _op(RETURN, ERRNO | number)


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """One `struct sock_filter`; jumps count the instructions to pass over."""
    return struct.pack("<HBBI", code, if_true, if_false, value)
