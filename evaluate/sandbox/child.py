"""What runs inside: gives up every power, one after the other, and then runs the program in the same process.

This file's code is compiled by the parent and handed over with the job (see launch.py), so the child reads nothing from
the checkout. It may import the standard library alone. Until the program's first line all of it is ours; nothing here
is trusted afterwards. The job's keys are those of `Job` in job.py.
"""

from __future__ import annotations

import builtins
import ctypes
import os
import resource
import sys
from _sitebuiltins import Quitter

TYPE_CHECKING = False  # importing typing takes longer than all that this file does
if TYPE_CHECKING:
    from typing import Any

EXIT_OUT_OF_MEMORY = 97  # exit status of a program that ended in a MemoryError; its own exit statuses are made 0 or 1
TRACEBACK_CHARACTERS = 20_000  # of one that is shown; a program's lines may be very long
RESERVE_BYTES = 1 << 20  # freed when memory is out, so that the error can still be printed

SET_PARENT_DEATH_SIGNAL, SET_SECCOMP, SET_NO_NEW_PRIVILEGES, SECCOMP_FILTER_MODE, SIGNAL_KILL = 1, 22, 38, 2, 9
ADD_RULE, RESTRICT_SELF, CREATE_RULESET, PATH_BENEATH = 445, 446, 444, 1
TMPFS_MOUNT_FLAGS = 2 | 4 | 8  # nosuid, nodev, noexec
CAPABILITY_VERSION = 0x20080522

libc = ctypes.CDLL(None, use_errno=True)


def main(spec: dict[str, Any], ready_fd: int) -> None:
    """Confines this process as the job says, tells the parent through `ready`, and runs the program.

    Where a step fails the process ends before the program starts: the parent sees that `ready` stayed silent.
    """
    try:
        confine(spec, ready_fd)
        os.write(ready_fd, b"+")
        os.close(ready_fd)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the program must not start
        os.write(2, f"{type(error).__name__}: {error}".encode(errors="replace"))
        os._exit(1)
    source = spec["code"]
    spec.clear()  # the program can walk up to here
    run_program(source)


def confine(spec: dict[str, Any], ready_fd: int) -> None:
    """All of the fences, in the one order in which each is still allowed to be put up."""
    if spec["mount"]:
        options = spec["mount"].encode()
        check_libc_result(
            libc.mount(b"tmpfs", spec["scratch"].encode(), b"tmpfs", TMPFS_MOUNT_FLAGS, options),
            "mounting the scratch folder",
        )
    os.chdir(spec["scratch"])
    folders = {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for path in (*spec["readable"], spec["scratch"])}
    for name, (soft, hard) in spec["limits"].items():
        resource.setrlimit(getattr(resource, name), (soft, hard))
    sys.path += spec["packages"]
    drop_privileges(spec["user"])
    set_parent_death_signal(spec["parent"])
    kept = open_unreachable_folders(folders)
    check_libc_result(libc.prctl(SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0), "giving up new privileges")
    if spec["ruleset"]:
        apply_landlock(spec["ruleset"], spec["rules"], folders)
    close_other_fds({0, 1, 2, ready_fd, *kept})
    if spec["filter"]:
        load_seccomp_filter(spec["filter"].replace(spec["own_pid"], os.getpid().to_bytes(4, "little")))


def drop_privileges(user: int | None) -> None:
    """Becomes that user, of no group, where one is named; then gives up all capabilities."""
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    nothing = (ctypes.c_uint32 * 6)()
    call = {"x86_64": 126, "aarch64": 91}[os.uname().machine]
    check_libc_result(libc.syscall(ctypes.c_long(call), header, nothing), "giving up capabilities")


def set_parent_death_signal(parent_pid: int | None) -> None:
    """Ends this process when the one that started it ends; `parent` is its pid, to see if it has ended already.

    Changing the user forgets this wish, so it comes after. Under bubblewrap its own process sees to it.
    """
    if parent_pid is not None:
        check_libc_result(libc.prctl(SET_PARENT_DEATH_SIGNAL, SIGNAL_KILL, 0, 0, 0), "asking to end with the parent")
        if os.getppid() != parent_pid:
            os._exit(1)


def open_unreachable_folders(folders: dict[str, int]) -> set[int]:
    """Descriptors of the folders that the user we became cannot reach by name: they lie below a folder of mode 0700.

    Python finds its modules, and the program its folder, below /proc/self/fd/<number> then: following such a link asks
    for no rights to the path.
    """
    kept = {
        path: descriptor
        for path, descriptor in folders.items()
        if not os.access(path, os.R_OK) and os.access(f"/proc/self/fd/{descriptor}/.", os.R_OK)
    }

    def reachable(path: str) -> str:
        for unreachable, descriptor in kept.items():
            if path == unreachable or path.startswith(unreachable + "/"):
                return f"/proc/self/fd/{descriptor}{path[len(unreachable) :]}"
        return path

    if kept:
        sys.path[:] = map(reachable, sys.path)
        for module in list(sys.modules.values()):
            search = getattr(module, "__path__", None)
            if isinstance(search, list):
                search[:] = map(reachable, search)
        sys.path_importer_cache.clear()
        for name in ("HOME", "TMPDIR"):
            os.environ[name] = reachable(os.environ[name])
    return set(kept.values())


def apply_landlock(ruleset: bytes, rules: list[tuple[str, int]], folders: dict[str, int]) -> None:
    """Landlock: nothing but what the rules give back. `folders` are descriptors that were opened as the first user."""
    number = libc.syscall(ctypes.c_long(CREATE_RULESET), ruleset, ctypes.c_size_t(len(ruleset)), ctypes.c_uint32(0))
    check_libc_result(number, "making Landlock's rules")
    for path, rights in rules:
        descriptor = folders[path] if path in folders else os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = rights.to_bytes(8, "little") + descriptor.to_bytes(4, "little")
        added = libc.syscall(ctypes.c_long(ADD_RULE), number, PATH_BENEATH, rule, ctypes.c_uint32(0))
        check_libc_result(added, f"adding Landlock's rule for {path}")
    check_libc_result(
        libc.syscall(ctypes.c_long(RESTRICT_SELF), number, ctypes.c_uint32(0)), "keeping to Landlock's rules"
    )


def close_other_fds(keep_fds: set[int]) -> None:
    """Closes every descriptor but those."""
    below = 0
    for descriptor in [*sorted(keep_fds), resource.getrlimit(resource.RLIMIT_NOFILE)[0] + 4096]:
        if descriptor > below:  # an empty range from 0 is taken for all
            os.closerange(below, descriptor)
        below = descriptor + 1


def load_seccomp_filter(code: bytes) -> None:
    """seccomp: from here on the kernel asks the filter before every system call, and there is no way back."""

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))

    program = Program(len(code) // 8, code)
    check_libc_result(libc.prctl(SET_SECCOMP, SECCOMP_FILTER_MODE, ctypes.byref(program), 0, 0), "loading the filter")


def check_libc_result(result: int, what: str) -> None:
    """Raises OSError where a call of libc has failed."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what} failed: {os.strerror(number)}")


def run_program(source: str) -> None:
    """Runs the program as `python program.py` would: as __main__, with its own exit status and traceback."""
    main_module = sys.modules["__main__"]
    names = vars(main_module)
    for name in [name for name in names if not name.startswith("__")]:
        del names[name]
    names["__file__"] = "program.py"
    sys.argv[:] = ["program.py"]
    for name in ("exit", "quit"):  # the start-up files that are left out would have made them
        setattr(builtins, name, Quitter(name, "Ctrl-D"))
    reserve = [bytes(RESERVE_BYTES)]
    try:
        exec(compile(source, "program.py", "exec", dont_inherit=True), names)  # noqa: S102 - what all this is for
    except SystemExit as stop:
        reserve.clear()
        if stop.code is None or (type(stop.code) in {int, bool} and stop.code == 0):
            return
        if not isinstance(stop.code, int):
            print(stop.code, file=sys.stderr)  # noqa: T201
    except BaseException as error:  # noqa: BLE001 - the program's own, to be shown to whoever reads stderr
        reserve.clear()
        try:
            print_traceback(error, source)
        finally:
            if isinstance(error, MemoryError):
                exit_process(EXIT_OUT_OF_MEMORY)
    else:
        return
    sys.exit(1)


def print_traceback(error: BaseException, source: str) -> None:
    """The traceback as Python prints it, without our own two frames and with the program's lines."""
    import linecache
    import traceback

    linecache.cache["program.py"] = (len(source), None, source.splitlines(keepends=True), "program.py")
    frames = error.__traceback__.tb_next if error.__traceback__ else None
    text = "".join(traceback.format_exception(type(error), error, frames))
    if len(text) > TRACEBACK_CHARACTERS:
        half = TRACEBACK_CHARACTERS // 2
        text = f"{text[:half]}\n...\n{text[-half:]}"
    sys.stderr.write(text)


def exit_process(status: int) -> None:
    """Ends at once, after what was printed is out: there may be no memory for an orderly end."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)
