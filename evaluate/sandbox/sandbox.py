"""Sandbox: runs untrusted Python programs, one or many in parallel, in a layer that the kernel enforces.

    with open_sandbox() as sandbox:
        result = sandbox.run(Program("print(input()[::-1])", stdin="abc"))

A program may read Python's library, compute, start threads, print, and write small files into its own folder, which
is empty at its start and deleted at its end. The kernel denies everything else: network, other files, processes,
programs, signals to others. The sandbox does not protect against defects of the kernel, nor against what a program
learns from its own timing; under the Landlock layer a program also learns which paths exist and how large they are,
not what they hold.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from types import TracebackType

from errors import PromptOrTuneError, unknown_name_error
from evaluate.sandbox.launch import run_in_layer
from evaluate.sandbox.probe import probe_layer
from evaluate.sandbox.spec import SANDBOX_LAYERS, UNSAFE_LAYER, remove_stale_scratch_dirs
from evaluate.sandbox.types import ExecutionResult, Limits, Program

logger = logging.getLogger(__name__)


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
