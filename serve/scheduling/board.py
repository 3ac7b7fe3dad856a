"""What the threads of an engine share: all calls that are not over, and the one lock around them."""

from __future__ import annotations

import math
import time
from itertools import count
from threading import Condition

from errors import BusyError, PromptOrTuneError
from serve.planning import PreparedRequest
from serve.rows import RequestOutput
from serve.scheduling.jobs import RequestBatch, ScheduledRequest
from serve.scheduling.lanes import FairScheduler
from serve.scheduling.limits import EngineConfig, EnginePhase, EngineStatus
from serve.scheduling.pace import WaitEstimator


class RequestQueue:
    """Calls, their jobs, and whose turn it is.

    `changed` guards all of it and wakes whoever waits for work. It is reentrant: the garbage collector closes an engine
    that was dropped, in whatever thread it runs.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.condition = Condition()
        self.config = config
        self.scheduler = FairScheduler(config)
        self.request_batches: dict[RequestBatch, None] = {}
        self.wait_estimator = WaitEstimator()
        self.closed = False
        self.aborting = False
        self._row_keys = count()

    def add(self, request_batch: RequestBatch) -> None:
        """Takes a call in; BusyError, with nothing changed, where its rows would be more than may wait."""
        with self.condition:
            if self.closed:
                raise PromptOrTuneError("The engine was closed: start it anew.")
            rows, waiting = len(request_batch.requests), self.scheduler.waiting
            # A call that alone is larger than the queue is its caller's own memory; it only may not come on top.
            if waiting and waiting + rows > self.config.max_queued:
                seconds = self.wait_estimator.estimate(waiting + rows - self.config.max_queued, self.scheduler.running)
                seconds = max(1.0, seconds)
                raise BusyError(
                    f"The queue is full ({waiting} rows wait): busy, about {math.ceil(seconds)} s.", seconds
                )
            if not rows:
                return
            self.request_batches[request_batch] = None
            self.scheduler.add(request_batch.make_start_groups(self._row_keys, self._max_group_seqs(request_batch)))
            self.condition.notify_all()

    def abort(self, request_batch: RequestBatch, immediately: bool) -> None:
        """The caller waits no more. Where that is to be heard `at_once` its own event is set too.

        Else this takes no lock, because the garbage collector may call it wherever it runs; the worker looks often.
        """
        request_batch.abandoned = True
        if immediately:
            if request_batch in self.request_batches:
                request_batch.cancel.set()
            with self.condition:
                self.condition.notify_all()

    def finish(self, request: ScheduledRequest) -> None:
        """The job is over, wherever it was; what it holds is given back."""
        with self.condition:
            self.scheduler.finish(request)
            call = request.request_batch
            call.num_unfinished -= 1
            if not call.num_unfinished:
                self.request_batches.pop(call, None)
            self.condition.notify_all()
        if request.prepared is not None:
            request.prepared.release()

    def reject(self, scheduled: ScheduledRequest, error: PromptOrTuneError) -> bool:
        """The job cannot be answered as it was asked; False where nobody waits for it any more."""
        call = scheduled.request_batch
        with self.condition:
            if scheduled.status == "done":
                return False
            self.finish(scheduled)
        waited = time.monotonic() - call.arrival_time
        request = call.requests[scheduled.index]
        call.output_queue.put(
            [RequestOutput(scheduled.index, request, error=str(error), exception=error, queued_seconds=waited)]
        )
        return True

    def mark_ready(self, request: ScheduledRequest, prepared: PreparedRequest) -> None:
        """The job may join; where nobody waits for it any more the plan's adapter is given back."""
        with self.condition:
            if request.status == "planning":
                request.prepared = prepared
                self.scheduler.mark_ready(request)
                self.condition.notify_all()
                return
        prepared.release()

    def fail(self, request_batch: RequestBatch, exception: Exception) -> None:
        """Ends the call with an exception for its caller; its rows are in no batch any more."""
        with self.condition:
            for job in request_batch.scheduled:
                if job.status != "done":
                    self.finish(job)
        request_batch.output_queue.fail(exception)

    def close(self, abort_running: bool) -> None:
        """Takes nothing in any more; rows that wait are given up, and where all is abandoned those that grow too."""
        with self.condition:
            self.closed = True
            self.aborting |= abort_running
            self.condition.notify_all()

    def status(self) -> EngineStatus:
        """The load at this moment."""
        with self.condition:
            waiting, lines = self.scheduler.waiting, self.scheduler.num_seqs
            free = not waiting and lines < self.config.max_num_seqs
            seconds = 0.0 if free else self.wait_estimator.estimate(waiting + 1, self.scheduler.running)
            if self.closed:
                return EngineStatus(waiting, lines, seconds, "closed")
            phase: EnginePhase = "generating" if lines else "preparing" if waiting else "idle"
            return EngineStatus(waiting, lines, seconds, phase)

    def _max_group_seqs(self, request_batch: RequestBatch) -> int:
        """How many lines of one call can start together."""
        if request_batch.mode == "beam":
            return self.config.max_num_beam_seqs
        return self.config.max_num_seqs - self.config.num_reserved_seqs
