"""Waiting/running queues, fair share per owner, admission, wait estimate.

What the threads of an engine share: all calls that are not over, and the one lock around them.

Whose turn it is: jobs that do not grow yet, by owner, so that many rows of one do not keep others waiting.

Two turns are taken. To be planned, owners come round robin, row by row, and none is planned far ahead: a planned row
holds its adapter in memory. To join the batch, the owner with the fewest lines in it comes first (max-min fairness),
and the last free lines are for owners who have none.

A call and its requests on their way from the caller to the model and back.

How long it is until a row that waits now has its turn, from how long rows took so far.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from threading import Condition, Event
from typing import Literal

from errors import BusyError, PromptOrTuneError
from serve.engine.config import EngineConfig, EnginePhase, EngineStatus
from serve.engine.input_processor import PreparedRequest
from serve.engine.output_stream import OutputQueue
from serve.types import Request, RequestOutput, SamplingParams

BatchMode = Literal["step", "beam"]


@dataclass(eq=False, slots=True)
class ScheduledRequest:
    """One request of a call. Times are of `time.monotonic`, in seconds.

    "waiting" to be planned, in "planning", "planned" and waiting for the batch, "flying" in it, "done".
    """

    request_batch: RequestBatch
    index: int
    key: int
    num_seqs: int
    group: StartGroup
    status: Literal["waiting", "planning", "planned", "flying", "done"] = "waiting"
    prepared: PreparedRequest | None = None
    start_time: float = 0.0
    first_token_time: float | None = None
    deferred_since: float | None = None


@dataclass(eq=False, slots=True)
class StartGroup:
    """Jobs of one call that fit the batch together, so they start together: once none of them is `unplanned`.

    A `scattered` group starts job by job: its adapters did not all fit in memory at once.
    """

    requests: list[ScheduledRequest]
    num_unprepared: int = 0
    started: bool = False
    split: bool = False


class RequestBatch:
    """What one caller asked for at once. `open` jobs have no answer yet; a `fault` while planning ends them all."""

    def __init__(
        self,
        requests: Sequence[Request],
        sampling_params: SamplingParams,
        owner: str | int,
        cancel: Event,
        output_queue: OutputQueue,
        arrival_time: float,
    ) -> None:
        self.requests = tuple(requests)
        self.sampling_params = sampling_params
        self.owner = owner
        self.mode: BatchMode = "beam" if sampling_params.mode == "beam" else "step"
        self.cancel = cancel
        self.output_queue = output_queue
        self.arrival_time = arrival_time
        self.scheduled: list[ScheduledRequest] = []
        self.num_unfinished = len(self.requests)
        self.abandoned = False
        self.exception: Exception | None = None

    @property
    def is_aborted(self) -> bool:
        """Whether nobody waits for the rest."""
        return self.abandoned or self.cancel.is_set()

    def make_start_groups(self, keys: Iterator[int], max_seqs: int) -> list[StartGroup]:
        """Makes the call's jobs, in groups of at most `most` lines (or of one job that has more)."""
        each = self.sampling_params.candidates
        size = max(1, max_seqs // each)
        groups = []
        for start in range(0, len(self.requests), size):
            group = StartGroup([])
            for index in range(start, min(start + size, len(self.requests))):
                group.requests.append(ScheduledRequest(self, index, next(keys), each, group))
            group.num_unprepared = len(group.requests)
            self.scheduled.extend(group.requests)
            groups.append(group)
        return groups


@dataclass(eq=False, slots=True)
class OwnerQueue:
    """One owner's jobs, `jobs` in all: `ahead` are with the planner or planned, `lines` grow. `turn` is its last."""

    owner: str | int
    waiting: deque[ScheduledRequest] = field(default_factory=deque)
    ready: dict[BatchMode, deque[ScheduledRequest]] = field(default_factory=lambda: {"step": deque(), "beam": deque()})
    num_requests: int = 0
    prepared: int = 0
    num_seqs: int = 0
    last_turn: int = 0
    deferred: bool = False

    def peek(self, mode: BatchMode) -> ScheduledRequest | None:
        """The next job that may join; those that were given up meanwhile are cleared away."""
        waiting = self.ready[mode]
        while waiting and waiting[0].status == "done":
            waiting.popleft()
        return waiting[0] if waiting else None


class FairScheduler:
    """All jobs from their call to their end. Not thread-safe: the scheduler holds its lock."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._queues: dict[str | int, OwnerQueue] = {}
        self._round_robin: deque[OwnerQueue] = deque()
        self._turn_counter = count(1)
        self.waiting = 0
        self.running = 0
        self.num_seqs = 0
        self.ready: dict[BatchMode, int] = {"step": 0, "beam": 0}

    def add(self, groups: Iterable[StartGroup]) -> None:
        """Takes in a call's groups; an owner's jobs keep their order."""
        for group in groups:
            owner = group.requests[0].request_batch.owner
            lane = self._queues.get(owner)
            if lane is None:
                lane = self._queues[owner] = OwnerQueue(owner, last_turn=next(self._turn_counter))
                self._round_robin.append(lane)
            lane.waiting.extend(group.requests)
            lane.num_requests += len(group.requests)
            self.waiting += len(group.requests)

    def next_to_prepare(self) -> ScheduledRequest | None:
        """The next job to be planned, or None where none may be now."""
        for _ in range(len(self._round_robin)):
            lane = self._round_robin[0]
            self._round_robin.rotate(-1)
            while lane.waiting and lane.waiting[0].status == "done":
                lane.waiting.popleft()
            if not lane.waiting or lane.deferred:
                continue
            job = lane.waiting[0]
            if not job.group.started and lane.prepared >= self._config.max_num_seqs:
                continue
            lane.waiting.popleft()
            lane.prepared += 1
            job.status, job.group.started = "planning", True
            return job
        return None

    def mark_ready(self, request: ScheduledRequest) -> None:
        """The job's plan is made; it may join when all of its group may."""
        request.status = "planned"
        request.group.num_unprepared -= 1
        if request.group.split:
            self._enqueue(request)
        elif not request.group.num_unprepared:
            self._enqueue_group(request.group)

    def defer(self, request: ScheduledRequest) -> None:
        """The job's adapter has no room in memory: its owner waits, and what is planned of its group goes ahead."""
        lane = self._queues[request.request_batch.owner]
        request.status = "waiting"
        lane.prepared -= 1
        lane.waiting.appendleft(request)
        lane.deferred = True
        if not request.group.split:
            request.group.split = True
            self._enqueue_group(request.group)

    def retry_deferred(self) -> None:
        """Memory may have room again."""
        for lane in self._round_robin:
            lane.deferred = False

    @property
    def has_deferred(self) -> bool:
        """Whether a job waits for room in memory."""
        return any(lane.deferred for lane in self._round_robin)

    def next_to_run(
        self, mode: BatchMode, running_seqs: int, sampling_params: SamplingParams | None = None
    ) -> ScheduledRequest | None:
        """The job that joins the batch of `in_flight` lines next, or None; one of this `decoding` where it is given.

        The one whose turn it is keeps it until there is room, so that rows with many lines come in too.
        """
        best: tuple[int, int] | None = None
        chosen: tuple[OwnerQueue, ScheduledRequest] | None = None
        for lane in self._round_robin if self.ready[mode] else ():
            head = lane.peek(mode)
            if head is None or (sampling_params is not None and head.request_batch.sampling_params != sampling_params):
                continue
            if best is None or (lane.num_seqs, lane.last_turn) < best:
                best, chosen = (lane.num_seqs, lane.last_turn), (lane, head)
        if chosen is None:
            return None
        lane, job = chosen
        if running_seqs and running_seqs + job.num_seqs > self._max_seqs(mode, lane):
            return None
        lane.ready[mode].popleft()
        self.ready[mode] -= 1
        lane.prepared -= 1
        lane.num_seqs += job.num_seqs
        self.num_seqs += job.num_seqs
        lane.last_turn = next(self._turn_counter)
        self.waiting -= 1
        self.running += 1
        job.status = "flying"
        return job

    def finish(self, request: ScheduledRequest) -> None:
        """The job has its answer, or nobody waits for it, wherever it was."""
        lane = self._queues[request.request_batch.owner]
        if request.status == "flying":
            lane.num_seqs -= request.num_seqs
            self.num_seqs -= request.num_seqs
            self.running -= 1
        else:
            self.waiting -= 1
            if request.status in ("planning", "planned"):
                lane.prepared -= 1
            if request.status in ("waiting", "planning"):
                request.group.num_unprepared -= 1
            elif request.group.split or not request.group.num_unprepared:
                self.ready[request.request_batch.mode] -= 1
        before, request.status = request.status, "done"
        if before in ("waiting", "planning") and not request.group.num_unprepared and not request.group.split:
            self._enqueue_group(request.group)
        lane.num_requests -= 1
        if not lane.num_requests:
            del self._queues[lane.owner]
            self._round_robin.remove(lane)

    def _max_seqs(self, mode: BatchMode, queue: OwnerQueue) -> int:
        if mode == "beam":
            return self._config.max_num_beam_seqs
        return self._config.max_num_seqs - (self._config.num_reserved_seqs if queue.num_seqs else 0)

    def _enqueue_group(self, group: StartGroup) -> None:
        for job in group.requests:
            if job.status == "planned":
                self._enqueue(job)

    def _enqueue(self, request: ScheduledRequest) -> None:
        self._queues[request.request_batch.owner].ready[request.request_batch.mode].append(request)
        self.ready[request.request_batch.mode] += 1


_INITIAL_SECONDS = 5.0
_SMOOTHING = 0.1


class WaitEstimator:
    """A moving average of the seconds that rows take in the batch."""

    def __init__(self) -> None:
        self._mean_seconds = _INITIAL_SECONDS
        self._has_observations = False

    def observe(self, seconds: float) -> None:
        """A row has its answer after so many seconds in the batch."""
        if not self._has_observations:
            self._mean_seconds, self._has_observations = seconds, True
        self._mean_seconds += _SMOOTHING * (seconds - self._mean_seconds)

    def estimate(self, rows: int, concurrency: int) -> float:
        """Seconds until so many more rows have ended, where `together` of them grow at a time (Little's law)."""
        return rows * self._mean_seconds / max(1, concurrency)


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
