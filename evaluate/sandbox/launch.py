"""Launch of one program in a fresh sandboxed process, which is watched until it ends or exceeds a limit.

Watchers of a running program, for what no resource limit of the kernel covers.

- ProgramClock measures the time that counts against `Limits.wall_seconds`: wall time without the time for which the
  program was ready to run and waited for a processor, as the scheduler counts it.
- FileWatcher counts the files of a program under Landlock, deleted ones that it still uses included.
- ThreadWatcher counts its threads, where RLIMIT_NPROC would count those of other processes too.

Under Landlock the process that is started becomes the program. Under bubblewrap there are three: bubblewrap, its child,
which is process 1 of the namespaces, and the program. Only process 1 is killed: the kernel then removes all that is in
the namespaces, and bubblewrap, which has waited for process 1, ends last. So nothing is left once bubblewrap has ended,
whatever the first process of this machine or container does with orphans.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import marshal
import os
import select
import signal
import socket
import stat
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from common.format import format_bytes
from evaluate.sandbox import isolation, spec
from evaluate.sandbox.child import EXIT_DISK_FULL, EXIT_OUT_OF_MEMORY
from evaluate.sandbox.spec import ExecutionResult, ExecutionStatus, Limits, Program

BUSY_FACTOR = 10  # times `Limits.wall_seconds` that a program may take on a machine whose processors are busy
CHECKS_PER_MAP_READING = 5  # reading a process's memory map takes longer than the other checks
START_SECONDS = 60  # for the sandbox itself to start, on a busy machine
TICK_SECONDS = 0.05  # between checks of the clock, the watchers and `stop`
FILE_TICK_SECONDS = 0.01  # the same, while the size of files is limited by a watcher
KILL_SECONDS = 5  # for bubblewrap to start process 1, before it is killed itself, and to end after it
READ_CHUNK_BYTES = 1 << 16
CREDENTIALS = struct.Struct("3i")  # pid, user id and group id of a sender


@dataclass(frozen=True)
class LimitExceeded:
    """Why a program is ended: its status, and a description of the limit."""

    status: ExecutionStatus
    limit: str


Watcher = Callable[[Limits], LimitExceeded | None]


class ProgramClock:
    """Clock of a process from `started`, a time of `time.monotonic`. Without schedstat in /proc it shows wall time."""

    def __init__(self, pid: int, started: float) -> None:
        self._threads_folder = f"/proc/{pid}/task"
        self._started = started
        self._waited: dict[str, int] = {}  # nanoseconds, by thread, of ended threads too
        self.seconds = 0.0

    def check(self, now: float, limits: Limits) -> LimitExceeded | None:
        """Advance to `now`; return the time limit if it is exceeded."""
        self._read_waiting_times()
        elapsed = now - self._started
        # The scheduler adds a waiting time when it ends, which may be several checks later.
        self.seconds = max(0.0, elapsed - sum(self._waited.values()) / 1e9)
        if self.seconds >= limits.wall_seconds:
            return LimitExceeded("timeout", f"{limits.wall_seconds:g} s of time")
        if elapsed >= (longest := BUSY_FACTOR * limits.wall_seconds):
            return LimitExceeded("timeout", f"{longest:g} s of time on a busy machine")
        return None

    def _read_waiting_times(self) -> None:
        with contextlib.suppress(OSError):  # the process has just ended, or there is no such file
            for thread in os.listdir(self._threads_folder):  # noqa: PTH208 - called often, and faster than pathlib
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    schedstat = Path(f"{self._threads_folder}/{thread}/schedstat").read_bytes()
                    self._waited[thread] = int(schedstat.split()[1])


class FileWatcher:
    """Watcher of the files of a process that runs in `folder`; `user` is its user id unless it is our own."""

    def __init__(self, folder: str, pid: int, user: int | None) -> None:
        self._folder, self._process, self._user = folder, f"/proc/{pid}", user
        self._checks = 0

    def __call__(self, limits: Limits) -> LimitExceeded | None:
        """Return the limit that the files of the folder exceed together with the deleted files in use."""
        self._checks += 1
        try:
            sizes = list(self._sizes(limits.files))
            sizes += self._deleted_sizes(limits.file_bytes)
        except OSError as error:
            return LimitExceeded("output", f"a folder that cannot be read ({error.strerror})")
        if len(sizes) > limits.files:
            return LimitExceeded("output", f"{limits.files} files")
        if sum(sizes) > limits.file_bytes:
            return LimitExceeded("output", f"{format_bytes(limits.file_bytes, 1024)} of files")
        return None

    def _sizes(self, most: int) -> Iterator[int]:
        """Yield the size of every file of the folder, 0 for a folder; end after `most` and one more."""
        count, folders = 0, [self._folder]
        while folders:
            with contextlib.suppress(FileNotFoundError), os.scandir(folders.pop()) as entries:
                for entry in entries:
                    count += 1
                    if count > most + 1:
                        return
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                        yield 0
                    else:
                        with contextlib.suppress(FileNotFoundError):  # it has just been deleted
                            yield entry.stat(follow_symlinks=False).st_size

    def _deleted_sizes(self, largest: int) -> list[int]:
        """Return the sizes of deleted files that are open, and `largest` for one that is only mapped into memory."""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the process has just ended
            try:
                return self._look_at_deleted(largest)
            except PermissionError:
                if self._user is None:
                    return []
            with file_access_as(self._user), contextlib.suppress(PermissionError):  # root without CAP_SYS_PTRACE
                return self._look_at_deleted(largest)
        return []

    def _look_at_deleted(self, largest: int) -> list[int]:
        sizes: dict[int, int] = {}
        for number in os.listdir(f"{self._process}/fd"):  # noqa: PTH208
            path = f"{self._process}/fd/{number}"
            with contextlib.suppress(FileNotFoundError):
                if self._is_deleted(os.readlink(path)):  # noqa: PTH115
                    facts = os.stat(path)  # noqa: PTH116
                    if facts.st_nlink == 0:
                        sizes[facts.st_ino] = facts.st_size if stat.S_ISREG(facts.st_mode) else 0
        if self._checks % CHECKS_PER_MAP_READING == 0:
            for line in Path(f"{self._process}/maps").read_text(encoding="utf-8", errors="replace").splitlines():
                words = line.split(maxsplit=5)  # address, permissions, offset, device, inode, path
                if len(words) == 6 and self._is_deleted(words[5]):
                    sizes.setdefault(int(words[4]), largest)
        return list(sizes.values())

    def _is_deleted(self, path: str) -> bool:
        return path.startswith(f"{self._folder}/") and path.endswith(" (deleted)")


class ThreadWatcher:
    """Watcher of the number of a process's threads."""

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")

    def __call__(self, limits: Limits) -> LimitExceeded | None:
        try:
            lines = self._status.read_text(encoding="ascii", errors="replace").splitlines()
        except OSError:
            return None  # it has just ended
        threads = next((int(line.split()[1]) for line in lines if line.startswith("Threads:")), 0)
        return LimitExceeded("killed", f"{limits.processes} threads") if threads > limits.processes else None


@contextlib.contextmanager
def file_access_as(user: int) -> Iterator[None]:
    """Access files as that user and group in this thread, until the end of the block; root's other rights stay."""
    libc = ctypes.CDLL(None)
    group, own = libc.setfsgid(user), libc.setfsuid(user)
    try:
        yield
    finally:
        libc.setfsuid(own)
        libc.setfsgid(group)


def run_in_layer(layer: str, program: Program, stop: threading.Event) -> ExecutionResult:
    """Run the program in that layer until it ends or `stop` is set; if it cannot start, its status is `refused`."""
    started = time.monotonic()
    try:
        with contextlib.ExitStack() as cleanup:
            return _ChildProcess(layer, program, stop, cleanup).wait_for_result()
    except OSError as error:
        return ExecutionResult(
            "refused", "", f"The program was not started: {error}.", layer, time.monotonic() - started
        )


class _ChildProcess:
    """One run of a program: its process, and its output."""

    def __init__(self, layer: str, program: Program, stop: threading.Event, cleanup: contextlib.ExitStack) -> None:
        self._layer, self._limits, self._stop = layer, program.limits, stop
        scratch = None if layer == "bubblewrap" else cleanup.enter_context(spec.scratch_dir())
        child_spec = spec.build_child_spec(layer, program, scratch)
        if scratch and child_spec.user is not None:
            spec.chown_to_user(scratch, child_spec.user)
        spec_fd = _memory_file(spec.compiled_child() + marshal.dumps(vars(child_spec)), cleanup)
        stdin = _memory_file(program.stdin.encode("utf-8", "surrogatepass"), cleanup)
        # A socket, because the kernel adds the pid of the program, as we see it, to what it sends.
        self._ready, ready = socket.socketpair()
        self._ready.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._ready.setblocking(False)
        cleanup.callback(self._ready.close)
        self._output: dict[int, bytearray] = {}
        with ready, contextlib.ExitStack() as child_ends:
            streams = [self._output_pipe(cleanup, child_ends) for _ in ("stdout", "stderr")]
            self._process = subprocess.Popen(
                spec.child_command(layer, spec_fd, ready.fileno()),
                stdin=stdin,
                stdout=streams[0],
                stderr=streams[1],
                pass_fds=(spec_fd, ready.fileno()),
                env=isolation.child_environment(child_spec.scratch),
                cwd="/",
                start_new_session=True,
            )
        self._end: int | None = None  # descriptor of the process
        self._started_at: float | None = None  # when the program's first line ran
        self._ended_at: float | None = None
        self._cpu_seconds = 0.0
        self._clock: ProgramClock | None = None
        self._launched_at = time.monotonic()
        cleanup.callback(self._kill_and_reap)
        self._end = os.pidfd_open(self._process.pid)
        self._watchers: list[Watcher] = []
        self._file_watcher: FileWatcher | None = None
        if scratch:
            # bubblewrap limits files by its tmpfs.
            self._file_watcher = FileWatcher(scratch, self._process.pid, child_spec.user)
            self._watchers.append(self._file_watcher)
        if layer != "bubblewrap" and child_spec.user is None:
            self._watchers.append(ThreadWatcher(self._process.pid))
        self._tick = FILE_TICK_SECONDS if scratch else TICK_SECONDS

    def _output_pipe(self, cleanup: contextlib.ExitStack, child_ends: contextlib.ExitStack) -> int:
        """Create a pipe for an output of the program; return the end for the child."""
        ours, theirs = os.pipe()
        cleanup.callback(os.close, ours)
        child_ends.callback(os.close, theirs)
        os.fchmod(theirs, 0o622)  # so that the program's user can open it by a name, such as /dev/stdout
        self._output[ours] = bytearray()
        return theirs

    def wait_for_result(self) -> ExecutionResult:
        """Wait for the program's end and return its result."""
        excess = self._wait_until_end()
        self._kill_and_reap()
        if excess is None and self._file_watcher is not None:
            excess = self._file_watcher(self._limits)
        if excess is None or excess.status != "output":
            for descriptor in self._output:
                fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_NONBLOCK)
                while self._read(descriptor):
                    pass
            excess = excess or self._check_output_limit()
        assert self._ended_at is not None  # noqa: S101 - `_kill_and_reap` has set it
        stdout, stderr = (bytes(text).decode("utf-8", "replace") for text in self._truncated_output())
        if self._started_at is None:
            self._read_ready_signal()
        if self._started_at is None:
            reason = stderr.strip().splitlines()[-1:] or [excess.limit if excess else "its sandbox ended at once"]
            text = f"The program was not started: {reason[0]}."
            return ExecutionResult("refused", "", text, self._layer, 0.0, excess.limit if excess else "")
        status, limit = (excess.status, excess.limit) if excess else self._status_of_exit()
        return ExecutionResult(status, stdout, stderr, self._layer, max(0.0, self._ended_at - self._started_at), limit)

    def _wait_until_end(self) -> LimitExceeded | None:
        """Wait until the process has ended (None), or return why it must be ended."""
        assert self._end is not None  # noqa: S101 - `__init__` has set it
        poll = select.poll()
        for descriptor in (*self._output, self._ready.fileno(), self._end):
            poll.register(descriptor, select.POLLIN)
        next_check = time.monotonic() + self._tick
        while True:
            now = time.monotonic()
            if now >= next_check:
                if excess := self._check_limits(now):
                    return excess
                next_check = now + min(self._tick, self._remaining_seconds())
            for descriptor, _ in poll.poll(1000 * max(0.0, next_check - now) + 1):
                if descriptor == self._end:
                    return None
                if descriptor == self._ready.fileno():
                    poll.unregister(descriptor)
                    self._read_ready_signal()
                    next_check = min(next_check, time.monotonic() + self._remaining_seconds())
                elif not self._read(descriptor):
                    poll.unregister(descriptor)
            if excess := self._check_output_limit():
                return excess

    def _check_limits(self, now: float) -> LimitExceeded | None:
        # bubblewrap is killed by way of process 1, which may not exist yet.
        starting = self._layer == "bubblewrap" and self._clock is None and now < self._launched_at + KILL_SECONDS
        if self._stop.is_set() and not starting:
            return LimitExceeded("killed", "stopped from outside")
        if self._clock is None:
            late = now >= self._launched_at + START_SECONDS
            return LimitExceeded("refused", f"its sandbox did not start within {START_SECONDS} s") if late else None
        if excess := self._clock.check(now, self._limits):
            return excess
        return next((excess for watch in self._watchers if (excess := watch(self._limits))), None)

    def _remaining_seconds(self) -> float:
        """Return the least time until the program can exceed its time limit."""
        return self._limits.wall_seconds - (self._clock.seconds if self._clock else 0.0)

    def _read_ready_signal(self) -> None:
        """Note whether the program has started: the child sends one byte once all restrictions are in force."""
        with contextlib.suppress(BlockingIOError):
            text, ancillary, _, _ = self._ready.recvmsg(1, socket.CMSG_SPACE(CREDENTIALS.size))
            if text == b"+":
                self._started_at = time.monotonic()
                self._clock = ProgramClock(CREDENTIALS.unpack(ancillary[0][2])[0], self._started_at)

    def _read(self, descriptor: int) -> bool:
        """Read available output; False at its end, if there is none now, or beyond the limit."""
        try:
            chunk = os.read(descriptor, READ_CHUNK_BYTES)
        except BlockingIOError:
            return False
        self._output[descriptor] += chunk
        return bool(chunk) and self._check_output_limit() is None

    def _check_output_limit(self) -> LimitExceeded | None:
        if sum(map(len, self._output.values())) <= self._limits.output_bytes:
            return None
        return LimitExceeded("output", f"{format_bytes(self._limits.output_bytes, 1024)} of output")

    def _truncated_output(self) -> Iterator[bytearray]:
        remaining = self._limits.output_bytes
        for text in self._output.values():
            yield text[:remaining]
            remaining -= min(remaining, len(text))

    def _kill_and_reap(self) -> None:
        """Kill the process and all that it started; collect the exit status and the processor time."""
        if self._ended_at is not None:
            return
        ended = self._end is not None and select.select([self._end], [], [], 0)[0]
        if self._layer == "bubblewrap" and not ended:
            self._kill_init()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        _, status, usage = os.wait4(self._process.pid, 0)
        self._ended_at = time.monotonic()
        self._process.returncode = os.waitstatus_to_exitcode(status)
        self._cpu_seconds = usage.ru_utime + usage.ru_stime
        if self._end is not None:
            os.close(self._end)

    def _kill_init(self) -> None:
        """Kill process 1 of the namespaces, the child of bubblewrap, and wait for the end of bubblewrap."""
        children = child_processes(self._process.pid)
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        if children and self._end is not None:
            select.select([self._end], [], [], KILL_SECONDS)

    def _status_of_exit(self) -> tuple[ExecutionStatus, str]:
        """Return status and limit for the exit status, if no watched limit was exceeded."""
        status, limits = self._process.returncode, self._limits
        if self._layer == "bubblewrap" and status > 128:
            status = 128 - status  # a shell's exit status for a signal; the program's own become 0 or 1
        if status == -signal.SIGXCPU or (status == -signal.SIGKILL and self._cpu_seconds >= limits.cpu_seconds):
            return "timeout", f"{limits.cpu_seconds:g} s of processor time"
        if status == EXIT_OUT_OF_MEMORY:
            return "memory", f"{format_bytes(limits.memory_bytes, 1024)} of memory"
        if status == EXIT_DISK_FULL:
            return "output", f"{format_bytes(limits.file_bytes, 1024)} of files"
        if status < 0:
            return "killed", f"signal {_signal_name(-status)}"
        return ("ok" if status == 0 else "error"), ""


def child_processes(pid: int) -> list[int]:
    """Return the pids of the children of a process."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
    except OSError:  # it has just ended, or the kernel has no such file
        return [child for child in map(int, filter(str.isdigit, os.listdir("/proc"))) if parent_process(child) == pid]  # noqa: PTH208


def parent_process(pid: int) -> int:
    """Return the pid of the parent of a process; 0 if it has ended."""
    with contextlib.suppress(OSError):
        return int(
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1]
        )
    return 0


def _memory_file(content: bytes, cleanup: contextlib.ExitStack) -> int:
    """Return a descriptor of an anonymous, sealed (read-only) file in memory with that content."""
    descriptor = os.memfd_create("sandbox", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    cleanup.callback(os.close, descriptor)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
