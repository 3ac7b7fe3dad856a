"""Whose turn it is: jobs that do not grow yet, by owner, so that many rows of one do not keep others waiting.

Two turns are taken. To be planned, owners come round robin, row by row, and none is planned far ahead: a planned row
holds its adapter in memory. To join the batch, the owner with the fewest lines in it comes first (max-min fairness),
and the last free lines are for owners who have none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count

from serve.rows import SamplingParams
from serve.scheduling.jobs import BatchMode, ScheduledRequest, StartGroup
from serve.scheduling.limits import EngineConfig


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
