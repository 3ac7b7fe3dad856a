"""The seccomp filter on both architectures in a BPF interpreter, and its system call numbers in the headers."""

from __future__ import annotations

import errno
import re
import struct
from pathlib import Path

import pytest

from evaluate.sandbox.seccomp import (
    ALLOWED_SYSCALLS,
    AUDIT_ARCHITECTURES,
    CHECKED_SYSCALLS,
    FIRST_NEW_SYSCALL,
    IGNORED_SYSCALLS,
    MODE_SYSCALLS,
    PID_PLACEHOLDER,
    RET_ALLOW,
    RET_ERRNO,
    RET_KILL_PROCESS,
    SYSCALL_MACHINES,
    UNSUPPORTED_SYSCALLS,
    build_filter,
    set_filter_pid,
    syscall_number,
)
from tests import messages

HEADERS = {"x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "aarch64": "/usr/include/asm-generic/unistd.h"}
PID = 4711
DENIED = RET_ERRNO | errno.EPERM
MISSING = RET_ERRNO | errno.ENOSYS
SUCCEEDS_WITHOUT_EFFECT = RET_ERRNO
NEWER_THAN_THE_HEADERS = {"fchmodat2"}  # of Linux 6.6


def run_filter(machine: str, call: int, *arguments: int, architecture: int | None = None, own_user: bool = True) -> int:
    """Interpret the filter (classic BPF) as the kernel does and return its answer."""
    code = [struct.unpack("<HBBI", each) for each in chunks(set_filter_pid(build_filter(machine, own_user), PID))]
    padded = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("<IIQ6Q", call, architecture or AUDIT_ARCHITECTURES[machine], 0, *padded)
    counter = accumulator = 0
    while True:
        operation, jump_if_true, jump_if_false, value = code[counter]
        counter += 1
        match operation:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, value)
            case 0x54:
                accumulator &= value
            case 0x15:
                counter += jump_if_true if accumulator == value else jump_if_false
            case 0x35:
                counter += jump_if_true if accumulator >= value else jump_if_false
            case 0x45:
                counter += jump_if_true if accumulator & value else jump_if_false
            case 0x06:
                return int(value)
            case _:
                pytest.fail(f"The filter has an instruction {operation:#x} that the interpreter does not know.")


def chunks(code: bytes) -> list[bytes]:
    return [code[start : start + 8] for start in range(0, len(code), 8)]


@pytest.mark.parametrize("own_user", [True, False])
@pytest.mark.parametrize("machine", SYSCALL_MACHINES)
def test_only_listed_system_calls_are_allowed(machine: str, own_user: bool) -> None:
    answers = {
        **dict.fromkeys(ALLOWED_SYSCALLS, RET_ALLOW),
        **dict.fromkeys(MODE_SYSCALLS, RET_ALLOW if own_user else SUCCEEDS_WITHOUT_EFFECT),
        **dict.fromkeys(IGNORED_SYSCALLS, SUCCEEDS_WITHOUT_EFFECT),
        **dict.fromkeys(UNSUPPORTED_SYSCALLS, RET_ERRNO | errno.EOPNOTSUPP),
    }
    assert not answers.keys() & CHECKED_SYSCALLS.keys()
    assert len(answers) == sum(map(len, (ALLOWED_SYSCALLS, MODE_SYSCALLS, IGNORED_SYSCALLS, UNSUPPORTED_SYSCALLS)))
    expected = {syscall_number(name, machine): answer for name, answer in answers.items()}
    checked = {syscall_number(name, machine) for name in CHECKED_SYSCALLS} - {None}
    for call in {*range(700), 2**31 - 1} - checked:
        other = MISSING if call >= FIRST_NEW_SYSCALL else DENIED
        assert run_filter(machine, call, own_user=own_user) == expected.get(call, other), call


@pytest.mark.parametrize("machine", SYSCALL_MACHINES)
@pytest.mark.parametrize(
    ("name", "arguments", "answer"),
    [
        ("clone", (0x003D0F00,), RET_ALLOW),  # what glibc asks for a thread
        ("clone", (0x11,), DENIED),  # fork
        ("clone", (0x4111,), DENIED),  # vfork
        ("clone", (0x003D0F00 | 0x10000000,), DENIED),  # a thread in a user namespace
        ("clone3", (0, 88), RET_ERRNO | errno.ENOSYS),
        ("openat", (0, 0, 0o1101), RET_ALLOW),  # to write, truncated
        ("openat", (0, 0, 0o1000), DENIED),  # to read, truncated
        ("openat", (0, 0, 0), RET_ALLOW),
        ("openat", (0, 0, 0x410002), RET_ERRNO | errno.EOPNOTSUPP),
        ("kill", (PID, 9), RET_ALLOW),
        ("kill", (PID + 1, 9), DENIED),
        ("kill", (0, 9), DENIED),
        ("kill", (2**64 - 1, 9), DENIED),
        ("tgkill", (PID, 1, 6), RET_ALLOW),
        ("tgkill", (1, 1, 6), DENIED),
        ("prlimit64", (0, 9), RET_ALLOW),
        ("prlimit64", (PID, 9), RET_ALLOW),
        ("prlimit64", (1, 9), DENIED),
        ("getpgid", (0,), RET_ALLOW),
        ("getpgid", (PID,), RET_ALLOW),
        ("getpgid", (PID + 1,), DENIED),
        ("getsid", (PID,), RET_ALLOW),
        ("getsid", (1,), DENIED),
        ("sched_getaffinity", (0,), RET_ALLOW),
        ("sched_getaffinity", (1,), DENIED),
        ("getpriority", (0, 0), RET_ALLOW),
        ("getpriority", (0, PID), RET_ALLOW),
        ("getpriority", (0, 1), DENIED),
        ("getpriority", (1, 0), DENIED),
        ("getpriority", (2, 0), DENIED),
        ("clock_gettime", (0,), RET_ALLOW),
        ("clock_gettime", (2,), RET_ALLOW),
        ("clock_gettime", ((~PID << 3 | 2) & 0xFFFFFFFF,), RET_ERRNO | errno.EINVAL),
        ("clock_nanosleep", (1,), RET_ALLOW),
        ("futex", (0, 0x80), RET_ALLOW),  # FUTEX_WAIT_PRIVATE
        ("futex", (0, 0x189), RET_ALLOW),  # FUTEX_WAIT_BITSET_PRIVATE of the real-time clock
        ("futex", (0, 6), DENIED),  # FUTEX_LOCK_PI
        ("futex", (0, 0x8D), DENIED),  # FUTEX_LOCK_PI2_PRIVATE
        ("ioctl", (0, 0x40049409), RET_ERRNO | errno.EOPNOTSUPP),  # FICLONE
        ("prctl", (15,), RET_ALLOW),
        ("prctl", (22,), DENIED),
        ("fcntl", (0, 1030), RET_ALLOW),
        ("fcntl", (0, 8, 1), DENIED),
        ("ioctl", (0, 0x5401), RET_ALLOW),
        ("ioctl", (0, 0x5412), DENIED),  # TIOCSTI
        ("socketpair", (1, 0x80801), RET_ALLOW),
        ("socketpair", (1, 2), DENIED),
        ("socketpair", (2, 1), DENIED),
        ("sendto", (3, 0, 0, 0, 0), RET_ALLOW),
        ("sendto", (3, 0, 0, 0, 0x7F00), DENIED),
        ("sendto", (3, 0, 0, 0, 0x7F00_0000_0000), DENIED),
    ],
)
def test_calls_are_allowed_or_denied_by_their_arguments(
    machine: str, name: str, arguments: tuple[int, ...], answer: int
) -> None:
    call = syscall_number(name, machine)
    assert call is not None
    assert run_filter(machine, call, *arguments) == answer


@pytest.mark.parametrize("machine", SYSCALL_MACHINES)
def test_another_architecture_kills_the_process(machine: str) -> None:
    assert run_filter(machine, 0, architecture=0x40000003) == RET_KILL_PROCESS


def test_x32_numbers_are_denied() -> None:
    assert {run_filter("x86_64", 0x40000000 | call) for call in range(600)} == {MISSING}


@pytest.mark.parametrize("machine", SYSCALL_MACHINES)
def test_the_pid_replaces_the_placeholder_only(machine: str) -> None:
    code = build_filter(machine, own_user=True)
    locations = [each for each in chunks(code) if struct.pack("<I", PID_PLACEHOLDER) in each]
    assert {struct.unpack("<HBBI", each)[0] for each in locations} == {0x15}
    assert len(locations) == code.count(struct.pack("<I", PID_PLACEHOLDER)) == 7
    assert struct.pack("<I", PID_PLACEHOLDER) not in set_filter_pid(code, PID)


def test_an_unknown_machine_raises() -> None:
    with pytest.raises(ValueError, match=messages.NAMES_RISCV64):
        build_filter("riscv64", own_user=True)


@pytest.mark.parametrize("machine", SYSCALL_MACHINES)
def test_system_call_numbers_equal_those_of_the_headers(machine: str) -> None:
    path = Path(HEADERS[machine])
    if not path.exists():
        pytest.skip(f"There is no {path}: apt install linux-libc-dev.")
    text = path.read_text()
    old = dict(re.findall(r"#define __NR3264_(\w+)\s+(\d+)", text))
    numbers = dict(re.findall(r"#define __NR_(\w+)\s+(\d+)", text)) | old
    numbers.setdefault("newfstatat", old.get("fstatat", ""))
    tables = (ALLOWED_SYSCALLS, CHECKED_SYSCALLS, MODE_SYSCALLS, IGNORED_SYSCALLS, UNSUPPORTED_SYSCALLS)
    for name in {name for table in tables for name in table} - NEWER_THAN_THE_HEADERS:
        assert str(syscall_number(name, machine)) == numbers.get(name, "None"), name
