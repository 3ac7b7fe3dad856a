"""Sandboxed child process: drops all privileges step by step, then runs the program in the same process.

The parent compiles this file and sends it with the spec (launch.py), so the child reads nothing from the checkout. It
imports the standard library only. Until the program's first line only this code runs; after that, nothing in the
process is trusted. The keys of `spec` are those of ChildSpec in spec.py.
"""

from __future__ import annotations

import _ctypes  # the ctypes package is several times slower to import
import _thread
import builtins
import os
import sys
from _frozen_importlib_external import PathFinder
from _sitebuiltins import Quitter

TYPE_CHECKING = False  # importing typing takes longer than the rest of this file
if TYPE_CHECKING:
    from typing import Any

EXIT_OUT_OF_MEMORY, EXIT_DISK_FULL = 97, 98  # after such an error; a program's own exit statuses become 0 or 1
DISK_FULL_ERRORS = (27, 28, 122)  # EFBIG, ENOSPC, EDQUOT
TRACEBACK_CHARACTERS = 20_000  # a program's lines may be very long
RESERVE_BYTES = 1 << 20  # freed when memory is exhausted, so that the error can be printed

SET_PARENT_DEATH_SIGNAL, SET_DUMPABLE, SET_SECCOMP, SET_NO_NEW_PRIVILEGES = 1, 4, 22, 38
SECCOMP_FILTER_MODE, SIGNAL_KILL = 2, 9
ADD_RULE, RESTRICT_SELF, CREATE_RULESET, PATH_BENEATH = 445, 446, 444, 1
READ_ONLY, MOUNT_FLAGS = 1, 2 | 4 | 8  # nosuid, nodev, noexec
PROCESS_MOUNT_OPTIONS = b"subset=pid,hidepid=2"  # nothing but the folder of the process itself
CAPABILITY_VERSION = 0x20080522
MALLOC_ARENA_MAX = -8  # parameter of mallopt
THREAD_ATTRIBUTES_WORDS = 8  # of 8 bytes: at least the size of pthread_attr_t
SHELL_VARIABLES = ("PWD", "OLDPWD", "SHLVL", "_")  # which process 1 of the namespaces sets
MAX_DESCRIPTOR = 4096  # the highest that may be open

LIBC = _ctypes.dlopen(None, 0)  # type: ignore[arg-type] # what the process has loaded already
end_process = os._exit


class Char(_ctypes._SimpleCData):  # type: ignore[type-arg]
    """C's char."""

    _type_ = "c"


class Int(_ctypes._SimpleCData):  # type: ignore[type-arg]
    """C's int."""

    _type_ = "i"


class Long(_ctypes._SimpleCData):  # type: ignore[type-arg]
    """C's long."""

    _type_ = "l"


class LibcFunction(_ctypes.CFuncPtr):
    """A function that returns an int and sets errno."""

    _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO
    _restype_ = Int


def main(spec: dict[str, Any], ready_fd: int) -> None:
    """Confine this process as `spec` says, send "+" to `ready_fd`, and run the program.

    If a step fails, the process ends before the program starts, and "+" is not sent.
    """
    try:
        confine(spec, ready_fd)
        os.write(ready_fd, b"+")
        os.close(ready_fd)
    except BaseException as error:  # noqa: BLE001 - after any error the program must not start
        os.write(2, f"{type(error).__name__}: {error}".encode(errors="replace"))
        os._exit(1)
    source = spec["code"]
    spec.clear()  # the program can reach this frame
    run_program(source)


def mount_folders(scratch: str, options: str) -> None:
    """Mount the scratch folder, and /proc, which has the names of stdin and stdout, where the kernel permits it."""
    mounted = call("mount", b"tmpfs", scratch.encode(), b"tmpfs", MOUNT_FLAGS, options.encode())
    check_result(mounted, "mounting the scratch folder")
    call("mount", b"proc", b"/proc", b"proc", MOUNT_FLAGS | READ_ONLY, PROCESS_MOUNT_OPTIONS)


def confine(spec: dict[str, Any], ready_fd: int) -> None:
    """Apply all restrictions, in an order in which each step is still permitted."""
    if spec["mount"]:
        mount_folders(spec["scratch"], spec["mount"])
        for name in SHELL_VARIABLES:
            os.environ.pop(name, None)
    os.chdir(spec["scratch"])
    folders = {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for path in (*spec["readable"], spec["scratch"])}
    for number, limits in spec["limits"].items():
        values = b"".join((limit % 2**64).to_bytes(8, "little") for limit in limits)
        check_result(call("prlimit", 0, number, values, None), "setting the limits")
    limit_thread_stacks(spec["thread_stack"], spec["longest_stack"])
    package_folders = list(spec["package_folders"])
    drop_privileges(spec["user"])
    # The owner of the sandbox may look at the open files of a process that is dumpable; bubblewrap needs no such look.
    call("prctl", SET_DUMPABLE, 0 if spec["mount"] else 1, 0, 0, 0)
    set_parent_death_signal(spec["parent"])
    needed_fds = open_unreachable_folders(folders, package_folders)
    sys.meta_path.append(PackageFinder(package_folders, spec["package_names"]))
    check_result(call("prctl", SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0), "giving up new privileges")
    if spec["ruleset"]:
        apply_landlock(spec["ruleset"], spec["rules"], folders)
    close_other_fds({0, 1, 2, ready_fd, *needed_fds})
    if spec["filter"]:
        load_seccomp_filter(spec["filter"].replace(spec["own_pid"], os.getpid().to_bytes(4, "little")))


def drop_privileges(user: int | None) -> None:
    """Change to `user` (unless None) without groups, then drop all capabilities."""
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    header, none = CAPABILITY_VERSION.to_bytes(4, "little") + bytes(4), bytes(24)
    number = {"x86_64": 126, "aarch64": 91}[os.uname().machine]
    check_result(call("syscall", number, header, none), "giving up capabilities")


def set_parent_death_signal(parent_pid: int | None) -> None:
    """Make the kernel kill this process when its parent ends; end now if the parent has ended already.

    Changing the user resets this setting, so it is set afterwards. Under bubblewrap (None) it is not needed.
    """
    if parent_pid is not None:
        check_result(call("prctl", SET_PARENT_DEATH_SIGNAL, SIGNAL_KILL, 0, 0, 0), "asking to end with the parent")
        if os.getppid() != parent_pid:
            os._exit(1)


def limit_thread_stacks(default: int, longest: int) -> None:
    """Set the size of the stacks of new threads, in bytes, and the largest size that `threading.stack_size` sets.

    A stack counts against the address space as a whole; programs ask for far larger ones than they use.
    """
    attributes = (Long * THREAD_ATTRIBUTES_WORDS)()
    call("pthread_attr_init", attributes)
    call("pthread_attr_setstacksize", attributes, default)
    call("pthread_setattr_default_np", attributes)
    call("mallopt", MALLOC_ARENA_MAX, 1)  # each further arena takes 64 MB of the address space
    set_size = _thread.stack_size

    def stack_size(size: int = 0) -> int:
        return set_size(min(size, longest))

    _thread.stack_size = stack_size


class PackageFinder:
    """Finder of the packages that a program may import; their folders are not on `sys.path`."""

    def __init__(self, folders: list[str], names: tuple[str, ...]) -> None:
        self.folders, self.names = folders, frozenset(names)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Return the spec of a package, None for any other module."""
        return PathFinder.find_spec(name, self.folders, target) if path is None and name in self.names else None

    def find_distributions(self, context: Any) -> Any:
        """Return the metadata of installed packages, for `importlib.metadata`."""
        from importlib.metadata import DistributionFinder, MetadataPathFinder

        wanted = DistributionFinder.Context(name=context.name, path=self.folders)
        return MetadataPathFinder.find_distributions(wanted)


def open_unreachable_folders(folders: dict[str, int], package_folders: list[str]) -> set[int]:
    """Return descriptors of folders that the new user cannot reach by path, because a parent has mode 0700.

    Python then finds its modules, and the program its folder, below /proc/self/fd/<number>: following such a link needs
    no permissions on the path. `package_folders` are changed too.
    """
    unreachable_fds = {
        path: descriptor
        for path, descriptor in folders.items()
        if not os.access(path, os.R_OK) and os.access(f"/proc/self/fd/{descriptor}/.", os.R_OK)
    }

    def reachable(path: str) -> str:
        for folder, descriptor in unreachable_fds.items():
            if path == folder or path.startswith(folder + "/"):
                return f"/proc/self/fd/{descriptor}{path[len(folder) :]}"
        return path

    if unreachable_fds:
        sys.path[:] = map(reachable, sys.path)
        package_folders[:] = map(reachable, package_folders)
        for module in list(sys.modules.values()):
            search = getattr(module, "__path__", None)
            if isinstance(search, list):
                search[:] = map(reachable, search)
        sys.path_importer_cache.clear()
        for name in ("HOME", "TMPDIR"):
            os.environ[name] = reachable(os.environ[name])
    return set(unreachable_fds.values())


def apply_landlock(ruleset: bytes, rules: list[tuple[str, int]], folders: dict[str, int]) -> None:
    """Deny file access except by `rules`, with Landlock. `folders` were opened before the user changed."""
    number = call("syscall", CREATE_RULESET, ruleset, len(ruleset), 0)
    check_result(number, "making Landlock's rules")
    for path, rights in rules:
        descriptor = folders[path] if path in folders else os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = rights.to_bytes(8, "little") + descriptor.to_bytes(4, "little")
        added = call("syscall", ADD_RULE, number, PATH_BENEATH, rule, 0)
        check_result(added, f"adding Landlock's rule for {path}")
    check_result(call("syscall", RESTRICT_SELF, number, 0), "keeping to Landlock's rules")


def close_other_fds(keep_fds: set[int]) -> None:
    """Close every descriptor except `keep_fds`."""
    start = 0
    for descriptor in [*sorted(keep_fds), MAX_DESCRIPTOR]:
        if descriptor > start:  # closerange(0, 0) would close all
            os.closerange(start, descriptor)
        start = descriptor + 1


def load_seccomp_filter(code: bytes) -> None:
    """Load the seccomp filter, which the kernel applies to every later system call and which cannot be removed."""
    instructions = (Char * len(code)).from_buffer_copy(code)
    program = (Long * 2)(len(code) // 8, _ctypes.addressof(instructions))  # struct sock_fprog
    check_result(call("prctl", SET_SECCOMP, SECCOMP_FILTER_MODE, program, 0, 0), "loading the filter")


def call(name: str, *arguments: Any) -> int:
    """Call a function of libc and return its result; -1 if this libc has no such function."""
    try:
        function = LibcFunction(_ctypes.dlsym(LIBC, name))
    except OSError:
        return -1
    return function(*(Long(argument) if type(argument) is int else argument for argument in arguments))


def check_result(result: int, what: str) -> None:
    """Raise OSError if the last call of a libc function failed."""
    if result < 0:
        number = _ctypes.get_errno()
        raise OSError(number, f"{what} failed: {os.strerror(number)}")


def run_program(source: str) -> None:
    """Run the program as `python program.py` would: as __main__, with its exit status and traceback."""
    main_module = sys.modules["__main__"]
    names = vars(main_module)
    for name in [name for name in names if not name.startswith("__")]:
        del names[name]
    names["__file__"] = "program.py"
    sys.argv[:] = ["program.py"]
    for name in ("exit", "quit"):  # -S skips the start-up files that define them
        setattr(builtins, name, Quitter(name, "Ctrl-D"))
    vars(os)["_exit"] = exit_with_zero_or_one
    reserve = [bytes(RESERVE_BYTES)]
    try:
        exec(compile(source, "program.py", "exec", dont_inherit=True), names)  # noqa: S102 - the purpose of the sandbox
    except SystemExit as stop:
        reserve.clear()
        if stop.code is None or (type(stop.code) in {int, bool} and stop.code == 0):
            return
        if not isinstance(stop.code, int):
            print(stop.code, file=sys.stderr)  # noqa: T201
    except BaseException as error:  # noqa: BLE001 - the program's own, printed to stderr
        reserve.clear()
        try:
            print_traceback(error, source)
        finally:
            if isinstance(error, MemoryError):
                exit_process(EXIT_OUT_OF_MEMORY)
            if isinstance(error, OSError) and error.errno in DISK_FULL_ERRORS:
                exit_process(EXIT_DISK_FULL)
    else:
        return
    sys.exit(1)


def print_traceback(error: BaseException, source: str) -> None:
    """Print the traceback as Python does, without this file's frame and with the program's lines."""
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
    """Flush the output and end at once: there may be no memory for a normal exit."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        end_process(status)


def exit_with_zero_or_one(status: int) -> None:
    """End at once as `os._exit` does; other exit statuses than 0 become 1, as those above 128 would mean a signal."""
    end_process(1 if status & 0xFF else 0)
