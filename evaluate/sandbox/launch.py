"""Launch of one program in a fresh sandboxed process, which is watched until it ends or exceeds a limit.

The watchers check what the kernel does not limit under Landlock: the size and number of a program's files, and the
threads of an ordinary user.
"""

from __future__ import annotations

import contextlib
import fcntl
import marshal
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from common.format import format_bytes
from evaluate.sandbox import isolation, spec
from evaluate.sandbox.child import EXIT_OUT_OF_MEMORY
from evaluate.sandbox.types import ExecutionResult, ExecutionStatus, Limits, Program


@dataclass(frozen=True)
class LimitExceeded:
    """Why a program is ended: its status, and a description of the limit."""

    status: ExecutionStatus
    limit: str


Watcher = Callable[[Limits], LimitExceeded | None]


def file_watcher(folder: str) -> Watcher:
    """Create a watcher of the files in a program's folder."""

    def check(limits: Limits) -> LimitExceeded | None:
        size = count = 0
        folders = [folder]
        while folders:
            try:
                with os.scandir(folders.pop()) as entries:
                    for entry in entries:
                        count += 1
                        if count > limits.files:
                            return LimitExceeded("output", f"{limits.files} files")
                        if entry.is_dir(follow_symlinks=False):
                            folders.append(entry.path)
                        else:
                            size += entry.stat(follow_symlinks=False).st_size
            except FileNotFoundError:
                continue  # it has just been deleted
            except OSError as error:
                return LimitExceeded("output", f"a folder that cannot be read ({error.strerror})")
        if size > limits.file_bytes:
            return LimitExceeded("output", f"{format_bytes(limits.file_bytes, 1024)} of files")
        return None

    return check


def thread_watcher(pid: int) -> Watcher:
    """Create a watcher of the number of a process's threads."""
    status = Path(f"/proc/{pid}/status")

    def check(limits: Limits) -> LimitExceeded | None:
        try:
            lines = status.read_text(encoding="ascii", errors="replace").splitlines()
        except OSError:
            return None  # it has just ended
        threads = next((int(line.split()[1]) for line in lines if line.startswith("Threads:")), 0)
        return LimitExceeded("killed", f"{limits.processes} threads") if threads > limits.processes else None

    return check


START_SECONDS = 60  # for the sandbox itself to start, on a busy machine
TICK_SECONDS = 0.05  # between checks of the watchers and of `stop`
READ_CHUNK_BYTES = 1 << 16


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
        self._ready, ready = os.pipe()
        cleanup.callback(os.close, self._ready)
        try:
            self._process = subprocess.Popen(
                spec.child_command(layer, spec_fd, ready),
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                pass_fds=(spec_fd, ready),
                env=isolation.child_environment(child_spec.scratch),
                cwd="/",
                start_new_session=True,
            )
        finally:
            os.close(ready)
        cleanup.callback(self._kill_and_reap)
        self._output: dict[int, bytearray] = {}
        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None  # noqa: S101 - both are pipes
            cleanup.callback(stream.close)
            self._output[stream.fileno()] = bytearray()
        self._watchers: list[Callable[[Limits], LimitExceeded | None]] = []
        if scratch:
            # bubblewrap limits both by its tmpfs and RLIMIT_NPROC.
            self._watchers = [file_watcher(scratch), thread_watcher(self._process.pid)]
        self._started_at: float | None = None  # when the program's first line ran
        self._ended_at: float | None = None
        self._usage_seconds = 0.0

    def wait_for_result(self) -> ExecutionResult:
        """Wait for the program's end and return its result."""
        excess = self._wait_until_end()
        self._kill_and_reap()
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
        status, limit = (excess.status, excess.limit) if excess else self._status_of_exit(self._process.returncode)
        return ExecutionResult(status, stdout, stderr, self._layer, max(0.0, self._ended_at - self._started_at), limit)

    def _wait_until_end(self) -> LimitExceeded | None:
        """Wait until the process has ended (None), or return why it must be ended."""
        deadline = time.monotonic() + START_SECONDS
        poll = select.poll()
        ended = os.pidfd_open(self._process.pid)
        try:
            for descriptor in (*self._output, self._ready, ended):
                poll.register(descriptor, select.POLLIN)
            next_check = time.monotonic() + TICK_SECONDS
            while True:
                now = time.monotonic()
                if now >= next_check:
                    if excess := self._check_limits(now, deadline):
                        return excess
                    next_check = now + TICK_SECONDS
                for descriptor, _ in poll.poll(1000 * max(0.0, min(next_check, deadline) - now) + 1):
                    if descriptor == ended:
                        return None
                    if descriptor == self._ready:
                        poll.unregister(descriptor)
                        if self._read_ready_signal():
                            deadline = time.monotonic() + self._limits.wall_seconds
                    elif not self._read(descriptor):
                        poll.unregister(descriptor)
                if excess := self._check_output_limit():
                    return excess
        finally:
            os.close(ended)

    def _check_limits(self, now: float, deadline: float) -> LimitExceeded | None:
        if self._stop.is_set():
            return LimitExceeded("killed", "stopped from outside")
        if now >= deadline:
            if self._started_at is None:
                return LimitExceeded("refused", f"its sandbox did not start within {START_SECONDS} s")
            return LimitExceeded("timeout", f"{self._limits.wall_seconds:g} s of time")
        return next((excess for watch in self._watchers if (excess := watch(self._limits))), None)

    def _read_ready_signal(self) -> bool:
        """Return whether the program has started: the child writes one byte once all restrictions are in force."""
        if self._started_at is None and select.select([self._ready], [], [], 0)[0] and os.read(self._ready, 1) == b"+":
            self._started_at = time.monotonic()
        return self._started_at is not None

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
        """Kill the process group, then collect the exit status and the processor time."""
        if self._ended_at is not None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        _, status, usage = os.wait4(self._process.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        self._ended_at = time.monotonic()
        self._usage_seconds = usage.ru_utime + usage.ru_stime

    def _status_of_exit(self, status: int) -> tuple[ExecutionStatus, str]:
        """Return status and limit for an exit status, if no watched limit was exceeded."""
        if self._layer == "bubblewrap" and status > 128:
            status = 128 - status  # bubblewrap reports a signal as a shell does
        if status == -signal.SIGXCPU or (status == -signal.SIGKILL and self._cpu_time_exceeded()):
            return "timeout", f"{self._limits.cpu_seconds:g} s of processor time"
        if status == EXIT_OUT_OF_MEMORY:
            return "memory", f"{format_bytes(self._limits.memory_bytes, 1024)} of memory"
        if status < 0:
            return "killed", f"signal {_signal_name(-status)}"
        return ("ok" if status == 0 else "error"), ""

    def _cpu_time_exceeded(self) -> bool:
        """Return whether the processor time may be used up; bubblewrap hides it, so wall time is used too."""
        elapsed = (self._ended_at or 0.0) - (self._started_at or 0.0)
        return max(self._usage_seconds, elapsed) >= self._limits.cpu_seconds


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
