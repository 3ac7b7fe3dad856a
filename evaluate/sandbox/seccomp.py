"""Seccomp filter of the sandbox: a BPF program that allows the listed system calls and denies all others.

The parent assembles it as classic BPF (the kernel's Documentation/userspace-api/seccomp_filter.rst); the child loads
it with prctl just before the program's first line, because it also denies execve. The tables have the system calls that
Python 3.11 to 3.14, its threads and numpy need, by number. Every other call fails: with EPERM, or, if it is one of the
newer calls, which libraries try first and replace by older ones, with ENOSYS.

Sources: asm/unistd_64.h of Linux 6.1 for x86_64, asm-generic/unistd.h for aarch64 (None: the machine lacks the call).
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Sequence

SYSCALL_MACHINES = ("x86_64", "aarch64")

# Allowed with any arguments.
ALLOWED_SYSCALLS: dict[str, tuple[int, int | None]] = {
    # Files.
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67), "pwrite64": (18, 68),
    "preadv": (295, 69), "pwritev": (296, 70), "preadv2": (327, 286), "pwritev2": (328, 287),
    "copy_file_range": (326, 285),
    "lseek": (8, 62), "close": (3, 57), "close_range": (436, 436), "dup": (32, 23), "dup2": (33, None),
    "dup3": (292, 24), "pipe": (22, None), "pipe2": (293, 59),
    "sendfile": (40, 71), "fadvise64": (221, 223), "fsync": (74, 82),
    "fdatasync": (75, 83), "ftruncate": (77, 46), "fallocate": (285, 47), "flock": (73, 32),
    "stat": (4, None), "fstat": (5, 80), "lstat": (6, None), "newfstatat": (262, 79), "statx": (332, 291),
    "fstatfs": (138, 44), "statfs": (137, 43), "access": (21, None), "faccessat": (269, 48), "faccessat2": (439, 439),
    "readlink": (89, None), "readlinkat": (267, 78), "getcwd": (79, 17), "chdir": (80, 49), "fchdir": (81, 50),
    "getdents": (78, None), "getdents64": (217, 61), "mkdir": (83, None), "mkdirat": (258, 34), "rmdir": (84, None),
    "unlink": (87, None), "unlinkat": (263, 35), "rename": (82, None), "renameat": (264, 38), "renameat2": (316, 276),
    "umask": (95, 166),
    # Memory, threads, exit.
    "mmap": (9, 222), "munmap": (11, 215), "mprotect": (10, 226), "mremap": (25, 216), "madvise": (28, 233),
    "brk": (12, 214), "msync": (26, 227), "mincore": (27, 232), "set_robust_list": (273, 99),
    "rseq": (334, 293), "set_tid_address": (218, 96), "sched_yield": (24, 124),
    "getcpu": (309, 168), "membarrier": (324, 283), "exit": (60, 93),
    "exit_group": (231, 94), "restart_syscall": (219, 128), "gettid": (186, 178),
    # Its own signals, waiting, clocks.
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "rt_sigsuspend": (130, 133),
    "rt_sigpending": (127, 136), "rt_sigtimedwait": (128, 137), "sigaltstack": (131, 132), "pause": (34, None),
    "alarm": (37, None), "setitimer": (38, 103), "getitimer": (36, 102), "wait4": (61, 260), "waitid": (247, 95),
    "nanosleep": (35, 101),
    "gettimeofday": (96, 169), "time": (201, None), "times": (100, 153), "timerfd_create": (283, 85),
    "timerfd_settime": (286, 86), "timerfd_gettime": (287, 87), "poll": (7, None), "ppoll": (271, 73),
    "select": (23, None), "pselect6": (270, 72), "epoll_create": (213, None), "epoll_create1": (291, 20),
    "epoll_ctl": (233, 21), "epoll_wait": (232, None), "epoll_pwait": (281, 22), "epoll_pwait2": (441, 441),
    "eventfd2": (290, 19),
    # asyncio wakes its loop through a socket pair; `socketpair` and `sendto` are in CHECKED_SYSCALLS.
    "recvfrom": (45, 207), "shutdown": (48, 210), "getsockname": (51, 204), "getpeername": (52, 205),
    "getsockopt": (55, 209),
    # Information about the process.
    "getpid": (39, 172), "getppid": (110, 173), "getuid": (102, 174), "geteuid": (107, 175), "getgid": (104, 176),
    "getegid": (108, 177), "getgroups": (115, 158), "getpgrp": (111, None),
    "getresuid": (118, 148), "getresgid": (120, 150), "getrlimit": (97, 163), "getrusage": (98, 165),
    "sysinfo": (99, 179), "uname": (63, 160), "getrandom": (318, 278),
}  # fmt: skip

# Allowed with certain arguments only, or denied with another error: see ARGUMENT_CHECKS.
CHECKED_SYSCALLS: dict[str, tuple[int, int | None]] = {
    "clone": (56, 220), "clone3": (435, 435), "open": (2, None), "openat": (257, 56), "fcntl": (72, 25),
    "ioctl": (16, 29), "kill": (62, 129), "tgkill": (234, 131), "prctl": (157, 167), "prlimit64": (302, 261),
    "socketpair": (53, 199), "sendto": (44, 206), "futex": (202, 98),
    # A clock can be that of another process.
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "clock_nanosleep": (230, 115),
    # These tell whether another process exists.
    "getpgid": (121, 155), "getsid": (124, 156), "getpriority": (140, 141), "sched_getaffinity": (204, 123),
}  # fmt: skip

# Calls that change the mode of a file. Landlock does not check them, so they are allowed only to a program with its own
# user, whose files are its own alone. Otherwise they are answered with success.
MODE_SYSCALLS: dict[str, tuple[int, int | None]] = {
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
}  # fmt: skip

# Calls that change times or owner of a file: answered with success, without effect, as Landlock does not check them.
IGNORED_SYSCALLS: dict[str, tuple[int, int | None]] = {
    "utime": (132, None), "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88),
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54),
}  # fmt: skip

# Calls for extended attributes of files: answered as on a file system without such attributes.
UNSUPPORTED_SYSCALLS: dict[str, tuple[int, int | None]] = {
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "getxattr": (191, 8), "lgetxattr": (192, 9),
    "fgetxattr": (193, 10), "listxattr": (194, 11), "llistxattr": (195, 12), "flistxattr": (196, 13),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
}  # fmt: skip

FIRST_NEW_SYSCALL = 424  # pidfd_send_signal of Linux 5.1: from here on the numbers are the same on all machines


def syscall_number(name: str, machine: str) -> int | None:
    """Return the call's number on that machine; None if the machine has no such call."""
    tables = ALLOWED_SYSCALLS | CHECKED_SYSCALLS | MODE_SYSCALLS | IGNORED_SYSCALLS | UNSUPPORTED_SYSCALLS
    return tables[name][SYSCALL_MACHINES.index(machine)]


AUDIT_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_*
PID_PLACEHOLDER = 0x5EED50F7  # replaced by the child's pid, which only the child knows (set_filter_pid)

RET_ALLOW = 0x7FFF0000
RET_KILL_PROCESS = 0x80000000
RET_ERRNO = 0x00050000

# Instructions of classic BPF, and offsets in `struct seccomp_data`.
LOAD, JUMP_EQUAL, JUMP_AT_LEAST, JUMP_ANY_BIT, AND, RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
NUMBER_OFFSET, ARCHITECTURE_OFFSET, ARGUMENTS_OFFSET = 0, 4, 16

BpfCode = list[bytes]


def build_filter(machine: str, own_user: bool) -> bytes:
    """Build the filter for a machine, with PID_PLACEHOLDER in it. Raises ValueError for a machine without a table.

    `own_user` says that the program has a user of its own, and so may change the mode of every file that it can.
    """
    if machine not in SYSCALL_MACHINES:
        raise ValueError(f"there is no table of system calls for {machine}, only for {' and '.join(SYSCALL_MACHINES)}")
    code = [
        _bpf_instruction(LOAD, ARCHITECTURE_OFFSET),
        _bpf_instruction(JUMP_EQUAL, AUDIT_ARCHITECTURES[machine], 1, 0),
        # A call by another architecture's interface, which has other numbers.
        _bpf_instruction(RETURN, RET_KILL_PROCESS),
        _bpf_instruction(LOAD, NUMBER_OFFSET),
    ]
    allow, succeed = [_bpf_instruction(RETURN, RET_ALLOW)], [_return_errno(0)]
    for name in ALLOWED_SYSCALLS:
        code += _if_syscall(syscall_number(name, machine), allow)
    for name in CHECKED_SYSCALLS:
        code += _if_syscall(syscall_number(name, machine), ARGUMENT_CHECKS[name]())
    for name in MODE_SYSCALLS:
        code += _if_syscall(syscall_number(name, machine), allow if own_user else succeed)
    for name in IGNORED_SYSCALLS:
        code += _if_syscall(syscall_number(name, machine), succeed)
    for name in UNSUPPORTED_SYSCALLS:
        code += _if_syscall(syscall_number(name, machine), [_return_errno(errno.EOPNOTSUPP)])
    code += [
        _bpf_instruction(JUMP_AT_LEAST, FIRST_NEW_SYSCALL, 0, 1),
        _return_errno(errno.ENOSYS),
        _return_errno(errno.EPERM),
    ]
    return b"".join(code)


def set_filter_pid(filter_code: bytes, pid: int) -> bytes:
    """Return the filter for the process with that pid."""
    return filter_code.replace(struct.pack("<I", PID_PLACEHOLDER), struct.pack("<I", pid))


def _allow_thread_clone() -> BpfCode:
    """Check clone: only with CLONE_THREAD, and without any CLONE_NEW* (new namespaces)."""
    thread, namespaces = 0x00010000, 0x7E020000
    return [
        _load_argument(0),
        _bpf_instruction(JUMP_ANY_BIT, namespaces, 2, 0),
        _bpf_instruction(JUMP_ANY_BIT, thread, 0, 1),
        _bpf_instruction(RETURN, RET_ALLOW),
        _return_errno(errno.EPERM),
    ]


def _allow_open(flags_argument: int) -> Callable[[], BpfCode]:
    """Check open and openat: two flags are denied.

    O_TRUNC on read-only files, which Landlock before Linux 6.2 allows; and O_TMPFILE, whose files cannot be counted
    (Python's tempfile then creates an ordinary file).
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


def _allow_values(argument: int, values: Sequence[int], mask: int | None = None) -> Callable[[], BpfCode]:
    def code() -> BpfCode:
        jumps = [_bpf_instruction(JUMP_EQUAL, value, len(values) - at, 0) for at, value in enumerate(values)]
        return [
            _load_argument(argument),
            *([] if mask is None else [_bpf_instruction(AND, mask)]),
            *jumps,
            _return_errno(errno.EPERM),
            _bpf_instruction(RETURN, RET_ALLOW),
        ]

    return code


def _allow_own_clocks() -> BpfCode:
    """Check clock_gettime and others: only the clocks with a fixed number, not those made of a pid or descriptor."""
    return [
        _load_argument(0),
        _bpf_instruction(JUMP_AT_LEAST, 16, 0, 1),
        _return_errno(errno.EINVAL),
        _bpf_instruction(RETURN, RET_ALLOW),
    ]


def _allow_own_priority() -> BpfCode:
    """Check getpriority: only of the process itself (PRIO_PROCESS, its pid or 0)."""
    return [
        _load_argument(0),
        _bpf_instruction(JUMP_EQUAL, 0, 0, 4),
        _load_argument(1),
        _bpf_instruction(JUMP_EQUAL, 0, 1, 0),
        _bpf_instruction(JUMP_EQUAL, PID_PLACEHOLDER, 0, 1),
        _bpf_instruction(RETURN, RET_ALLOW),
        _return_errno(errno.EPERM),
    ]


def _answer_ioctl() -> BpfCode:
    """Check ioctl: TCGETS (isatty), TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX; FICLONE is not supported."""
    allowed = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
    return [
        _load_argument(1),
        _bpf_instruction(JUMP_EQUAL, 0x40049409, 0, 1),
        _return_errno(errno.EOPNOTSUPP),
        *_allow_values(1, allowed)()[1:],
    ]


def _allow_stream_socketpair() -> BpfCode:
    """Check socketpair: only AF_UNIX with SOCK_STREAM, whose two ends reach only each other."""
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
    """Check sendto: only to the connected peer, with a null address (both halves of the pointer)."""
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
    # Its flags are in memory, which a filter cannot read; glibc then falls back to clone.
    "clone3": lambda: [_return_errno(errno.ENOSYS)],
    "open": _allow_open(1),
    "openat": _allow_open(2),
    # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_GETLK, F_SETLK, F_SETLKW, F_DUPFD_CLOEXEC, F_GETPIPE_SZ: not
    # F_SETOWN and F_SETSIG, which send signals to others.
    "fcntl": _allow_values(1, (0, 1, 2, 3, 4, 5, 6, 7, 1030, 1032)),
    "ioctl": _answer_ioctl,
    "kill": _allow_values(0, (PID_PLACEHOLDER,)),
    "tgkill": _allow_values(0, (PID_PLACEHOLDER,)),
    "prctl": _allow_values(0, (15, 16)),  # PR_SET_NAME, PR_GET_NAME: names of threads
    "prlimit64": _allow_values(0, (0, PID_PLACEHOLDER)),  # its own limits
    "socketpair": _allow_stream_socketpair,
    "sendto": _allow_sendto_without_address,
    # FUTEX_WAIT, WAKE, REQUEUE, CMP_REQUEUE, WAKE_OP, WAIT_BITSET, WAKE_BITSET, each with its flags: not those with
    # priority inheritance, which tell whether a thread id exists.
    "futex": _allow_values(1, (0, 1, 3, 4, 5, 9, 10), 0x7F),
    "clock_gettime": _allow_own_clocks,
    "clock_getres": _allow_own_clocks,
    "clock_nanosleep": _allow_own_clocks,
    "getpgid": _allow_values(0, (0, PID_PLACEHOLDER)),
    "getsid": _allow_values(0, (0, PID_PLACEHOLDER)),
    "getpriority": _allow_own_priority,
    "sched_getaffinity": _allow_values(0, (0, PID_PLACEHOLDER)),
}


def _if_syscall(syscall_number: int | None, then: BpfCode) -> BpfCode:
    """Run `then`, all of whose paths return, for that call; empty if the machine has no such call."""
    return [] if syscall_number is None else [_bpf_instruction(JUMP_EQUAL, syscall_number, 0, len(then)), *then]


def _load_argument(index: int, upper_half: bool = False) -> bytes:
    """Load an argument's lower half, which is all that the kernel reads of an int or of flags."""
    return _bpf_instruction(LOAD, ARGUMENTS_OFFSET + 8 * index + (4 if upper_half else 0))


def _return_errno(number: int) -> bytes:
    return _bpf_instruction(RETURN, RET_ERRNO | number)


def _bpf_instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """Encode one `struct sock_filter`; jumps count the instructions to skip."""
    return struct.pack("<HBBI", code, if_true, if_false, value)
