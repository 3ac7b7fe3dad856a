"""The thread that makes rows ready while others grow: examples, prompts, adapters from disk."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

from errors import BusyError, PeftArenaError
from serve.metrics import Metrics
from serve.planning import Plan
from serve.rows import Decoding, Request
from serve.scheduling.board import Board
from serve.scheduling.jobs import Job

# How soon memory is asked again for an adapter that found no room.
_RETRY_SECONDS = 0.02
T = TypeVar("T")


class Preparer:
    """Plans the jobs of a board, and runs what else must not run in the thread of the model."""

    def __init__(self, board: Board, plan: Callable[[int, Request, Decoding], Plan], metrics: Metrics) -> None:
        self._board = board
        self._plan = plan
        self._metrics = metrics
        self._tasks: deque[Callable[[], None]] = deque()
        self._tried = 0.0
        self.thread = Thread(target=self._run, name="prepare", daemon=True)

    def run(self, work: Callable[[], T]) -> T:
        """Calls `work` in this thread, before the next row, and waits for what it gives."""
        future: Future[T] = Future()

        def task() -> None:
            try:
                future.set_result(work())
            except BaseException as fault:  # noqa: BLE001 - it is raised where `run` was called
                future.set_exception(fault)

        with self._board.changed:
            if self._board.closed:
                raise PeftArenaError("The engine was closed: start it anew.")
            self._tasks.append(task)
            self._board.changed.notify_all()
        return future.result()

    def _run(self) -> None:
        while (work := self._next()) is not None:
            if isinstance(work, Job):
                self._prepare(work)
            else:
                work()

    def _next(self) -> Job | Callable[[], None] | None:
        """What is to be done next; waits for it. None when the board is closed and all tasks are done."""
        board = self._board
        with board.changed:
            while True:
                if self._tasks:
                    return self._tasks.popleft()
                if board.closed:
                    return None
                stalled = board.lanes.stalled
                if stalled and time.monotonic() - self._tried >= _RETRY_SECONDS:
                    board.lanes.retry()
                    self._tried = time.monotonic()
                job = board.lanes.next_to_plan()
                if job is not None:
                    return job
                board.changed.wait(_RETRY_SECONDS if stalled else None)

    def _prepare(self, job: Job) -> None:
        call = job.call
        if call.stopped:
            return  # the other thread takes it off the board
        try:
            plan = self._plan(job.index, call.requests[job.index], call.decoding)
        except BusyError as fault:
            self._stall(job, fault)
        except PeftArenaError as fault:
            self._refuse(job, fault)
        except Exception as fault:  # noqa: BLE001 - a defect of ours: whoever asked hears of it
            with self._board.changed:
                call.fault = fault
                self._board.changed.notify_all()
        else:
            self._board.planned(job, plan)

    def _stall(self, job: Job, fault: BusyError) -> None:
        """Its adapter finds no room in memory: it waits for one to leave, but not for ever."""
        now = time.monotonic()
        with self._board.changed:
            job.stalled = job.stalled or now
            if now - job.stalled < self._board.limits.adapter_seconds:
                if job.phase == "planning":
                    self._board.lanes.stall(job)
                    self._board.changed.notify_all()
                return
        self._refuse(job, fault)

    def _refuse(self, job: Job, fault: PeftArenaError) -> None:
        if self._board.refuse(job, fault):
            self._metrics.ended("refused", time.monotonic() - job.call.asked)
