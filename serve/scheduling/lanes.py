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

from serve.rows import Decoding
from serve.scheduling.jobs import Group, Job, Mode
from serve.scheduling.limits import EngineLimits


@dataclass(eq=False, slots=True)
class _Lane:
    """One owner's jobs, `jobs` in all: `ahead` are with the planner or planned, `lines` grow. `turn` is its last."""

    owner: str | int
    unplanned: deque[Job] = field(default_factory=deque)
    ready: dict[Mode, deque[Job]] = field(default_factory=lambda: {"step": deque(), "beam": deque()})
    jobs: int = 0
    ahead: int = 0
    lines: int = 0
    turn: int = 0
    stalled: bool = False

    def head(self, mode: Mode) -> Job | None:
        """The next job that may join; those that were given up meanwhile are cleared away."""
        waiting = self.ready[mode]
        while waiting and waiting[0].phase == "done":
            waiting.popleft()
        return waiting[0] if waiting else None


class Lanes:
    """All jobs from their call to their end. Not thread-safe: the scheduler holds its lock."""

    def __init__(self, limits: EngineLimits) -> None:
        self._limits = limits
        self._lanes: dict[str | int, _Lane] = {}
        self._turns: deque[_Lane] = deque()
        self._counter = count(1)
        self.waiting = 0
        self.flying = 0
        self.lines = 0
        self.ready: dict[Mode, int] = {"step": 0, "beam": 0}

    def add(self, groups: Iterable[Group]) -> None:
        """Takes in a call's groups; an owner's jobs keep their order."""
        for group in groups:
            owner = group.jobs[0].call.owner
            lane = self._lanes.get(owner)
            if lane is None:
                lane = self._lanes[owner] = _Lane(owner, turn=next(self._counter))
                self._turns.append(lane)
            lane.unplanned.extend(group.jobs)
            lane.jobs += len(group.jobs)
            self.waiting += len(group.jobs)

    def next_to_plan(self) -> Job | None:
        """The next job to be planned, or None where none may be now."""
        for _ in range(len(self._turns)):
            lane = self._turns[0]
            self._turns.rotate(-1)
            while lane.unplanned and lane.unplanned[0].phase == "done":
                lane.unplanned.popleft()
            if not lane.unplanned or lane.stalled:
                continue
            job = lane.unplanned[0]
            if not job.group.started and lane.ahead >= self._limits.max_lines:
                continue
            lane.unplanned.popleft()
            lane.ahead += 1
            job.phase, job.group.started = "planning", True
            return job
        return None

    def planned(self, job: Job) -> None:
        """The job's plan is made; it may join when all of its group may."""
        job.phase = "planned"
        job.group.unplanned -= 1
        if job.group.scattered:
            self._release(job)
        elif not job.group.unplanned:
            self._release_all(job.group)

    def stall(self, job: Job) -> None:
        """The job's adapter has no room in memory: its owner waits, and what is planned of its group goes ahead."""
        lane = self._lanes[job.call.owner]
        job.phase = "waiting"
        lane.ahead -= 1
        lane.unplanned.appendleft(job)
        lane.stalled = True
        if not job.group.scattered:
            job.group.scattered = True
            self._release_all(job.group)

    def retry(self) -> None:
        """Memory may have room again."""
        for lane in self._turns:
            lane.stalled = False

    @property
    def stalled(self) -> bool:
        """Whether a job waits for room in memory."""
        return any(lane.stalled for lane in self._turns)

    def next_to_join(self, mode: Mode, in_flight: int, decoding: Decoding | None = None) -> Job | None:
        """The job that joins the batch of `in_flight` lines next, or None; one of this `decoding` where it is given.

        The one whose turn it is keeps it until there is room, so that rows with many lines come in too.
        """
        best: tuple[int, int] | None = None
        chosen: tuple[_Lane, Job] | None = None
        for lane in self._turns if self.ready[mode] else ():
            head = lane.head(mode)
            if head is None or (decoding is not None and head.call.decoding != decoding):
                continue
            if best is None or (lane.lines, lane.turn) < best:
                best, chosen = (lane.lines, lane.turn), (lane, head)
        if chosen is None:
            return None
        lane, job = chosen
        if in_flight and in_flight + job.lines > self._ceiling(mode, lane):
            return None
        lane.ready[mode].popleft()
        self.ready[mode] -= 1
        lane.ahead -= 1
        lane.lines += job.lines
        self.lines += job.lines
        lane.turn = next(self._counter)
        self.waiting -= 1
        self.flying += 1
        job.phase = "flying"
        return job

    def leave(self, job: Job) -> None:
        """The job has its answer, or nobody waits for it, wherever it was."""
        lane = self._lanes[job.call.owner]
        if job.phase == "flying":
            lane.lines -= job.lines
            self.lines -= job.lines
            self.flying -= 1
        else:
            self.waiting -= 1
            if job.phase in ("planning", "planned"):
                lane.ahead -= 1
            if job.phase in ("waiting", "planning"):
                job.group.unplanned -= 1
            elif job.group.scattered or not job.group.unplanned:
                self.ready[job.call.mode] -= 1
        before, job.phase = job.phase, "done"
        if before in ("waiting", "planning") and not job.group.unplanned and not job.group.scattered:
            self._release_all(job.group)
        lane.jobs -= 1
        if not lane.jobs:
            del self._lanes[lane.owner]
            self._turns.remove(lane)

    def _ceiling(self, mode: Mode, lane: _Lane) -> int:
        if mode == "beam":
            return self._limits.max_beam_lines
        return self._limits.max_lines - (self._limits.reserved_lines if lane.lines else 0)

    def _release_all(self, group: Group) -> None:
        for job in group.jobs:
            if job.phase == "planned":
                self._release(job)

    def _release(self, job: Job) -> None:
        self._lanes[job.call.owner].ready[job.call.mode].append(job)
        self.ready[job.call.mode] += 1
