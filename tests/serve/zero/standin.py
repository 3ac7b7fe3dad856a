"""Stand-in for ZeroGPU's package `spaces`: decorated functions run in a forked process.

Modelled on spaces 0.51.3 (zero/wrappers.py, `generator_function_wrapper`): arguments and results are pickled, a process
is reused while it lives, threads from before the fork do not exist, the function runs in its own thread, only the class
name of an exception is returned, and a closed generator stops at its next result.
"""

from __future__ import annotations

import contextvars
import inspect
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

_CONTEXT = multiprocessing.get_context("fork")
CALLER = contextvars.ContextVar("caller", default="")


class WorkerError(Exception):
    """Raised when a forked process fails or dies; its module name is that of Gradio, as in the real package."""

    __module__ = "gradio.exceptions"

    def __init__(self, message: str, title: str = "ZeroGPU worker error") -> None:
        super().__init__(message)
        self.title = title


class Spaces:
    """Decorates as `spaces` does. `error` is raised at every call; `calls` records callers and requested seconds."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.calls: list[tuple[str, int]] = []
        self.workers: list[_Worker] = []
        self.stops = 0

    def GPU(self, task: Callable[..., Iterator[Any]], duration: Callable[..., int]) -> Callable[..., Iterator[Any]]:  # noqa: N802
        """Return the decorated generator function."""
        assert inspect.isgeneratorfunction(task)

        def handler(*arguments: Any) -> Iterator[Any]:
            self.calls.append((CALLER.get(), duration(*arguments)))
            if self.error is not None:
                raise self.error
            idle = next((worker for worker in self.workers if worker.idle()), None)
            worker = idle or _Worker(task)
            if idle is None:
                self.workers.append(worker)
            worker.busy = True
            worker.arguments.put(arguments)
            try:
                while True:
                    kind, value = worker.results.get()
                    if kind == "end":
                        return
                    if kind == "error":
                        raise WorkerError(value)
                    if kind == "gone":
                        raise WorkerError("GPU task aborted")
                    try:
                        yield value
                    except GeneratorExit:
                        self.stops += 1
                        worker.stop.set()
                        while worker.results.get()[0] not in ("end", "gone"):
                            pass
                        raise
            finally:
                worker.busy = False

        return handler

    def close(self) -> None:
        """Kill the forked processes."""
        for worker in self.workers:
            worker.process.kill()
            worker.process.join()


class _Worker:
    def __init__(self, task: Callable[..., Iterator[Any]]) -> None:
        self.arguments: Any = _CONTEXT.SimpleQueue()
        self.results: Any = _CONTEXT.SimpleQueue()
        self.stop = _CONTEXT.Event()
        self.busy = False
        self.process = _CONTEXT.Process(target=self._work, args=(task,), daemon=True)
        self.process.start()
        threading.Thread(target=self._watch, daemon=True).start()

    def idle(self) -> bool:
        return self.process.is_alive() and not self.busy

    def _watch(self) -> None:
        self.process.join()
        with suppress(ValueError):  # the process may have been killed while it wrote
            self.results._wlock.release()
        self.results.put(("gone", None))

    def _work(self, task: Callable[..., Iterator[Any]]) -> None:
        while True:
            arguments = self.arguments.get()
            self.stop.clear()
            thread = threading.Thread(target=self._iterate, args=(task, arguments))
            thread.start()
            thread.join()
            self.results.put(("end", os.getpid()))

    def _iterate(self, task: Callable[..., Iterator[Any]], arguments: tuple[Any, ...]) -> None:
        results = task(*arguments)
        try:
            for value in results:
                if self.stop.is_set():
                    results.close()  # type: ignore[attr-defined]  # it is a generator
                    return
                self.results.put(("value", value))
        except Exception as error:  # noqa: BLE001 - as in the real package
            self.results.put(("error", type(error).__name__))
