"""The system calls that Python, its threads and numpy need, by number; all others are denied.

Sources: asm/unistd_64.h of Linux 6.1 for x86_64, asm-generic/unistd.h for aarch64 (a call that it lacks is None).
"""

from __future__ import annotations

SYSCALL_MACHINES = ("x86_64", "aarch64")

# Allowed whatever their arguments. What changes owners, modes or times of files is out: Landlock does not guard it.
ALLOWED_SYSCALLS: dict[str, tuple[int, int | None]] = {
    # Reading and writing what is open, and opening what the layer lets it open.
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67), "pwrite64": (18, 68),
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
    # Memory, threads, the end.
    "mmap": (9, 222), "munmap": (11, 215), "mprotect": (10, 226), "mremap": (25, 216), "madvise": (28, 233),
    "brk": (12, 214), "msync": (26, 227), "mincore": (27, 232), "futex": (202, 98), "set_robust_list": (273, 99),
    "get_robust_list": (274, 100), "rseq": (334, 293), "set_tid_address": (218, 96), "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123), "getcpu": (309, 168), "membarrier": (324, 283), "exit": (60, 93),
    "exit_group": (231, 94), "restart_syscall": (219, 128), "gettid": (186, 178),
    # Signals to itself, waiting, clocks.
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "rt_sigsuspend": (130, 133),
    "rt_sigpending": (127, 136), "rt_sigtimedwait": (128, 137), "sigaltstack": (131, 132), "pause": (34, None),
    "alarm": (37, None), "setitimer": (38, 103), "getitimer": (36, 102), "wait4": (61, 260), "waitid": (247, 95),
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "clock_nanosleep": (230, 115), "nanosleep": (35, 101),
    "gettimeofday": (96, 169), "time": (201, None), "times": (100, 153), "timerfd_create": (283, 85),
    "timerfd_settime": (286, 86), "timerfd_gettime": (287, 87), "poll": (7, None), "ppoll": (271, 73),
    "select": (23, None), "pselect6": (270, 72), "epoll_create": (213, None), "epoll_create1": (291, 20),
    "epoll_ctl": (233, 21), "epoll_wait": (232, None), "epoll_pwait": (281, 22), "epoll_pwait2": (441, 441),
    "eventfd2": (290, 19),
    # asyncio wakes itself through a pair of sockets; `socketpair` and `sendto` are under ARGUMENTS in seccomp.py.
    "recvfrom": (45, 207), "shutdown": (48, 210), "getsockname": (51, 204), "getsockopt": (55, 209),
    # Who and where it is.
    "getpid": (39, 172), "getppid": (110, 173), "getuid": (102, 174), "geteuid": (107, 175), "getgid": (104, 176),
    "getegid": (108, 177), "getgroups": (115, 158), "getpgrp": (111, None), "getpgid": (121, 155), "getsid": (124, 156),
    "getresuid": (118, 148), "getresgid": (120, 150), "getrlimit": (97, 163), "getrusage": (98, 165),
    "getpriority": (140, 141), "sysinfo": (99, 179), "uname": (63, 160), "getrandom": (318, 278),
}  # fmt: skip

# Allowed with certain arguments only, or answered in a certain way: seccomp.py says which.
CHECKED_SYSCALLS: dict[str, tuple[int, int | None]] = {
    "clone": (56, 220), "clone3": (435, 435), "open": (2, None), "openat": (257, 56), "fcntl": (72, 25),
    "ioctl": (16, 29), "kill": (62, 129), "tgkill": (234, 131), "prctl": (157, 167), "prlimit64": (302, 261),
    "socketpair": (53, 199), "sendto": (44, 206),
}  # fmt: skip


def syscall_number(name: str, machine: str) -> int | None:
    """The call's number on that machine; None where the machine has no such call."""
    return (ALLOWED_SYSCALLS.get(name) or CHECKED_SYSCALLS[name])[SYSCALL_MACHINES.index(machine)]
