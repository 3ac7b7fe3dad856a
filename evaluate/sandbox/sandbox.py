"""Open_sandbox, pool.

Choosing a layer that works here, and running programs in it: one, or many over all cores.

Runs code that nobody has read: in layers of the kernel's own fences, or not at all.

    with open_sandbox() as sandbox:
        outcome = sandbox.run(Program("print(input()[::-1])", stdin="abc"))

A program may read Python's library, compute, start threads, print, and write small files into a folder of its own that
is empty at its start and gone at its end. All else (network, other files, processes, programs, signals to others) the
kernel denies. It does not protect against faults of the kernel itself, nor against what a program learns from its own
timing; under the Landlock layer a program also learns which paths exist and how large they are, not what they hold.
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
    """There is no layer here that stops what it must stop, so no code is run."""


class Sandbox:
    """Runs programs in one layer. Safe to use from several threads; `open_sandbox` makes one."""

    def __init__(self, layer: str, unavailable_layers: tuple[str, ...] = ()) -> None:
        self.layer = layer
        """ "bubblewrap", "landlock" or "unsafe-rlimits"; also in every outcome."""
        self.unavailable_layers = unavailable_layers
        """Why better layers were not taken, a sentence each."""
        self._closed = threading.Event()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends what still runs in it, within a tenth of a second; what is run afterwards is refused."""
        self._closed.set()

    def run(self, program: Program) -> ExecutionResult:
        """Runs one program to its end. Never raises for anything that the program does."""
        return self._run_program(program, self._closed)

    def run_many(
        self, programs: Iterable[Program], workers: int | None = None
    ) -> Iterator[tuple[int, ExecutionResult]]:
        """Runs many at once, one a core by default: each one's place in `programs` and its outcome, as they finish.

        `programs` is read as it is needed. Whoever stops listening ends what still runs. Raises PromptOrTuneError for
        workers below 1.
        """
        workers = len(os.sched_getaffinity(0)) if workers is None else workers
        if workers < 1:
            raise PromptOrTuneError(f"The sandbox was asked for {workers} workers: give 1 or more.")
        return self._run_many(programs, workers)

    def _run_many(self, programs: Iterable[Program], workers: int) -> Iterator[tuple[int, ExecutionResult]]:
        stop = _AnyEvent(self._closed)
        left = enumerate(programs)
        with ThreadPoolExecutor(workers, thread_name_prefix="sandbox") as pool:
            running: dict[Future[ExecutionResult], int] = {}
            try:
                while True:
                    for at, program in islice(left, 2 * workers - len(running)):
                        running[pool.submit(self._run_program, program, stop)] = at
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
    """Set when it is set, or when the event that it was made with is."""

    def __init__(self, other: threading.Event) -> None:
        super().__init__()
        self._other = other

    def is_set(self) -> bool:
        return super().is_set() or self._other.is_set()


def open_sandbox(layer: str | None = None, unsafe: bool = False) -> Sandbox:
    """A sandbox in the best layer that withstands an attack here, or in the one that is named.

    `layer` is "bubblewrap", "landlock", or, with `unsafe=True` alone, "unsafe-rlimits" (also "rlimits"), which hardly
    protects. Raises SandboxUnavailableError where the layer, or every layer, fails; UnknownNameError for another name.
    """
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
    passed_over: list[str] = []
    for each in SANDBOX_LAYERS:
        found = probe_layer(each)
        if found.works:
            for reason in passed_over:
                logger.warning("Code runs in the sandbox layer '%s': %s.", each, reason)
            return Sandbox(each, tuple(passed_over))
        passed_over.append(f"{each} does not work here: {found.reason}")
    raise SandboxUnavailableError(
        f"No code is run, because no layer of the sandbox works here: {'; '.join(passed_over)}; "
        "`python -m evaluate.sandbox probe` shows more."
    )


__all__ = ["ExecutionResult", "Limits", "Program", "Sandbox", "SandboxUnavailableError", "open_sandbox"]
