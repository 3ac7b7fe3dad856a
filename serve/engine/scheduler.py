"""Request scheduler: waiting, ready and running requests, fair sharing between owners, wait estimate.

A request is "waiting" until the input thread takes it, "preparing" while its prompt is rendered and its adapter
loaded, "ready" until there is room in the batch, "running" in the batch, and then "finished".

Two decisions are made here. Which request is prepared next: round robin over owners, one request at a time, and only
a limited number ahead, because a prepared request holds its adapter in memory. Which ready request starts next: that
of the owner with the fewest running sequences (max-min fairness); the last free sequences are reserved for owners
without any.

RequestQueue holds this state under one lock, which the threads of engine_core share.
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
RequestStatus = Literal["waiting", "preparing", "ready", "running", "finished"]


@dataclass(eq=False, slots=True)
class ScheduledRequest:
    """One request of a call with its scheduling state. Times are seconds of `time.monotonic`.

    `index` is its index in the call, `key` its unique number in the engine, `num_seqs` its number of sequences.
    `deferred_since` is when its adapter first found no memory.
    """

    request_batch: RequestBatch
    index: int
    key: int
    num_seqs: int
    group: StartGroup
    status: RequestStatus = "waiting"
    prepared: PreparedRequest | None = None
    start_time: float = 0.0
    first_token_time: float | None = None
    deferred_since: float | None = None


@dataclass(eq=False, slots=True)
class StartGroup:
    """Requests of one call that fit into the batch together and therefore start together.

    They start once `num_unprepared` is 0, so that a comparison of methods shows all columns from its first token on.
    The requests of a `split` group start one by one, because their adapters did not fit in memory together: waiting
    for the last one would then hold the memory that it needs. `started` means that preparation has begun.
    """

    requests: list[ScheduledRequest]
    num_unprepared: int = 0
    started: bool = False
    split: bool = False


class RequestBatch:
    """One call: the requests that a caller submitted together.

    `num_unfinished` requests have no output yet. An `exception` raised during preparation ends all of them.
    """

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
        """Whether the caller cancelled the call or dropped its stream."""
        return self.abandoned or self.cancel.is_set()

    def make_start_groups(self, keys: Iterator[int], max_seqs: int) -> list[StartGroup]:
        """Create the scheduled requests in groups of at most `max_seqs` sequences.

        A request with more sequences than that is a group of its own.
        """
        num_seqs = self.sampling_params.candidates
        size = max(1, max_seqs // num_seqs)
        groups = []
        for start in range(0, len(self.requests), size):
            group = StartGroup([])
            for index in range(start, min(start + size, len(self.requests))):
                group.requests.append(ScheduledRequest(self, index, next(keys), num_seqs, group))
            group.num_unprepared = len(group.requests)
            self.scheduled.extend(group.requests)
            groups.append(group)
        return groups


@dataclass(eq=False, slots=True)
class OwnerQueue:
    """Requests of one owner.

    `num_requests` are unfinished; `prepared` of them are preparing or ready; `num_seqs` sequences are running.
    `last_turn` is the number of the turn in which the owner last started a request: among owners with equally many
    sequences the smallest comes first. `deferred` means that the next request waits for adapter memory.
    """

    owner: str | int
    waiting: deque[ScheduledRequest] = field(default_factory=deque)
    ready: dict[BatchMode, deque[ScheduledRequest]] = field(default_factory=lambda: {"step": deque(), "beam": deque()})
    num_requests: int = 0
    prepared: int = 0
    num_seqs: int = 0
    last_turn: int = 0
    deferred: bool = False

    def peek(self, mode: BatchMode) -> ScheduledRequest | None:
        """Return the next ready request, after removing those that were cancelled while ready."""
        ready = self.ready[mode]
        # finish() leaves a cancelled request in its deque, because removal from the middle would take linear time.
        while ready and ready[0].status == "finished":
            ready.popleft()
        return ready[0] if ready else None


class FairScheduler:
    """State of all unfinished requests and the order in which they proceed.

    Not thread-safe: every call is made under the lock of the RequestQueue. The counters `waiting` (every request
    that is not running yet), `running`, `num_seqs` and `ready` are updated with each change of a status.
    """

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
        """Queue the groups of a call behind earlier requests of the same owner."""
        for group in groups:
            owner = group.requests[0].request_batch.owner
            queue = self._queues.get(owner)
            if queue is None:
                queue = self._queues[owner] = OwnerQueue(owner, last_turn=next(self._turn_counter))
                self._round_robin.append(queue)
            queue.waiting.extend(group.requests)
            queue.num_requests += len(group.requests)
            self.waiting += len(group.requests)

    def next_to_prepare(self) -> ScheduledRequest | None:
        """Return the next request to prepare, now "preparing", or None if none may be prepared now."""
        for _ in range(len(self._round_robin)):
            queue = self._round_robin[0]
            self._round_robin.rotate(-1)
            while queue.waiting and queue.waiting[0].status == "finished":
                queue.waiting.popleft()
            if not queue.waiting or queue.deferred:
                continue
            request = queue.waiting[0]
            # The limit applies to whole groups: a group that has begun is prepared to its end, since none of its
            # requests can start before the last one is ready.
            if not request.group.started and queue.prepared >= self._config.max_num_seqs:
                continue
            queue.waiting.popleft()
            queue.prepared += 1
            request.status, request.group.started = "preparing", True
            return request
        return None

    def mark_ready(self, request: ScheduledRequest) -> None:
        """Record that `request` is prepared; it may start as soon as its whole group is."""
        request.status = "ready"
        request.group.num_unprepared -= 1
        if request.group.split:
            self._enqueue(request)
        elif not request.group.num_unprepared:
            self._enqueue_group(request.group)

    def defer(self, request: ScheduledRequest) -> None:
        """Return `request` to the front of its queue, because its adapter does not fit in memory now.

        Nothing of its owner is prepared until `retry_deferred`, to keep the owner's order. Its group is split: the
        ready requests start now, and the adapters that they release may be what this request waits for.
        """
        queue = self._queues[request.request_batch.owner]
        request.status = "waiting"
        queue.prepared -= 1
        queue.waiting.appendleft(request)
        queue.deferred = True
        if not request.group.split:
            request.group.split = True
            self._enqueue_group(request.group)

    def retry_deferred(self) -> None:
        """Allow preparation for the owners whose next request was deferred."""
        for queue in self._round_robin:
            queue.deferred = False

    @property
    def has_deferred(self) -> bool:
        """Whether an owner's next request waits for adapter memory."""
        return any(queue.deferred for queue in self._round_robin)

    def next_to_run(
        self, mode: BatchMode, running_seqs: int, sampling_params: SamplingParams | None = None
    ) -> ScheduledRequest | None:
        """Return the request that starts next, now "running", or None if none is ready or it does not fit.

        `running_seqs` is the number of sequences in the batch of this mode. With `sampling_params` only requests with
        equal ones are considered. If the request whose turn it is does not fit, no smaller one is chosen instead;
        otherwise a stream of small requests could keep one with many sequences out for ever.
        """
        best: tuple[int, int] | None = None
        chosen: tuple[OwnerQueue, ScheduledRequest] | None = None
        for queue in self._round_robin if self.ready[mode] else ():
            head = queue.peek(mode)
            if head is None or (sampling_params is not None and head.request_batch.sampling_params != sampling_params):
                continue
            if best is None or (queue.num_seqs, queue.last_turn) < best:
                best, chosen = (queue.num_seqs, queue.last_turn), (queue, head)
        if chosen is None:
            return None
        queue, request = chosen
        # An empty batch takes any request: one with more sequences than the limit could not start otherwise.
        if running_seqs and running_seqs + request.num_seqs > self._max_seqs(mode, queue):
            return None
        queue.ready[mode].popleft()
        self.ready[mode] -= 1
        queue.prepared -= 1
        queue.num_seqs += request.num_seqs
        self.num_seqs += request.num_seqs
        queue.last_turn = next(self._turn_counter)
        self.waiting -= 1
        self.running += 1
        request.status = "running"
        return request

    def finish(self, request: ScheduledRequest) -> None:
        """Mark `request` as finished and adjust the counters of the state that it was in."""
        queue = self._queues[request.request_batch.owner]
        if request.status == "running":
            queue.num_seqs -= request.num_seqs
            self.num_seqs -= request.num_seqs
            self.running -= 1
        else:
            self.waiting -= 1
            if request.status in ("preparing", "ready"):
                queue.prepared -= 1
            if request.status in ("waiting", "preparing"):
                request.group.num_unprepared -= 1
            elif request.group.split or not request.group.num_unprepared:
                # Counted in `ready` only if it had been enqueued: a ready request whose group is incomplete is not.
                self.ready[request.request_batch.mode] -= 1
        before, request.status = request.status, "finished"
        if before in ("waiting", "preparing") and not request.group.num_unprepared and not request.group.split:
            # It was the last unprepared request of its group; the others need not wait for it any more.
            self._enqueue_group(request.group)
        queue.num_requests -= 1
        if not queue.num_requests:
            del self._queues[queue.owner]
            self._round_robin.remove(queue)

    def _max_seqs(self, mode: BatchMode, queue: OwnerQueue) -> int:
        if mode == "beam":
            return self._config.max_num_beam_seqs
        return self._config.max_num_seqs - (self._config.num_reserved_seqs if queue.num_seqs else 0)

    def _enqueue_group(self, group: StartGroup) -> None:
        for request in group.requests:
            if request.status == "ready":
                self._enqueue(request)

    def _enqueue(self, request: ScheduledRequest) -> None:
        self._queues[request.request_batch.owner].ready[request.request_batch.mode].append(request)
        self.ready[request.request_batch.mode] += 1


_INITIAL_SECONDS = 5.0
_SMOOTHING = 0.1


class WaitEstimator:
    """Estimate of the waiting time, from a moving average of the seconds that a row takes in the batch."""

    def __init__(self) -> None:
        self._mean_seconds = _INITIAL_SECONDS
        self._has_observations = False

    def observe(self, seconds: float) -> None:
        """Add the seconds that an answered row spent in the batch."""
        if not self._has_observations:
            self._mean_seconds, self._has_observations = seconds, True
        self._mean_seconds += _SMOOTHING * (seconds - self._mean_seconds)

    def estimate(self, rows: int, concurrency: int) -> float:
        """Return the seconds until `rows` more rows have ended, `concurrency` of them at a time (Little's law)."""
        return rows * self._mean_seconds / max(1, concurrency)


class RequestQueue:
    """Unfinished calls, their scheduler and the lock that guards both.

    `condition` is notified on every change that may give a waiting thread work. Its lock is reentrant, because the
    garbage collector may close an engine in any thread, also in one that holds the lock.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.condition = Condition()
        self.config = config
        self.scheduler = FairScheduler(config)
        # A dict as an ordered set: calls are visited in the order of their arrival.
        self.request_batches: dict[RequestBatch, None] = {}
        self.wait_estimator = WaitEstimator()
        self.closed = False
        self.aborting = False
        self._row_keys = count()

    def add(self, request_batch: RequestBatch) -> None:
        """Queue a call; raises BusyError, with nothing changed, if more rows than `max_queued` would wait."""
        with self.condition:
            if self.closed:
                raise PromptOrTuneError("The engine was closed: start it again.")
            rows, waiting = len(request_batch.requests), self.scheduler.waiting
            # A call larger than the whole queue is accepted if the queue is empty: its rows are in the caller's
            # memory anyway (an evaluation submits thousands), and it could never be accepted otherwise.
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
        """Mark the call as abandoned; with `immediately` also set its cancel event and wake the engine.

        Without `immediately` no lock is taken: the garbage collector may be the caller, in a thread that holds any
        lock. The engine then notices the flag when it next polls.
        """
        request_batch.abandoned = True
        if immediately:
            if request_batch in self.request_batches:
                request_batch.cancel.set()
            with self.condition:
                self.condition.notify_all()

    def finish(self, request: ScheduledRequest) -> None:
        """Mark the request as finished, in whatever state it was, and release its adapter."""
        with self.condition:
            self.scheduler.finish(request)
            request_batch = request.request_batch
            request_batch.num_unfinished -= 1
            if not request_batch.num_unfinished:
                self.request_batches.pop(request_batch, None)
            self.condition.notify_all()
        if request.prepared is not None:
            request.prepared.release()

    def reject(self, scheduled: ScheduledRequest, error: PromptOrTuneError) -> bool:
        """Finish a request that cannot be prepared with `error`; returns False if it was finished before."""
        request_batch = scheduled.request_batch
        with self.condition:
            if scheduled.status == "finished":
                return False
            self.finish(scheduled)
        waited = time.monotonic() - request_batch.arrival_time
        request = request_batch.requests[scheduled.index]
        request_batch.output_queue.put(
            [RequestOutput(scheduled.index, request, error=str(error), exception=error, queued_seconds=waited)]
        )
        return True

    def mark_ready(self, request: ScheduledRequest, prepared: PreparedRequest) -> None:
        """Store the prepared input; its adapter is released if the request was cancelled in the meantime."""
        with self.condition:
            if request.status == "preparing":
                request.prepared = prepared
                self.scheduler.mark_ready(request)
                self.condition.notify_all()
                return
        prepared.release()

    def fail(self, request_batch: RequestBatch, exception: Exception) -> None:
        """End the call with an exception for its caller; none of its rows may be in a batch any more."""
        with self.condition:
            for request in request_batch.scheduled:
                if request.status != "finished":
                    self.finish(request)
        request_batch.output_queue.fail(exception)

    def close(self, abort_running: bool) -> None:
        """Refuse further calls and cancel requests that are not running; with `abort_running` the running ones too."""
        with self.condition:
            self.closed = True
            self.aborting |= abort_running
            self.condition.notify_all()

    def status(self) -> EngineStatus:
        """Return the current load."""
        with self.condition:
            waiting, num_seqs = self.scheduler.waiting, self.scheduler.num_seqs
            has_room = not waiting and num_seqs < self.config.max_num_seqs
            seconds = 0.0 if has_room else self.wait_estimator.estimate(waiting + 1, self.scheduler.running)
            if self.closed:
                return EngineStatus(waiting, num_seqs, seconds, "closed")
            phase: EnginePhase = "generating" if num_seqs else "preparing" if waiting else "idle"
            return EngineStatus(waiting, num_seqs, seconds, phase)

    def _max_group_seqs(self, request_batch: RequestBatch) -> int:
        """Return how many sequences of one call can start together."""
        if request_batch.mode == "beam":
            return self.config.max_num_beam_seqs
        return self.config.max_num_seqs - self.config.num_reserved_seqs
