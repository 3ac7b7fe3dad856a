"""The thread that runs the model: rows that nobody waits for leave, rows that are ready join, all take a step."""

from __future__ import annotations

import time
from dataclasses import replace
from threading import Thread

from errors import PromptOrTuneError
from serve.metrics import Metrics, Outcome
from serve.rows import Backend, PartialOutput, RequestOutput, RowOutput, SamplingParams
from serve.scheduling.board import RequestQueue
from serve.scheduling.jobs import BatchMode, RequestBatch, ScheduledRequest
from serve.scheduling.mailbox import OutputEvent
from serve.scheduling.open_batch import RunningBatch

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
        except Exception as fault:
            # A defect of ours must not leave callers waiting for ever.
            self._queue.close(abort_running=True)
            for call in list(self._queue.request_batches):
                self._queue.fail(call, fault)
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
        except Exception as fault:  # noqa: BLE001 - as where a step fails
            self._fail_batch(request.request_batch.mode, fault)
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
        except Exception as fault:  # noqa: BLE001 - whatever it is, it ends this batch alone
            self._fail_batch(mode, fault)
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
