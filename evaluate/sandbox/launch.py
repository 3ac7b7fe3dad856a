"""Start, watch, kill a child.

One program in one fresh process, watched from outside until it ends or a limit is hit.

What the kernel does not count under Landlock: size and number of a program's files, an ordinary user's threads.
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

from evaluate.sandbox import isolation, spec
from evaluate.sandbox import spec as jobs
from evaluate.sandbox.child import EXIT_OUT_OF_MEMORY
from evaluate.sandbox.types import MEBIBYTE, ExecutionResult, ExecutionStatus, Limits, Program


@dataclass(frozen=True)
class LimitExceeded:
    """Why a program is ended: the status it gets, and the limit in words."""

    status: ExecutionStatus
    limit: str


Watcher = Callable[[Limits], LimitExceeded | None]


def file_watcher(folder: str) -> Watcher:
    """Looks at all that lies in a program's folder."""

    def look(limits: Limits) -> LimitExceeded | None:
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
                return LimitExceeded("output", f"a folder that cannot be looked into ({error.strerror})")
        if size > limits.file_bytes:
            return LimitExceeded("output", f"{limits.file_bytes / MEBIBYTE:g} MB of files")
        return None

    return look


def thread_watcher(pid: int) -> Watcher:
    """Looks at how many threads that process has."""
    status = Path(f"/proc/{pid}/status")

    def look(limits: Limits) -> LimitExceeded | None:
        try:
            lines = status.read_text(encoding="ascii", errors="replace").splitlines()
        except OSError:
            return None  # it has just ended
        threads = next((int(line.split()[1]) for line in lines if line.startswith("Threads:")), 0)
        return LimitExceeded("killed", f"{limits.processes} threads") if threads > limits.processes else None

    return look


START_SECONDS = 60  # for the sandbox itself to start, on a machine that is busy with other things
TICK_SECONDS = 0.05  # how often the watchers look, and how fast `stop` is obeyed
READ_CHUNK_BYTES = 1 << 16


def run_in_layer(layer: str, program: Program, stop: threading.Event) -> ExecutionResult:
    """Runs the program in that layer, until `stop` is set at most. What cannot be started is refused, not raised."""
    begun = time.monotonic()
    try:
        with contextlib.ExitStack() as cleanup:
            return _ChildProcess(layer, program, stop, cleanup).wait_for_result()
    except OSError as error:
        return ExecutionResult("refused", "", f"The program was not started: {error}.", layer, time.monotonic() - begun)


class _ChildProcess:
    """One run: the process, what it printed, and why it was ended where it was."""

    def __init__(self, layer: str, program: Program, stop: threading.Event, cleanup: contextlib.ExitStack) -> None:
        self._layer, self._limits, self._stop = layer, program.limits, stop
        own = None if layer == "bubblewrap" else cleanup.enter_context(spec.scratch_dir())
        job = jobs.build_child_spec(layer, program, own)
        if own and job.user is not None:
            spec.chown_to_user(own, job.user)
        work = _memory_file(jobs.compiled_child() + marshal.dumps(vars(job)), cleanup)
        stdin = _memory_file(program.stdin.encode("utf-8", "surrogatepass"), cleanup)
        self._ready, ready = os.pipe()
        cleanup.callback(os.close, self._ready)
        try:
            self._process = subprocess.Popen(
                jobs.child_command(layer, work, ready),
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                pass_fds=(work, ready),
                env=isolation.child_environment(job.scratch),
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
        if own:
            # bubblewrap's tmpfs and RLIMIT_NPROC see to both.
            self._watchers = [file_watcher(own), thread_watcher(self._process.pid)]
        self._started_at: float | None = None  # when the program's first line ran
        self._ended_at: float | None = None
        self._usage_seconds = 0.0

    def wait_for_result(self) -> ExecutionResult:
        """Waits for the end; how it was."""
        excess = self._wait_until_end()
        self._kill_and_reap()
        if excess is None or excess.status != "output":
            for descriptor in self._output:
                fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_NONBLOCK)
                while self._read(descriptor):
                    pass
            excess = excess or self._check_output_limit()
        assert self._ended_at is not None  # noqa: S101 - `_end` has set it
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
        """Until the process has ended (None), or must be ended (why)."""
        deadline = time.monotonic() + START_SECONDS
        poll = select.poll()
        ended = os.pidfd_open(self._process.pid)
        try:
            for descriptor in (*self._output, self._ready, ended):
                poll.register(descriptor, select.POLLIN)
            next_look = time.monotonic() + TICK_SECONDS
            while True:
                now = time.monotonic()
                if now >= next_look:
                    if excess := self._check_limits(now, deadline):
                        return excess
                    next_look = now + TICK_SECONDS
                for descriptor, _ in poll.poll(1000 * max(0.0, min(next_look, deadline) - now) + 1):
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
        """Whether the child has said that the program starts; it says so once, and only after all fences are up."""
        if self._started_at is None and select.select([self._ready], [], [], 0)[0] and os.read(self._ready, 1) == b"+":
            self._started_at = time.monotonic()
        return self._started_at is not None

    def _read(self, descriptor: int) -> bool:
        """Takes what is there; False at the end, or where nothing is there now."""
        try:
            chunk = os.read(descriptor, READ_CHUNK_BYTES)
        except BlockingIOError:
            return False
        self._output[descriptor] += chunk
        return bool(chunk) and self._check_output_limit() is None

    def _check_output_limit(self) -> LimitExceeded | None:
        if sum(map(len, self._output.values())) <= self._limits.output_bytes:
            return None
        return LimitExceeded("output", f"{_format_size(self._limits.output_bytes)} of output")

    def _truncated_output(self) -> Iterator[bytearray]:
        left = self._limits.output_bytes
        for text in self._output.values():
            yield text[:left]
            left -= min(left, len(text))

    def _kill_and_reap(self) -> None:
        """Kills whatever still runs, then takes the exit status and the time used."""
        if self._ended_at is not None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        _, status, usage = os.wait4(self._process.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        self._ended_at = time.monotonic()
        self._usage_seconds = usage.ru_utime + usage.ru_stime

    def _status_of_exit(self, status: int) -> tuple[ExecutionStatus, str]:
        """What an exit status means, where no limit was hit that we watch ourselves."""
        if self._layer == "bubblewrap" and status > 128:
            status = 128 - status  # bubblewrap says it as a shell does
        if status == -signal.SIGXCPU or (status == -signal.SIGKILL and self._cpu_time_exceeded()):
            return "timeout", f"{self._limits.cpu_seconds:g} s of processor time"
        if status == EXIT_OUT_OF_MEMORY:
            return "memory", f"{_format_size(self._limits.memory_bytes)} of memory"
        if status < 0:
            return "killed", f"signal {_signal_name(-status)}"
        return ("ok" if status == 0 else "error"), ""

    def _cpu_time_exceeded(self) -> bool:
        """Whether its processor time may be used up; bubblewrap keeps the figure, so wall time must tell."""
        elapsed = (self._ended_at or 0.0) - (self._started_at or 0.0)
        return max(self._usage_seconds, elapsed) >= self._limits.cpu_seconds


def _memory_file(content: bytes, cleanup: contextlib.ExitStack) -> int:
    """A descriptor of an unnamed file in memory with that content, which nobody can change any more."""
    descriptor = os.memfd_create("sandbox", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    cleanup.callback(os.close, descriptor)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


def _format_size(count: int) -> str:
    return f"{count / MEBIBYTE:g} MB" if count >= MEBIBYTE else f"{count} bytes"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
