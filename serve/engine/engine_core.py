"""Engine core: one thread that prepares inputs, one thread that steps the model, and the client that submits calls.

Only one thread may run the model, because torch creates a thread pool for every thread that calls it. The other one
selects examples, renders prompts and loads adapters meanwhile, so that running requests never wait for a disk.

Both threads share a RequestQueue. EngineCore repeats: remove cancelled requests, start ready ones, step each batch.
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
from serve.engine.config import Metrics, Outcome
from serve.engine.input_processor import PreparedRequest
from serve.engine.output_stream import OutputEvent, OutputQueue, OutputStream
from serve.engine.scheduler import BatchMode, RequestBatch, RequestQueue, ScheduledRequest
from serve.types import Backend, Batch, PartialOutput, Request, RequestOutput, RowOutput, SamplingParams

# Seconds between attempts to load an adapter that found no memory. A lease that ends does not notify this thread.
_RETRY_SECONDS = 0.02
T = TypeVar("T")


class InputThread:
    """Thread that prepares the waiting requests of a queue, and runs other work that must not block the model."""

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
        """Call `fn` in this thread, ahead of the waiting requests; return its result or raise its exception."""
        future: Future[T] = Future()

        def task() -> None:
            try:
                future.set_result(fn())
            except BaseException as error:  # noqa: BLE001 - raised again in the thread that called `run`
                future.set_exception(error)

        with self._queue.condition:
            if self._queue.closed:
                raise PromptOrTuneError("The engine was closed: start it again.")
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
        """Block until there is work and return it; None once the queue is closed and all tasks are done."""
        queue = self._queue
        with queue.condition:
            while True:
                # Tasks come first also after close(): the threads blocked in `run` must get a result.
                if self._tasks:
                    return self._tasks.popleft()
                if queue.closed:
                    return None
                has_deferred = queue.scheduler.has_deferred
                if has_deferred and time.monotonic() - self._last_retry >= _RETRY_SECONDS:
                    queue.scheduler.retry_deferred()
                    self._last_retry = time.monotonic()
                request = queue.scheduler.next_to_prepare()
                if request is not None:
                    return request
                queue.condition.wait(_RETRY_SECONDS if has_deferred else None)

    def _prepare(self, request: ScheduledRequest) -> None:
        request_batch = request.request_batch
        if request_batch.is_aborted:
            return  # EngineCore finishes it, as all requests of an aborted call
        try:
            prepared = self._prepare_fn(
                request.index, request_batch.requests[request.index], request_batch.sampling_params
            )
        except BusyError as error:
            self._defer(request, error)
        except PromptOrTuneError as error:
            self._reject(request, error)
        except Exception as error:  # noqa: BLE001 - a bug in the engine; the caller must get the exception
            # Rows of the call may be running, and only the thread of EngineCore may remove them from the batch. It
            # finds the exception when it next looks at the calls.
            with self._queue.condition:
                request_batch.exception = error
                self._queue.condition.notify_all()
        else:
            self._queue.mark_ready(request, prepared)

    def _defer(self, request: ScheduledRequest, error: BusyError) -> None:
        """Let the request wait for adapter memory, or reject it once it has waited `adapter_timeout_s`."""
        now = time.monotonic()
        with self._queue.condition:
            request.deferred_since = request.deferred_since or now
            if now - request.deferred_since < self._queue.config.adapter_timeout_s:
                if request.status == "preparing":
                    self._queue.scheduler.defer(request)
                    self._queue.condition.notify_all()
                return
        self._reject(request, error)

    def _reject(self, request: ScheduledRequest, error: PromptOrTuneError) -> None:
        if self._queue.reject(request, error):
            self._metrics.observe_finish("refused", time.monotonic() - request.request_batch.arrival_time)


class RunningBatch:
    """A backend's batch together with the requests in it. Used only by the thread of EngineCore."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self.requests: dict[int, ScheduledRequest] = {}

    def __len__(self) -> int:
        """Number of sequences being prefilled or decoded."""
        return len(self._batch) if self.requests else 0

    @property
    def can_add(self) -> bool:
        """Whether a request may be added now."""
        return not self.requests or self._batch.supports_continuous_batching

    def add(self, request: ScheduledRequest) -> None:
        """Add the row of a prepared request; raises PromptOrTuneError if the backend refuses it."""
        if request.prepared is None:
            raise ValueError("the request is not prepared")
        self._batch.add(request.key, request.prepared.row, request.request_batch.sampling_params)
        self.requests[request.key] = request

    def step(self) -> list[tuple[ScheduledRequest, PartialOutput | RowOutput]]:
        """Step all rows and return their outputs. The batch must not be used after an exception."""
        events: list[tuple[ScheduledRequest, PartialOutput | RowOutput]] = []
        for event in self._batch.step():
            events.append((self.requests[event.index], event))
            if isinstance(event, RowOutput):
                del self.requests[event.index]
        return events

    def cancel(self, request: ScheduledRequest) -> RowOutput:
        """Remove the row of `request` immediately and return its output so far."""
        del self.requests[request.key]
        return self._batch.cancel(request.key)


# Seconds between looks at the cancel events of callers while nothing runs: an Event cannot notify the condition.
_POLL_SECONDS = 0.02


class EngineCore:
    """Thread that runs the model: a continuous batch for greedy decoding and sampling, and at most one beam search.

    Both batches are stepped in turn, so that neither blocks the other.
    """

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
            # A bug outside of a step ends the thread; without this, every caller would wait for ever.
            self._queue.close(abort_running=True)
            for request_batch in list(self._queue.request_batches):
                self._queue.fail(request_batch, error)
            raise
        finally:
            self._batches.clear()

    def _wait_for_work(self) -> bool:
        """Remove cancelled requests and block until a step can be taken; False once the queue is closed and empty."""
        queue = self._queue
        with queue.condition:
            while True:
                self._remove_cancelled()
                if any(batch.requests for batch in self._batches.values()) or any(queue.scheduler.ready.values()):
                    return True
                if queue.closed and not queue.request_batches:
                    return False
                queue.condition.wait(_POLL_SECONDS if queue.request_batches else None)

    def _remove_cancelled(self) -> None:
        """Finish the requests of aborted and failed calls; after close() also those that are not running."""
        queue = self._queue
        for request_batch in [
            request_batch
            for request_batch in queue.request_batches
            if request_batch.is_aborted or request_batch.exception is not None or queue.closed
        ]:
            if request_batch.exception is not None:
                for request in request_batch.scheduled:
                    self._abort_running(request)
                self._fail_request_batch(request_batch, request_batch.exception)
                continue
            for request in request_batch.scheduled:
                if request.status not in ("running", "finished"):
                    self._finish_unstarted(request, "cancelled", replace(_initial_output(request), cancelled=True))
                elif request_batch.is_aborted or queue.aborting:
                    row_output = self._abort_running(request)
                    if row_output is not None:
                        request_batch.output_queue.put([self._finish(request, row_output)])

    def _abort_running(self, request: ScheduledRequest) -> RowOutput | None:
        """Remove a running request from its batch and return its output; None if it is not running."""
        if request.status != "running":
            return None
        try:
            return self._batches[request.request_batch.mode].cancel(request)
        except Exception as error:  # noqa: BLE001 - the batch is in an unknown state, as after a failed step
            self._fail_batch(request.request_batch.mode, error)
            return None

    def _step(self, mode: BatchMode) -> None:
        """Start the requests that fit, then run one step of the batch of this mode."""
        with self._queue.condition:
            starting = self._schedule(mode)
            if starting:
                # Their owners have fewer prepared requests now, so the input thread may prepare the next ones.
                self._queue.condition.notify_all()
        for request in starting:
            self._start(request)
        batch = self._batches.get(mode)
        if batch is None or not batch.requests:
            return
        begin, num_seqs = time.monotonic(), len(batch)
        try:
            events = batch.step()
        except Exception as error:  # noqa: BLE001 - any failure ends this batch, and the engine goes on
            self._fail_batch(mode, error)
            return
        self._metrics.observe_step(num_seqs, time.monotonic() - begin)
        self._process_outputs(events)

    def _schedule(self, mode: BatchMode) -> list[ScheduledRequest]:
        """Return the requests that start now.

        Beam search needs equal sampling parameters for all rows and adds none after its first step.
        """
        scheduler, batch = self._queue.scheduler, self._batches.get(mode)
        num_seqs = 0 if batch is None else len(batch)
        if batch is not None and batch.requests and (mode == "beam" or not batch.can_add):
            return []
        if mode == "beam":
            self._batches.pop(mode, None)
        starting: list[ScheduledRequest] = []
        sampling_params: SamplingParams | None = None
        while (request := scheduler.next_to_run(mode, num_seqs, sampling_params)) is not None:
            starting.append(request)
            num_seqs += request.num_seqs
            sampling_params = request.request_batch.sampling_params if mode == "beam" else None
        return starting

    def _start(self, request: ScheduledRequest) -> None:
        """Add the request to the batch of its mode, which is opened if necessary."""
        request_batch, now = request.request_batch, time.monotonic()
        if request.prepared is None or request.status == "finished":
            return  # the call failed while an earlier request of it was added
        try:
            if request_batch.mode not in self._batches:
                self._batches[request_batch.mode] = RunningBatch(self._backend.open_batch(request_batch.mode))
            self._batches[request_batch.mode].add(request)
        except PromptOrTuneError as error:
            self._finish_unstarted(
                request, "refused", replace(_initial_output(request), error=str(error), exception=error)
            )
        except Exception as error:  # noqa: BLE001 - the batch is in an unknown state, as after a failed step
            self._fail_batch(request_batch.mode, error)
            # The request had not been added, so _fail_batch did not find its call.
            self._fail_request_batch(request_batch, error)
        else:
            request.start_time = now
            self._metrics.observe_start(now - request_batch.arrival_time, request.prepared.output.prompt_tokens)

    def _process_outputs(self, events: list[tuple[ScheduledRequest, PartialOutput | RowOutput]]) -> None:
        """Pass the outputs of a step to the output queues, with one `put` per call and step."""
        outputs: dict[RequestBatch, list[OutputEvent]] = {}
        now = time.monotonic()
        for request, event in events:
            has_tokens = not isinstance(event, RowOutput) or bool(event.candidates)
            if has_tokens and request.first_token_time is None:
                request.first_token_time = now
                self._metrics.observe_first_token(now - request.request_batch.arrival_time)
            if isinstance(event, RowOutput):
                outputs.setdefault(request.request_batch, []).append(self._finish(request, event))
            elif request.request_batch.output_queue.wants_partials:
                partial = PartialOutput(request.index, event.text, event.tokens, event.candidate)
                outputs.setdefault(request.request_batch, []).append(partial)
        for request_batch, batch_outputs in outputs.items():
            request_batch.output_queue.put(batch_outputs)

    def _finish(self, request: ScheduledRequest, row_output: RowOutput) -> RequestOutput:
        """Finish a request whose row has left the batch, and return its output."""
        now = time.monotonic()
        initial = _initial_output(request)
        output = replace(
            initial,
            candidates=row_output.candidates,
            samples=row_output.samples,
            cancelled=row_output.cancelled,
            error=row_output.error,
            exception=row_output.exception,
            notes=(*initial.notes, *row_output.notes),
            seconds=now - request.start_time,
            first_token_seconds=0.0
            if request.first_token_time is None
            else request.first_token_time - request.start_time,
        )
        outcome: Outcome = "failed" if row_output.error else "cancelled" if row_output.cancelled else "answered"
        if outcome == "answered":
            self._queue.wait_estimator.observe(output.seconds)
        tokens = sum(candidate.tokens for candidate in row_output.samples or row_output.candidates)
        self._metrics.observe_finish(outcome, now - request.request_batch.arrival_time, tokens)
        self._queue.finish(request)
        return output

    def _finish_unstarted(self, request: ScheduledRequest, outcome: Outcome, output: RequestOutput) -> None:
        """Finish a request that was never added to a batch."""
        self._metrics.observe_finish(outcome, time.monotonic() - request.request_batch.arrival_time)
        self._queue.finish(request)
        request.request_batch.output_queue.put([output])

    def _fail_batch(self, mode: BatchMode, exception: Exception) -> None:
        """Drop the batch and fail the calls of all its requests; the next request opens a new batch."""
        self._metrics.count_failed_step()
        batch = self._batches.pop(mode, None)
        failed = {} if batch is None else {request.request_batch: None for request in batch.requests.values()}
        for request_batch in failed:
            self._fail_request_batch(request_batch, exception)

    def _fail_request_batch(self, request_batch: RequestBatch, exception: Exception) -> None:
        for request in request_batch.scheduled:
            if request.status != "finished":
                self._metrics.observe_finish("failed", time.monotonic() - request_batch.arrival_time)
        self._queue.fail(request_batch, exception)


def _initial_output(request: ScheduledRequest) -> RequestOutput:
    """Return the output of a request without any generated text: its prompt, examples and time in the queue."""
    request_batch = request.request_batch
    if request.prepared is not None:
        output = request.prepared.output
    else:
        output = RequestOutput(request.index, request_batch.requests[request.index])
    return replace(output, queued_seconds=(request.start_time or time.monotonic()) - request_batch.arrival_time)


_JOIN_TIMEOUT_S = 2.0


class EngineCoreClient:
    """Starts the two threads of an engine and submits calls to them from any thread.

    `prepare_fn` turns a request into its prepared input; it runs in the input thread and may take time.
    """

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
        """Queue a call and return the stream of its outputs; raises BusyError if too many rows wait already."""
        output_queue = OutputQueue(len(requests), notify, partials)
        request_batch = RequestBatch(
            requests,
            sampling_params,
            owner or next(self._anonymous_owners),
            cancel or threading.Event(),
            output_queue,
            time.monotonic(),
        )
        try:
            self._queue.add(request_batch)
        except BusyError:
            self._metrics.count_busy_refusal()
            raise
        # The closure refers to the queue and not to `self`: a stream must not keep the client from being freed.
        queue = self._queue
        return OutputStream(output_queue, lambda immediately: queue.abort(request_batch, immediately), keep_alive)

    def run(self, fn: Callable[[], T]) -> T:
        """Call `fn` in the input thread; return its result or raise its exception."""
        return self._input_thread.run(fn)

    def close(self, abort_running: bool = False) -> None:
        """End the threads: after the running requests have finished, or immediately with `abort_running`.

        Requests that are not running are cancelled. Waits up to two seconds per thread if no request is left, so that
        the model can be freed.
        """
        self._queue.close(abort_running)
        if not self._queue.request_batches or abort_running:
            for thread in self._threads:
                if thread is not threading.current_thread():
                    thread.join(_JOIN_TIMEOUT_S)


_CLIENTS: WeakSet[EngineCoreClient] = WeakSet()
# Also holds the threads of clients that were garbage-collected: these threads are ending, but may not have ended yet.
_THREADS: WeakSet[threading.Thread] = WeakSet()


@atexit.register
def _close_all() -> None:
    """End all engine threads: a thread inside torch crashes the interpreter while it is torn down."""
    for client in list(_CLIENTS):
        client.close(abort_running=True)
    for thread in list(_THREADS):
        thread.join(_JOIN_TIMEOUT_S)
