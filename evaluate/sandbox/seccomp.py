"""The filter that the kernel asks before every system call: a list of what is allowed, all else fails with EPERM.

It is assembled here, in the parent, as classic BPF (the kernel's Documentation/userspace-api/seccomp_filter.rst), and
loaded by the child with prctl just before the program's first line, because it also denies execve.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Sequence

from evaluate.sandbox.syscalls import ALLOWED_SYSCALLS, CHECKED_SYSCALLS, SYSCALL_MACHINES, syscall_number

AUDIT_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_*
PID_PLACEHOLDER = 0x5EED50F7  # stands in the filter for the child's pid, which only the child knows; see `for_pid`

RET_ALLOW = 0x7FFF0000
RET_KILL_PROCESS = 0x80000000
RET_ERRNO = 0x00050000

# Instructions of classic BPF, and where `struct seccomp_data` keeps what they load.
LOAD, JUMP_EQUAL, JUMP_ANY_BIT, AND, RETURN = 0x20, 0x15, 0x45, 0x54, 0x06
NUMBER_OFFSET, ARCHITECTURE_OFFSET, ARGUMENTS_OFFSET = 0, 4, 16

BpfCode = list[bytes]


def build_filter(machine: str) -> bytes:
    """The filter for that machine, still with PID_PLACEHOLDER in it. Raises ValueError for a machine without a table."""
    if machine not in SYSCALL_MACHINES:
        raise ValueError(f"there is no table of system calls for {machine}, only for {' and '.join(SYSCALL_MACHINES)}")
    code = [
        _bpf_instruction(LOAD, ARCHITECTURE_OFFSET),
        _bpf_instruction(JUMP_EQUAL, AUDIT_ARCHITECTURES[machine], 1, 0),
        _bpf_instruction(
            RETURN, RET_KILL_PROCESS
        ),  # a call through another machine's door, where numbers mean other things
        _bpf_instruction(LOAD, NUMBER_OFFSET),
    ]
    for name in ALLOWED_SYSCALLS:
        code += _if_syscall(syscall_number(name, machine), [_bpf_instruction(RETURN, RET_ALLOW)])
    for name in CHECKED_SYSCALLS:
        code += _if_syscall(syscall_number(name, machine), ARGUMENT_CHECKS[name]())
    code.append(_return_errno(errno.EPERM))
    return b"".join(code)


def set_filter_pid(filter_code: bytes, pid: int) -> bytes:
    """The filter for the process that has that pid."""
    return filter_code.replace(struct.pack("<I", PID_PLACEHOLDER), struct.pack("<I", pid))


def _allow_thread_clone() -> BpfCode:
    """clone: with CLONE_THREAD, and without any CLONE_NEW* (new namespaces)."""
    thread, namespaces = 0x00010000, 0x7E020000
    return [
        _load_argument(0),
        _bpf_instruction(JUMP_ANY_BIT, namespaces, 2, 0),
        _bpf_instruction(JUMP_ANY_BIT, thread, 0, 1),
        _bpf_instruction(RETURN, RET_ALLOW),
        _return_errno(errno.EPERM),
    ]


def _allow_open(flags_argument: int) -> Callable[[], BpfCode]:
    """open, openat: without two flags.

    Not O_TRUNC for what is opened to be read, which Landlock before Linux 6.2 lets pass; and not O_TMPFILE, whose files
    cannot be counted (Python's tempfile then makes an ordinary one).
    """

    def code() -> BpfCode:
        access_mode, truncate, nameless = 0x3, 0x200, 0x400000
        return [
            _load_argument(flags_argument),
            _bpf_instruction(JUMP_ANY_BIT, nameless, 3, 0),
            _bpf_instruction(JUMP_ANY_BIT, truncate, 0, 1),
            _bpf_instruction(JUMP_ANY_BIT, access_mode, 0, 2),
            _bpf_instruction(RETURN, RET_ALLOW),
            _return_errno(errno.EOPNOTSUPP),
            _return_errno(errno.EPERM),
        ]

    return code


def _allow_values(argument: int, values: Sequence[int]) -> Callable[[], BpfCode]:
    def code() -> BpfCode:
        jumps = [_bpf_instruction(JUMP_EQUAL, value, len(values) - at, 0) for at, value in enumerate(values)]
        return [_load_argument(argument), *jumps, _return_errno(errno.EPERM), _bpf_instruction(RETURN, RET_ALLOW)]

    return code


def _allow_stream_socketpair() -> BpfCode:
    """socketpair: AF_UNIX and SOCK_STREAM, two ends that can reach each other alone."""
    return [
        _load_argument(0),
        _bpf_instruction(JUMP_EQUAL, 1, 0, 4),
        _load_argument(1),
        _bpf_instruction(AND, 0xF),
        _bpf_instruction(JUMP_EQUAL, 1, 0, 1),
        _bpf_instruction(RETURN, RET_ALLOW),
        _return_errno(errno.EPERM),
    ]


def _allow_sendto_without_address() -> BpfCode:
    """sendto: to where the socket already leads, so with a null address (both halves of the pointer)."""
    return [
        _load_argument(4),
        _bpf_instruction(JUMP_EQUAL, 0, 0, 3),
        _load_argument(4, upper_half=True),
        _bpf_instruction(JUMP_EQUAL, 0, 0, 1),
        _bpf_instruction(RETURN, RET_ALLOW),
        _return_errno(errno.EPERM),
    ]


ARGUMENT_CHECKS: dict[str, Callable[[], BpfCode]] = {
    "clone": _allow_thread_clone,
    # Its flags lie in memory, where a filter cannot look; glibc then falls back to clone.
    "clone3": lambda: [_return_errno(errno.ENOSYS)],
    "open": _allow_open(1),
    "openat": _allow_open(2),
    # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_GETLK, F_SETLK, F_SETLKW, F_DUPFD_CLOEXEC, F_GETPIPE_SZ: not
    # F_SETOWN and F_SETSIG, which send signals to others.
    "fcntl": _allow_values(1, (0, 1, 2, 3, 4, 5, 6, 7, 1030, 1032)),
    # TCGETS (isatty), TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX.
    "ioctl": _allow_values(1, (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)),
    "kill": _allow_values(0, (PID_PLACEHOLDER,)),
    "tgkill": _allow_values(0, (PID_PLACEHOLDER,)),
    "prctl": _allow_values(0, (15, 16)),  # PR_SET_NAME, PR_GET_NAME: threads have names
    "prlimit64": _allow_values(0, (0,)),  # its own
    "socketpair": _allow_stream_socketpair,
    "sendto": _allow_sendto_without_address,
}


def _if_syscall(syscall_number: int | None, then: BpfCode) -> BpfCode:
    """`then`, which ends in returns alone, for that call; nothing where the machine has no such call."""
    return [] if syscall_number is None else [_bpf_instruction(JUMP_EQUAL, syscall_number, 0, len(then)), *then]


def _load_argument(index: int, upper_half: bool = False) -> bytes:
    """Loads an argument's lower half, which is all the kernel itself reads of an int or of flags."""
    return _bpf_instruction(LOAD, ARGUMENTS_OFFSET + 8 * index + (4 if upper_half else 0))


def _return_errno(number: int) -> bytes:
    return _bpf_instruction(RETURN, RET_ERRNO | number)


def _bpf_instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """One `struct sock_filter`; jumps count the instructions to pass over."""
    return struct.pack("<HBBI", code, if_true, if_false, value)
