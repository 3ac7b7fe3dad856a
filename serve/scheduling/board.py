"""What the threads of an engine share: all calls that are not over, and the one lock around them."""

from __future__ import annotations

import math
import time
from itertools import count
from threading import Condition

from errors import BusyError, PeftArenaError
from serve.planning import Plan
from serve.rows import Answer
from serve.scheduling.jobs import Call, Job
from serve.scheduling.lanes import Lanes
from serve.scheduling.limits import EngineLimits, EngineStatus, Phase
from serve.scheduling.pace import Pace


class Board:
    """Calls, their jobs, and whose turn it is.

    `changed` guards all of it and wakes whoever waits for work. It is reentrant: the garbage collector closes an engine
    that was dropped, in whatever thread it runs.
    """

    def __init__(self, limits: EngineLimits) -> None:
        self.changed = Condition()
        self.limits = limits
        self.lanes = Lanes(limits)
        self.calls: dict[Call, None] = {}
        self.pace = Pace()
        self.closed = False
        self.abandoned = False
        self._keys = count()

    def enter(self, call: Call) -> None:
        """Takes a call in; BusyError, with nothing changed, where its rows would be more than may wait."""
        with self.changed:
            if self.closed:
                raise PeftArenaError("The engine was closed: start it anew.")
            rows, waiting = len(call.requests), self.lanes.waiting
            # A call that alone is larger than the queue is its caller's own memory; it only may not come on top.
            if waiting and waiting + rows > self.limits.max_queued:
                seconds = self.pace.until(waiting + rows - self.limits.max_queued, self.lanes.flying)
                seconds = max(1.0, seconds)
                raise BusyError(
                    f"The queue is full ({waiting} rows wait): busy, about {math.ceil(seconds)} s.", seconds
                )
            if not rows:
                return
            self.calls[call] = None
            self.lanes.add(call.split(self._keys, self._most_lines(call)))
            self.changed.notify_all()

    def stop(self, call: Call, at_once: bool) -> None:
        """The caller waits no more. Where that is to be heard `at_once` its own event is set too.

        Else this takes no lock, because the garbage collector may call it wherever it runs; the worker looks often.
        """
        call.deserted = True
        if at_once:
            if call in self.calls:
                call.cancel.set()
            with self.changed:
                self.changed.notify_all()

    def leave(self, job: Job) -> None:
        """The job is over, wherever it was; what it holds is given back."""
        with self.changed:
            self.lanes.leave(job)
            call = job.call
            call.open -= 1
            if not call.open:
                self.calls.pop(call, None)
            self.changed.notify_all()
        if job.plan is not None:
            job.plan.release()

    def refuse(self, job: Job, fault: PeftArenaError) -> bool:
        """The job cannot be answered as it was asked; False where nobody waits for it any more."""
        call = job.call
        with self.changed:
            if job.phase == "done":
                return False
            self.leave(job)
        waited = time.monotonic() - call.asked
        request = call.requests[job.index]
        call.mailbox.put([Answer(job.index, request, error=str(fault), fault=fault, queued_seconds=waited)])
        return True

    def planned(self, job: Job, plan: Plan) -> None:
        """The job may join; where nobody waits for it any more the plan's adapter is given back."""
        with self.changed:
            if job.phase == "planning":
                job.plan = plan
                self.lanes.planned(job)
                self.changed.notify_all()
                return
        plan.release()

    def fail(self, call: Call, fault: Exception) -> None:
        """Ends the call with an exception for its caller; its rows are in no batch any more."""
        with self.changed:
            for job in call.jobs:
                if job.phase != "done":
                    self.leave(job)
        call.mailbox.fail(fault)

    def close(self, abandon: bool) -> None:
        """Takes nothing in any more; rows that wait are given up, and where all is abandoned those that grow too."""
        with self.changed:
            self.closed = True
            self.abandoned |= abandon
            self.changed.notify_all()

    def status(self) -> EngineStatus:
        """The load at this moment."""
        with self.changed:
            waiting, lines = self.lanes.waiting, self.lanes.lines
            free = not waiting and lines < self.limits.max_lines
            seconds = 0.0 if free else self.pace.until(waiting + 1, self.lanes.flying)
            if self.closed:
                return EngineStatus(waiting, lines, seconds, "closed")
            phase: Phase = "generating" if lines else "preparing" if waiting else "idle"
            return EngineStatus(waiting, lines, seconds, phase)

    def _most_lines(self, call: Call) -> int:
        """How many lines of one call can start together."""
        if call.mode == "beam":
            return self.limits.max_beam_lines
        return self.limits.max_lines - self.limits.reserved_lines
