"""Two threads between many callers and one model: one makes rows ready, the other runs the model.

Only one thread may run the model (torch keeps a pool of threads for every thread that calls it). Meanwhile the other
one chooses examples, writes prompts and loads adapters, so that nobody who is being answered waits for a disk.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable, Sequence
from itertools import count
from typing import TypeVar
from weakref import WeakSet

from errors import BusyError
from serve.metrics import Metrics
from serve.planning import PreparedRequest
from serve.rows import Backend, Request, SamplingParams
from serve.scheduling.board import RequestQueue
from serve.scheduling.jobs import RequestBatch
from serve.scheduling.mailbox import OutputQueue, OutputStream
from serve.scheduling.preparer import InputThread
from serve.scheduling.worker import EngineCore

_JOIN_TIMEOUT_S = 2.0
T = TypeVar("T")


class EngineCoreClient:
    """Answers calls from any thread. `plan` makes a request ready and may take its time."""

    def __init__(
        self,
        queue: RequestQueue,
        backend: Backend,
        prepare_fn: Callable[[int, Request, SamplingParams], PreparedRequest],
        metrics: Metrics,
    ) -> None:
        self._queue = queue
        self._metrics = metrics
        self._anonymous_owners = count()
        self._input_thread = InputThread(queue, prepare_fn, metrics)
        self._threads = (self._input_thread.thread, EngineCore(queue, backend, metrics).thread)
        for thread in self._threads:
            thread.start()
            _THREADS.add(thread)
        _CLIENTS.add(self)

    def submit(
        self,
        requests: Sequence[Request],
        sampling_params: SamplingParams,
        cancel: threading.Event | None = None,
        owner: str = "",
        notify: Callable[[], None] | None = None,
        *,
        partials: bool = True,
        keep_alive: object = None,
    ) -> OutputStream:
        """Queues a call; BusyError, with nothing queued, where too many rows wait already."""
        mailbox = OutputQueue(len(requests), notify, partials)
        whose = owner or next(self._anonymous_owners)
        call = RequestBatch(requests, sampling_params, whose, cancel or threading.Event(), mailbox, time.monotonic())
        try:
            self._queue.add(call)
        except BusyError:
            self._metrics.count_busy_refusal()
            raise
        board = self._queue
        return OutputStream(mailbox, lambda at_once: board.abort(call, at_once), keep_alive)

    def run(self, fn: Callable[[], T]) -> T:
        """Calls `work` where rows are made ready, and waits for what it gives."""
        return self._input_thread.run(fn)

    def close(self, abort_running: bool = False) -> None:
        """Ends the threads once the rows that grow have their answers, or at once where all is to be abandoned.

        Rows that wait are given up. Waits a little for the threads, so that their model can be freed.
        """
        self._queue.close(abort_running)
        if not self._queue.request_batches or abort_running:
            for thread in self._threads:
                if thread is not threading.current_thread():
                    thread.join(_JOIN_TIMEOUT_S)


_CLIENTS: WeakSet[EngineCoreClient] = WeakSet()
# Those of schedulers that nobody holds any more too: they are ending, and may not have ended yet.
_THREADS: WeakSet[threading.Thread] = WeakSet()


@atexit.register
def _close_all() -> None:
    """A thread within torch when the interpreter is torn down would crash it."""
    for scheduler in list(_CLIENTS):
        scheduler.close(abort_running=True)
    for thread in list(_THREADS):
        thread.join(_JOIN_TIMEOUT_S)
