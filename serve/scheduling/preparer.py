"""The thread that makes rows ready while others grow: examples, prompts, adapters from disk."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

from errors import BusyError, PromptOrTuneError
from serve.metrics import Metrics
from serve.planning import PreparedRequest
from serve.rows import Request, SamplingParams
from serve.scheduling.board import RequestQueue
from serve.scheduling.jobs import ScheduledRequest

# How soon memory is asked again for an adapter that found no room.
_RETRY_SECONDS = 0.02
T = TypeVar("T")


class InputThread:
    """Plans the jobs of a board, and runs what else must not run in the thread of the model."""

    def __init__(
        self,
        queue: RequestQueue,
        prepare_fn: Callable[[int, Request, SamplingParams], PreparedRequest],
        metrics: Metrics,
    ) -> None:
        self._queue = queue
        self._prepare_fn = prepare_fn
        self._metrics = metrics
        self._tasks: deque[Callable[[], None]] = deque()
        self._last_retry = 0.0
        self.thread = Thread(target=self._run, name="prepare", daemon=True)

    def run(self, fn: Callable[[], T]) -> T:
        """Calls `work` in this thread, before the next row, and waits for what it gives."""
        future: Future[T] = Future()

        def task() -> None:
            try:
                future.set_result(fn())
            except BaseException as fault:  # noqa: BLE001 - it is raised where `run` was called
                future.set_exception(fault)

        with self._queue.condition:
            if self._queue.closed:
                raise PromptOrTuneError("The engine was closed: start it anew.")
            self._tasks.append(task)
            self._queue.condition.notify_all()
        return future.result()

    def _run(self) -> None:
        while (work := self._next_task()) is not None:
            if isinstance(work, ScheduledRequest):
                self._prepare(work)
            else:
                work()

    def _next_task(self) -> ScheduledRequest | Callable[[], None] | None:
        """What is to be done next; waits for it. None when the board is closed and all tasks are done."""
        board = self._queue
        with board.condition:
            while True:
                if self._tasks:
                    return self._tasks.popleft()
                if board.closed:
                    return None
                stalled = board.scheduler.has_deferred
                if stalled and time.monotonic() - self._last_retry >= _RETRY_SECONDS:
                    board.scheduler.retry_deferred()
                    self._last_retry = time.monotonic()
                job = board.scheduler.next_to_prepare()
                if job is not None:
                    return job
                board.condition.wait(_RETRY_SECONDS if stalled else None)

    def _prepare(self, request: ScheduledRequest) -> None:
        call = request.request_batch
        if call.is_aborted:
            return  # the other thread takes it off the board
        try:
            plan = self._prepare_fn(request.index, call.requests[request.index], call.sampling_params)
        except BusyError as fault:
            self._defer(request, fault)
        except PromptOrTuneError as fault:
            self._reject(request, fault)
        except Exception as fault:  # noqa: BLE001 - a defect of ours: whoever asked hears of it
            with self._queue.condition:
                call.exception = fault
                self._queue.condition.notify_all()
        else:
            self._queue.mark_ready(request, plan)

    def _defer(self, request: ScheduledRequest, error: BusyError) -> None:
        """Its adapter finds no room in memory: it waits for one to leave, but not for ever."""
        now = time.monotonic()
        with self._queue.condition:
            request.deferred_since = request.deferred_since or now
            if now - request.deferred_since < self._queue.config.adapter_timeout_s:
                if request.status == "planning":
                    self._queue.scheduler.defer(request)
                    self._queue.condition.notify_all()
                return
        self._reject(request, error)

    def _reject(self, request: ScheduledRequest, error: PromptOrTuneError) -> None:
        if self._queue.reject(request, error):
            self._metrics.observe_finish("refused", time.monotonic() - request.request_batch.arrival_time)
