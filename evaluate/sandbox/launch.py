"""One program in one fresh process, watched from outside until it ends or a limit is hit."""

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

from evaluate.sandbox import job as jobs
from evaluate.sandbox import runtime, scratch
from evaluate.sandbox.child import NO_MEMORY
from evaluate.sandbox.outcome import MEBIBYTE, Limits, Outcome, Program, Status
from evaluate.sandbox.watch import Excess, watch_files, watch_threads

START_SECONDS = 60  # for the sandbox itself to start, on a machine that is busy with other things
TICK_SECONDS = 0.05  # how often the watchers look, and how fast `stop` is obeyed
CHUNK = 1 << 16


def launch(layer: str, program: Program, stop: threading.Event) -> Outcome:
    """Runs the program in that layer, until `stop` is set at most. What cannot be started is refused, not raised."""
    begun = time.monotonic()
    try:
        with contextlib.ExitStack() as cleanup:
            return _Run(layer, program, stop, cleanup).outcome()
    except OSError as fault:
        return Outcome("refused", "", f"The program was not started: {fault}.", layer, time.monotonic() - begun)


class _Run:
    """One run: the process, what it printed, and why it was ended where it was."""

    def __init__(self, layer: str, program: Program, stop: threading.Event, cleanup: contextlib.ExitStack) -> None:
        self._layer, self._limits, self._stop = layer, program.limits, stop
        own = None if layer == "bubblewrap" else cleanup.enter_context(scratch.folder())
        job = jobs.job_for(layer, program, own)
        if own and job.user is not None:
            scratch.hand_over(own, job.user)
        work = _file(jobs.child_code() + marshal.dumps(vars(job)), cleanup)
        stdin = _file(program.stdin.encode("utf-8", "surrogatepass"), cleanup)
        self._ready, ready = os.pipe()
        cleanup.callback(os.close, self._ready)
        try:
            self._process = subprocess.Popen(
                jobs.command(layer, work, ready),
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                pass_fds=(work, ready),
                env=runtime.environment(job.scratch),
                cwd="/",
                start_new_session=True,
            )
        finally:
            os.close(ready)
        cleanup.callback(self._end)
        self._printed: dict[int, bytearray] = {}
        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None  # noqa: S101 - both are pipes
            cleanup.callback(stream.close)
            self._printed[stream.fileno()] = bytearray()
        self._watchers: list[Callable[[Limits], Excess | None]] = []
        if own:
            # bubblewrap's tmpfs and RLIMIT_NPROC see to both.
            self._watchers = [watch_files(own), watch_threads(self._process.pid)]
        self._started: float | None = None  # when the program's first line ran
        self._ended: float | None = None
        self._usage_seconds = 0.0

    def outcome(self) -> Outcome:
        """Waits for the end; how it was."""
        excess = self._wait()
        self._end()
        if excess is None or excess.status != "output":
            for descriptor in self._printed:
                fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_NONBLOCK)
                while self._read(descriptor):
                    pass
            excess = excess or self._too_much_output()
        assert self._ended is not None  # noqa: S101 - `_end` has set it
        stdout, stderr = (bytes(text).decode("utf-8", "replace") for text in self._capped())
        if self._started is None:
            self._note_start()
        if self._started is None:
            reason = stderr.strip().splitlines()[-1:] or [excess.limit if excess else "its sandbox ended at once"]
            text = f"The program was not started: {reason[0]}."
            return Outcome("refused", "", text, self._layer, 0.0, excess.limit if excess else "")
        status, limit = (excess.status, excess.limit) if excess else self._judge(self._process.returncode)
        return Outcome(status, stdout, stderr, self._layer, max(0.0, self._ended - self._started), limit)

    def _wait(self) -> Excess | None:
        """Until the process has ended (None), or must be ended (why)."""
        deadline = time.monotonic() + START_SECONDS
        poll = select.poll()
        ended = os.pidfd_open(self._process.pid)
        try:
            for descriptor in (*self._printed, self._ready, ended):
                poll.register(descriptor, select.POLLIN)
            next_look = time.monotonic() + TICK_SECONDS
            while True:
                now = time.monotonic()
                if now >= next_look:
                    if excess := self._look(now, deadline):
                        return excess
                    next_look = now + TICK_SECONDS
                for descriptor, _ in poll.poll(1000 * max(0.0, min(next_look, deadline) - now) + 1):
                    if descriptor == ended:
                        return None
                    if descriptor == self._ready:
                        poll.unregister(descriptor)
                        if self._note_start():
                            deadline = time.monotonic() + self._limits.wall_seconds
                    elif not self._read(descriptor):
                        poll.unregister(descriptor)
                if excess := self._too_much_output():
                    return excess
        finally:
            os.close(ended)

    def _look(self, now: float, deadline: float) -> Excess | None:
        if self._stop.is_set():
            return Excess("killed", "stopped from outside")
        if now >= deadline:
            if self._started is None:
                return Excess("refused", f"its sandbox did not start within {START_SECONDS} s")
            return Excess("timeout", f"{self._limits.wall_seconds:g} s of time")
        return next((excess for watch in self._watchers if (excess := watch(self._limits))), None)

    def _note_start(self) -> bool:
        """Whether the child has said that the program starts; it says so once, and only after all fences are up."""
        if self._started is None and select.select([self._ready], [], [], 0)[0] and os.read(self._ready, 1) == b"+":
            self._started = time.monotonic()
        return self._started is not None

    def _read(self, descriptor: int) -> bool:
        """Takes what is there; False at the end, or where nothing is there now."""
        try:
            chunk = os.read(descriptor, CHUNK)
        except BlockingIOError:
            return False
        self._printed[descriptor] += chunk
        return bool(chunk) and self._too_much_output() is None

    def _too_much_output(self) -> Excess | None:
        if sum(map(len, self._printed.values())) <= self._limits.output_bytes:
            return None
        return Excess("output", f"{_size(self._limits.output_bytes)} of output")

    def _capped(self) -> Iterator[bytearray]:
        left = self._limits.output_bytes
        for text in self._printed.values():
            yield text[:left]
            left -= min(left, len(text))

    def _end(self) -> None:
        """Kills whatever still runs, then takes the exit status and the time used."""
        if self._ended is not None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        _, status, usage = os.wait4(self._process.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        self._ended = time.monotonic()
        self._usage_seconds = usage.ru_utime + usage.ru_stime

    def _judge(self, status: int) -> tuple[Status, str]:
        """What an exit status means, where no limit was hit that we watch ourselves."""
        if self._layer == "bubblewrap" and status > 128:
            status = 128 - status  # bubblewrap says it as a shell does
        if status == -signal.SIGXCPU or (status == -signal.SIGKILL and self._used_up()):
            return "timeout", f"{self._limits.cpu_seconds:g} s of processor time"
        if status == NO_MEMORY:
            return "memory", f"{_size(self._limits.memory_bytes)} of memory"
        if status < 0:
            return "killed", f"signal {_signal_name(-status)}"
        return ("ok" if status == 0 else "error"), ""

    def _used_up(self) -> bool:
        """Whether its processor time may be used up; bubblewrap keeps the figure, so wall time must tell."""
        elapsed = (self._ended or 0.0) - (self._started or 0.0)
        return max(self._usage_seconds, elapsed) >= self._limits.cpu_seconds


def _file(content: bytes, cleanup: contextlib.ExitStack) -> int:
    """A descriptor of an unnamed file in memory with that content, which nobody can change any more."""
    descriptor = os.memfd_create("sandbox", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    cleanup.callback(os.close, descriptor)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


def _size(count: int) -> str:
    return f"{count / MEBIBYTE:g} MB" if count >= MEBIBYTE else f"{count} bytes"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
