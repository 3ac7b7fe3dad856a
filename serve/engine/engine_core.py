"""Two threads: prepare inputs, step the model.

Two threads between many callers and one model: one makes rows ready, the other runs the model.

Only one thread may run the model (torch keeps a pool of threads for every thread that calls it). Meanwhile the other
one chooses examples, writes prompts and loads adapters, so that nobody who is being answered waits for a disk.

The thread that runs the model: rows that nobody waits for leave, rows that are ready join, all take a step.

A backend's batch with the jobs that are in it.

The thread that makes rows ready while others grow: examples, prompts, adapters from disk.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from itertools import count
from threading import Thread
from typing import TypeVar
from weakref import WeakSet

from errors import BusyError, PromptOrTuneError
from serve.engine.input_processor import PreparedRequest
from serve.engine.metrics import Metrics, Outcome
from serve.engine.output_stream import OutputEvent, OutputQueue, OutputStream
from serve.engine.scheduler import BatchMode, RequestBatch, RequestQueue, ScheduledRequest
from serve.types import Backend, Batch, PartialOutput, Request, RequestOutput, RowOutput, SamplingParams

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
            except BaseException as error:  # noqa: BLE001 - it is raised where `run` was called
                future.set_exception(error)

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
        except BusyError as error:
            self._defer(request, error)
        except PromptOrTuneError as error:
            self._reject(request, error)
        except Exception as error:  # noqa: BLE001 - a defect of ours: whoever asked hears of it
            with self._queue.condition:
                call.exception = error
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


class RunningBatch:
    """A batch that stays open while its rows come and go. For the thread that runs the model alone."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self.requests: dict[int, ScheduledRequest] = {}

    def __len__(self) -> int:
        """How many lines grow, or are about to."""
        return len(self._batch) if self.requests else 0

    @property
    def can_add(self) -> bool:
        """Whether a job may join now."""
        return not self.requests or self._batch.supports_continuous_batching

    def add(self, request: ScheduledRequest) -> None:
        """Takes the job's row in; raises PromptOrTuneError where it cannot be answered."""
        if request.prepared is None:
            raise ValueError("only planned jobs fly")
        self._batch.add(request.key, request.prepared.row, request.request_batch.sampling_params)
        self.requests[request.key] = request

    def step(self) -> list[tuple[ScheduledRequest, PartialOutput | RowOutput]]:
        """One step of all rows. After an exception the batch is not used again."""
        events: list[tuple[ScheduledRequest, PartialOutput | RowOutput]] = []
        for event in self._batch.step():
            events.append((self.requests[event.index], event))
            if isinstance(event, RowOutput):
                del self.requests[event.index]
        return events

    def cancel(self, request: ScheduledRequest) -> RowOutput:
        """Takes the job's row out at once."""
        del self.requests[request.key]
        return self._batch.cancel(request.key)


# How soon a caller's event is noticed while nothing grows.
_POLL_SECONDS = 0.02


class EngineCore:
    """One batch that stays open for greedy decoding and sampling, and at most one beam search, stepped in turn."""

    def __init__(self, queue: RequestQueue, backend: Backend, metrics: Metrics) -> None:
        self._queue = queue
        self._backend = backend
        self._metrics = metrics
        self._batches: dict[BatchMode, RunningBatch] = {}
        self.thread = Thread(target=self._run, name="generate", daemon=True)

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self._step("step")
                self._step("beam")
        except Exception as error:
            # A defect of ours must not leave callers waiting for ever.
            self._queue.close(abort_running=True)
            for call in list(self._queue.request_batches):
                self._queue.fail(call, error)
            raise
        finally:
            self._batches.clear()

    def _wait_for_work(self) -> bool:
        """Takes out what nobody waits for, and waits for something to do; False when nothing more will come."""
        board = self._queue
        with board.condition:
            while True:
                self._remove_cancelled()
                if any(batch.requests for batch in self._batches.values()) or any(board.scheduler.ready.values()):
                    return True
                if board.closed and not board.request_batches:
                    return False
                board.condition.wait(_POLL_SECONDS if board.request_batches else None)

    def _remove_cancelled(self) -> None:
        board = self._queue
        for call in [
            call for call in board.request_batches if call.is_aborted or call.exception is not None or board.closed
        ]:
            if call.exception is not None:
                for job in call.scheduled:
                    self._abort_running(job)
                self._fail_request_batch(call, call.exception)
                continue
            for job in call.scheduled:
                if job.status not in ("flying", "done"):
                    self._finish_unstarted(job, "cancelled", replace(_initial_output(job), cancelled=True))
                elif call.is_aborted or board.aborting:
                    finished = self._abort_running(job)
                    if finished is not None:
                        call.output_queue.put([self._finish(job, finished)])

    def _abort_running(self, request: ScheduledRequest) -> RowOutput | None:
        """Takes a row that grows out of its batch; None where it does not grow."""
        if request.status != "flying":
            return None
        try:
            return self._batches[request.request_batch.mode].cancel(request)
        except Exception as error:  # noqa: BLE001 - as where a step fails
            self._fail_batch(request.request_batch.mode, error)
            return None

    def _step(self, mode: BatchMode) -> None:
        """Lets rows join where they may, and takes one step."""
        with self._queue.condition:
            joining = self._schedule(mode)
            if joining:
                self._queue.condition.notify_all()  # an owner with fewer rows made ready may have the next one planned
        for job in joining:
            self._start(job)
        batch = self._batches.get(mode)
        if batch is None or not batch.requests:
            return
        begin, lines = time.monotonic(), len(batch)
        try:
            events = batch.step()
        except Exception as error:  # noqa: BLE001 - whatever it is, it ends this batch alone
            self._fail_batch(mode, error)
            return
        self._metrics.observe_step(lines, time.monotonic() - begin)
        self._process_outputs(events)

    def _schedule(self, mode: BatchMode) -> list[ScheduledRequest]:
        """The jobs that join now. A beam search takes in rows of one decoding, before its first step alone."""
        lanes, batch = self._queue.scheduler, self._batches.get(mode)
        in_flight = 0 if batch is None else len(batch)
        if batch is not None and batch.requests and (mode == "beam" or not batch.can_add):
            return []
        if mode == "beam":
            self._batches.pop(mode, None)
        joining: list[ScheduledRequest] = []
        alike: SamplingParams | None = None
        while (job := lanes.next_to_run(mode, in_flight, alike)) is not None:
            joining.append(job)
            in_flight += job.num_seqs
            alike = job.request_batch.sampling_params if mode == "beam" else None
        if joining:
            self._queue.condition.notify_all()  # their owners may be planned further ahead
        return joining

    def _start(self, request: ScheduledRequest) -> None:
        call, now = request.request_batch, time.monotonic()
        if request.prepared is None or request.status == "done":
            return  # its call failed while others of it joined
        try:
            if call.mode not in self._batches:
                self._batches[call.mode] = RunningBatch(self._backend.open_batch(call.mode))
            self._batches[call.mode].add(request)
        except PromptOrTuneError as fault:
            self._finish_unstarted(
                request, "refused", replace(_initial_output(request), error=str(fault), exception=fault)
            )
        except Exception as fault:  # noqa: BLE001 - as where a step fails
            self._fail_batch(call.mode, fault)
            self._fail_request_batch(call, fault)
        else:
            request.start_time = now
            self._metrics.observe_start(now - call.arrival_time, request.prepared.output.prompt_tokens)

    def _process_outputs(self, events: list[tuple[ScheduledRequest, PartialOutput | RowOutput]]) -> None:
        """Puts what a step gave into the callers' mailboxes, each opened once."""
        news: dict[RequestBatch, list[OutputEvent]] = {}
        now = time.monotonic()
        for job, event in events:
            said = not isinstance(event, RowOutput) or bool(event.candidates)
            if said and job.first_token_time is None:
                job.first_token_time = now
                self._metrics.observe_first_token(now - job.request_batch.arrival_time)
            if isinstance(event, RowOutput):
                news.setdefault(job.request_batch, []).append(self._finish(job, event))
            elif job.request_batch.output_queue.wants_partials:
                partial = PartialOutput(job.index, event.text, event.tokens, event.candidate)
                news.setdefault(job.request_batch, []).append(partial)
        for call, own in news.items():
            call.output_queue.put(own)

    def _finish(self, request: ScheduledRequest, row_output: RowOutput) -> RequestOutput:
        """The whole answer of a row that has left the batch."""
        now = time.monotonic()
        known = _initial_output(request)
        answer = replace(
            known,
            candidates=row_output.candidates,
            samples=row_output.samples,
            cancelled=row_output.cancelled,
            error=row_output.error,
            notes=(*known.notes, *row_output.notes),
            seconds=now - request.start_time,
            first_token_seconds=0.0
            if request.first_token_time is None
            else request.first_token_time - request.start_time,
        )
        outcome: Outcome = "failed" if row_output.error else "cancelled" if row_output.cancelled else "answered"
        if outcome == "answered":
            self._queue.wait_estimator.observe(answer.seconds)
        tokens = sum(each.tokens for each in row_output.samples or row_output.candidates)
        self._metrics.observe_finish(outcome, now - request.request_batch.arrival_time, tokens)
        self._queue.finish(request)
        return answer

    def _finish_unstarted(self, request: ScheduledRequest, outcome: Outcome, output: RequestOutput) -> None:
        """A row that never joined has its answer."""
        self._metrics.observe_finish(outcome, time.monotonic() - request.request_batch.arrival_time)
        self._queue.finish(request)
        request.request_batch.output_queue.put([output])

    def _fail_batch(self, mode: BatchMode, exception: Exception) -> None:
        """The batch is lost with all that was in it; the next row opens another."""
        self._metrics.count_failed_step()
        batch = self._batches.pop(mode, None)
        for call in {} if batch is None else {job.request_batch: None for job in batch.requests.values()}:
            self._fail_request_batch(call, exception)

    def _fail_request_batch(self, request_batch: RequestBatch, exception: Exception) -> None:
        for job in request_batch.scheduled:
            if job.status != "done":
                self._metrics.observe_finish("failed", time.monotonic() - request_batch.arrival_time)
        self._queue.fail(request_batch, exception)


def _initial_output(request: ScheduledRequest) -> RequestOutput:
    """What is known of a job's answer before it has said anything."""
    call = request.request_batch
    known = request.prepared.output if request.prepared else RequestOutput(request.index, call.requests[request.index])
    return replace(known, queued_seconds=(request.start_time or time.monotonic()) - call.arrival_time)


_JOIN_TIMEOUT_S = 2.0


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
