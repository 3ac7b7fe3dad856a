"""Sandbox: runs untrusted Python programs in a layer of isolation that was attacked first to see what it stops.

    with open_sandbox() as sandbox:
        result = sandbox.run(Program("print(input()[::-1])", stdin="abc"))

A program may read Python's library, compute, start threads, print, and write small files into its own folder, which
is empty at its start and deleted at its end. The kernel denies everything else: network, other files, processes,
programs, signals to others. The sandbox does not protect against defects of the kernel, nor against what a program
learns from its own timing; under the Landlock layer a program also learns which paths exist and how large they are,
not what they hold.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from types import TracebackType

from errors import PromptOrTuneError, unknown_name_error
from evaluate.sandbox import isolation
from evaluate.sandbox.launch import run_in_layer
from evaluate.sandbox.spec import (
    MEBIBYTE,
    SANDBOX_LAYERS,
    UNSAFE_LAYER,
    ExecutionResult,
    Limits,
    Program,
    remove_stale_scratch_dirs,
)

logger = logging.getLogger(__name__)


PROBE_SECRET = "a secret of the host"  # noqa: S105 - used by the probe only

# The attacks of the probe and their descriptions.
ATTACK_LABELS = {
    "network": "connections to the network",
    "reading": "reading other files",
    "writing": "writing other files",
    "processes": "starting processes",
    "programs": "starting programs",
    "signals": "signals to other processes",
}
LIMIT_LABELS = {"time": "sleeping past the limit", "memory": "taking too much memory", "output": "printing too much"}

ATTACK_PROGRAM = """
import json, os, socket, sys
port, parent, secret, target = json.loads(sys.stdin.readline())

def network():
    socket.create_connection(("127.0.0.1", port), 1).close()

def reading():
    assert open(secret).read()

def writing():
    open(target, "w").write("written")

def processes():
    if (child := os.fork()) == 0:
        os._exit(0)
    os.waitpid(child, 0)

def programs():
    child = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(child, 0)

def signals():
    assert parent != os.getpid()  # in its own namespace of processes it may have the same number
    os.kill(parent, 0)

done = []
for attack in (network, reading, writing, processes, programs, signals):
    try:
        attack()
        done.append(attack.__name__)
    except BaseException:
        pass
open("own.txt", "w").write("own")
assert open("own.txt").read() == "own"
print(json.dumps(done))
"""

PROBE_LIMITS = Limits(wall_seconds=20, cpu_seconds=10, memory_bytes=128 * MEBIBYTE, output_bytes=100_000)
LIMIT_PROGRAMS = {
    "time": (Program("import time\ntime.sleep(30)", limits=replace(PROBE_LIMITS, wall_seconds=0.5)), "timeout"),
    "memory": (Program("x = []\nwhile True:\n    x.append(bytes(1 << 20))", limits=PROBE_LIMITS), "memory"),
    "output": (Program("while True:\n    print('x' * 1000)", limits=PROBE_LIMITS), "output"),
}


_WORKING_LAYERS: dict[str, ProbeResult] = {}


@dataclass(frozen=True)
class ProbeResult:
    """The attacks that a layer stops, and in `reason` why it does not work on this machine."""

    layer: str
    works: bool
    stops: dict[str, bool]
    reason: str = ""


def probe_layer(layer: str) -> ProbeResult:
    """Attack a layer, in about 50 ms. A positive result is cached for this process."""
    if layer not in _WORKING_LAYERS:
        found = _run_attacks(layer)
        if not found.works:
            return found
        _WORKING_LAYERS[layer] = found
    return _WORKING_LAYERS[layer]


def _run_attacks(layer: str) -> ProbeResult:
    if reason := _missing_requirement(layer):
        return ProbeResult(layer, False, {}, reason)
    with _attack_targets() as (listener, secret, target):
        stdin = json.dumps([listener.getsockname()[1], os.getpid(), str(secret), str(target)])
        limits = Limits(wall_seconds=20, cpu_seconds=10)
        result = run_in_layer(layer, Program(ATTACK_PROGRAM, stdin + "\n", limits), threading.Event())
        if result.status != "ok":
            return ProbeResult(layer, False, {}, _failure_reason(layer, result))
        succeeded = set(json.loads(result.stdout))
        # The program's own report is not enough: check the effects too.
        if _was_connected(listener):
            succeeded.add("network")
        if target.read_text(encoding="utf-8"):
            succeeded.add("writing")
    stops = {attack: attack not in succeeded for attack in ATTACK_LABELS}
    leaks = [ATTACK_LABELS[attack] for attack, stopped in stops.items() if not stopped]
    return ProbeResult(layer, not leaks, stops, f"it does not stop {', '.join(leaks)}" if leaks else "")


def probe_layer_with_limits(layer: str) -> ProbeResult:
    """Probe a layer's attacks and its limits, in a few seconds."""
    found = probe_layer(layer)
    if not found.stops:
        return found
    limits = {
        name: run_in_layer(layer, program, threading.Event()).status == status
        for name, (program, status) in LIMIT_PROGRAMS.items()
    }
    missed = [LIMIT_LABELS[name] for name, stopped in limits.items() if not stopped]
    reason = "; ".join(filter(None, [found.reason, f"it does not limit {', '.join(missed)}" if missed else ""]))
    return replace(found, works=found.works and not missed, stops=found.stops | limits, reason=reason)


def probe_all_layers() -> list[ProbeResult]:
    """Probe every layer with its limits, the unsafe one last."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(probe_layer_with_limits, (*SANDBOX_LAYERS, UNSAFE_LAYER)))


def probe_table(results: list[ProbeResult]) -> str:
    """Return the results as a text table with one row per attack and one column per layer."""
    attacks = ATTACK_LABELS | LIMIT_LABELS
    width = max(map(len, attacks.values()))
    columns = [max(len(result.layer), 14) for result in results]

    def line(first: str, cells: list[str]) -> str:
        return "  ".join(
            [first.ljust(width), *(cell.ljust(size) for cell, size in zip(cells, columns, strict=True))]
        ).rstrip()

    rows = [line("", [result.layer for result in results])]
    rows.append(line("works here", ["yes" if result.works else "no" for result in results]))
    for name, words in attacks.items():
        cells = ["-" if name not in r.stops else "stopped" if r.stops[name] else "LEAKS" for r in results]
        rows.append(line(words, cells))
    rows += ["", *(f"{result.layer}: {result.reason}." for result in results if result.reason)]
    return "\n".join(rows).rstrip()


def _missing_requirement(layer: str) -> str:
    """Return what the layer needs and this machine lacks; '' if it can be tried."""
    if not sys.platform.startswith("linux"):
        return f"it needs Linux, and this is {platform.system()}"
    if layer == "bubblewrap" and isolation.find_bwrap() is None:
        return "there is no bwrap program (apt install bubblewrap)"
    if layer == "landlock" and isolation.landlock_abi_version() == 0:
        return "this kernel has no Landlock (Linux 5.13 or newer, with landlock among its security modules)"
    if layer != UNSAFE_LAYER and platform.machine() not in {"x86_64", "aarch64"}:
        return f"there is no table of system calls for {platform.machine()}"
    return ""


def _failure_reason(layer: str, result: ExecutionResult) -> str:
    reason = (result.stderr.strip().splitlines() or [result.limit or result.status])[-1].rstrip(".")
    if layer == "bubblewrap" and "namespace" in reason.lower():
        reason += " (a container needs permission for user namespaces)"
    return reason.removeprefix("The program was not started: ")


@contextlib.contextmanager
def _attack_targets() -> Iterator[tuple[socket.socket, Path, Path]]:
    """Create targets that only a sandbox protects: a listener, a readable file with a secret, and a writable file."""
    folder = Path(tempfile.mkdtemp(prefix="prompt-or-tune-probe-"))
    try:
        folder.chmod(0o755)
        secret, target = folder / "secret", folder / "target"
        secret.write_text(PROBE_SECRET, encoding="utf-8")
        secret.chmod(0o644)
        target.touch()
        target.chmod(0o666)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            yield listener, secret, target
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _was_connected(listener: socket.socket) -> bool:
    listener.setblocking(False)
    try:
        listener.accept()[0].close()
    except BlockingIOError:
        return False
    return True


class SandboxUnavailableError(PromptOrTuneError):
    """No sandbox layer works on this machine, so no code is run."""


class Sandbox:
    """Runs programs in one layer. Thread-safe. Created by `open_sandbox`."""

    def __init__(self, layer: str, unavailable_layers: tuple[str, ...] = ()) -> None:
        self.layer = layer
        """ "bubblewrap", "landlock" or "unsafe-rlimits"; also in every result."""
        self.unavailable_layers = unavailable_layers
        """Messages that say why better layers are not used."""
        self._closed = threading.Event()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End running programs within a tenth of a second; later ones get the status `refused`."""
        self._closed.set()

    def run(self, program: Program) -> ExecutionResult:
        """Run one program to its end. Never raises for anything that the program does."""
        return self._run_program(program, self._closed)

    def run_many(
        self, programs: Iterable[Program], workers: int | None = None
    ) -> Iterator[tuple[int, ExecutionResult]]:
        """Run programs in parallel (default: one worker per core); yield their indices and results as they finish.

        `programs` is read only as far as the workers need. Closing the iterator ends the running programs. Raises
        PromptOrTuneError for fewer than 1 worker.
        """
        workers = len(os.sched_getaffinity(0)) if workers is None else workers
        if workers < 1:
            raise PromptOrTuneError(f"The sandbox was asked for {workers} workers: give 1 or more.")
        return self._run_many(programs, workers)

    def _run_many(self, programs: Iterable[Program], workers: int) -> Iterator[tuple[int, ExecutionResult]]:
        stop = _AnyEvent(self._closed)
        remaining = enumerate(programs)
        with ThreadPoolExecutor(workers, thread_name_prefix="sandbox") as pool:
            running: dict[Future[ExecutionResult], int] = {}
            try:
                while True:
                    for index, program in islice(remaining, 2 * workers - len(running)):
                        running[pool.submit(self._run_program, program, stop)] = index
                    if not running:
                        return
                    for done in wait(running, return_when=FIRST_COMPLETED).done:
                        yield running.pop(done), done.result()
            finally:
                stop.set()
                for future in running:
                    future.cancel()

    def _run_program(self, program: Program, stop: threading.Event) -> ExecutionResult:
        if stop.is_set():
            return ExecutionResult(
                "refused", "", "The program was not started: the sandbox is closed.", self.layer, 0.0
            )
        return run_in_layer(self.layer, program, stop)


class _AnyEvent(threading.Event):
    """An event that counts as set if it or the given other event is set."""

    def __init__(self, other: threading.Event) -> None:
        super().__init__()
        self._other = other

    def is_set(self) -> bool:
        return super().is_set() or self._other.is_set()


def open_sandbox(layer: str | None = None, unsafe: bool = False) -> Sandbox:
    """Open a sandbox in the best layer that stops the probe's attacks here, or in the layer that is named.

    `layer` is "bubblewrap", "landlock", or, only with `unsafe=True`, "unsafe-rlimits" (also "rlimits"), which hardly
    protects. Raises SandboxUnavailableError if the layer, or every layer, fails, and UnknownNameError for another name.
    """
    try:
        return _open_layer(layer, unsafe)
    except OSError as error:  # no descriptor, process or temporary folder is left for the probe
        raise SandboxUnavailableError(
            f"The sandbox cannot be opened ({error}): free what this machine lacks and try again."
        ) from error


def _open_layer(layer: str | None, unsafe: bool) -> Sandbox:
    remove_stale_scratch_dirs()
    if layer in {UNSAFE_LAYER, "rlimits"}:
        if not unsafe:
            raise SandboxUnavailableError(
                "Resource limits alone keep no code from the network, files or other processes: take another layer, or "
                "add the unsafe flag for code that you trust."
            )
        found = probe_layer(UNSAFE_LAYER)
        if not found.stops:
            raise SandboxUnavailableError(f"The sandbox layer '{UNSAFE_LAYER}' does not work here: {found.reason}.")
        return Sandbox(UNSAFE_LAYER)
    if layer is not None:
        if layer not in SANDBOX_LAYERS:
            raise unknown_name_error("sandbox layer", layer, (*SANDBOX_LAYERS, UNSAFE_LAYER))
        found = probe_layer(layer)
        if not found.works:
            raise SandboxUnavailableError(f"The sandbox layer '{layer}' does not work here: {found.reason}.")
        return Sandbox(layer)
    failures: list[str] = []
    for name in SANDBOX_LAYERS:
        found = probe_layer(name)
        if found.works:
            for reason in failures:
                logger.warning("Code runs in the sandbox layer '%s': %s.", name, reason)
            return Sandbox(name, tuple(failures))
        failures.append(f"{name} does not work here: {found.reason}")
    raise SandboxUnavailableError(
        f"No code is run, because no layer of the sandbox works here: {'; '.join(failures)}; "
        "`python -m evaluate.sandbox probe` shows more."
    )


__all__ = ["ExecutionResult", "Limits", "Program", "Sandbox", "SandboxUnavailableError", "open_sandbox"]
