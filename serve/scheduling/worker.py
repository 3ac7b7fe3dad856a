"""The thread that runs the model: rows that nobody waits for leave, rows that are ready join, all take a step."""

from __future__ import annotations

import time
from dataclasses import replace
from threading import Thread

from errors import PeftArenaError
from serve.metrics import Metrics, Outcome
from serve.rows import Answer, Backend, Decoding, Finished, Partial
from serve.scheduling.board import Board
from serve.scheduling.jobs import Call, Job, Mode
from serve.scheduling.mailbox import Event
from serve.scheduling.open_batch import OpenBatch

# How soon a caller's event is noticed while nothing grows.
_LOOK_SECONDS = 0.02


class Worker:
    """One batch that stays open for greedy decoding and sampling, and at most one beam search, stepped in turn."""

    def __init__(self, board: Board, backend: Backend, metrics: Metrics) -> None:
        self._board = board
        self._backend = backend
        self._metrics = metrics
        self._batches: dict[Mode, OpenBatch] = {}
        self.thread = Thread(target=self._run, name="generate", daemon=True)

    def _run(self) -> None:
        try:
            while self._wait():
                self._advance("step")
                self._advance("beam")
        except Exception as fault:
            # A defect of ours must not leave callers waiting for ever.
            self._board.close(abandon=True)
            for call in list(self._board.calls):
                self._board.fail(call, fault)
            raise
        finally:
            self._batches.clear()

    def _wait(self) -> bool:
        """Takes out what nobody waits for, and waits for something to do; False when nothing more will come."""
        board = self._board
        with board.changed:
            while True:
                self._sweep()
                if any(batch.jobs for batch in self._batches.values()) or any(board.lanes.ready.values()):
                    return True
                if board.closed and not board.calls:
                    return False
                board.changed.wait(_LOOK_SECONDS if board.calls else None)

    def _sweep(self) -> None:
        board = self._board
        for call in [call for call in board.calls if call.stopped or call.fault is not None or board.closed]:
            if call.fault is not None:
                for job in call.jobs:
                    self._take_out(job)
                self._fail(call, call.fault)
                continue
            for job in call.jobs:
                if job.phase not in ("flying", "done"):
                    self._end(job, "cancelled", replace(_known(job), cancelled=True))
                elif call.stopped or board.abandoned:
                    finished = self._take_out(job)
                    if finished is not None:
                        call.mailbox.put([self._land(job, finished)])

    def _take_out(self, job: Job) -> Finished | None:
        """Takes a row that grows out of its batch; None where it does not grow."""
        if job.phase != "flying":
            return None
        try:
            return self._batches[job.call.mode].cancel(job)
        except Exception as fault:  # noqa: BLE001 - as where a step fails
            self._crash(job.call.mode, fault)
            return None

    def _advance(self, mode: Mode) -> None:
        """Lets rows join where they may, and takes one step."""
        with self._board.changed:
            joining = self._joining(mode)
            if joining:
                self._board.changed.notify_all()  # an owner with fewer rows made ready may have the next one planned
        for job in joining:
            self._join(job)
        batch = self._batches.get(mode)
        if batch is None or not batch.jobs:
            return
        begin, lines = time.monotonic(), len(batch)
        try:
            events = batch.step()
        except Exception as fault:  # noqa: BLE001 - whatever it is, it ends this batch alone
            self._crash(mode, fault)
            return
        self._metrics.stepped(lines, time.monotonic() - begin)
        self._deliver(events)

    def _joining(self, mode: Mode) -> list[Job]:
        """The jobs that join now. A beam search takes in rows of one decoding, before its first step alone."""
        lanes, batch = self._board.lanes, self._batches.get(mode)
        in_flight = 0 if batch is None else len(batch)
        if batch is not None and batch.jobs and (mode == "beam" or not batch.joins):
            return []
        if mode == "beam":
            self._batches.pop(mode, None)
        joining: list[Job] = []
        alike: Decoding | None = None
        while (job := lanes.next_to_join(mode, in_flight, alike)) is not None:
            joining.append(job)
            in_flight += job.lines
            alike = job.call.decoding if mode == "beam" else None
        if joining:
            self._board.changed.notify_all()  # their owners may be planned further ahead
        return joining

    def _join(self, job: Job) -> None:
        call, now = job.call, time.monotonic()
        if job.plan is None or job.phase == "done":
            return  # its call failed while others of it joined
        try:
            if call.mode not in self._batches:
                self._batches[call.mode] = OpenBatch(self._backend.open_batch(call.mode))
            self._batches[call.mode].add(job)
        except PeftArenaError as fault:
            self._end(job, "refused", replace(_known(job), error=str(fault), fault=fault))
        except Exception as fault:  # noqa: BLE001 - as where a step fails
            self._crash(call.mode, fault)
            self._fail(call, fault)
        else:
            job.began = now
            self._metrics.joined(now - call.asked, job.plan.answer.prompt_tokens)

    def _deliver(self, events: list[tuple[Job, Partial | Finished]]) -> None:
        """Puts what a step gave into the callers' mailboxes, each opened once."""
        news: dict[Call, list[Event]] = {}
        now = time.monotonic()
        for job, event in events:
            said = not isinstance(event, Finished) or bool(event.candidates)
            if said and job.first is None:
                job.first = now
                self._metrics.first_token(now - job.call.asked)
            if isinstance(event, Finished):
                news.setdefault(job.call, []).append(self._land(job, event))
            elif job.call.mailbox.wants_partials:
                partial = Partial(job.index, event.text, event.tokens, event.candidate)
                news.setdefault(job.call, []).append(partial)
        for call, own in news.items():
            call.mailbox.put(own)

    def _land(self, job: Job, finished: Finished) -> Answer:
        """The whole answer of a row that has left the batch."""
        now = time.monotonic()
        known = _known(job)
        answer = replace(
            known,
            candidates=finished.candidates,
            samples=finished.samples,
            cancelled=finished.cancelled,
            error=finished.error,
            notes=(*known.notes, *finished.notes),
            seconds=now - job.began,
            first_token_seconds=0.0 if job.first is None else job.first - job.began,
        )
        outcome: Outcome = "failed" if finished.error else "cancelled" if finished.cancelled else "answered"
        if outcome == "answered":
            self._board.pace.landed(answer.seconds)
        tokens = sum(each.tokens for each in finished.samples or finished.candidates)
        self._metrics.ended(outcome, now - job.call.asked, tokens)
        self._board.leave(job)
        return answer

    def _end(self, job: Job, outcome: Outcome, answer: Answer) -> None:
        """A row that never joined has its answer."""
        self._metrics.ended(outcome, time.monotonic() - job.call.asked)
        self._board.leave(job)
        job.call.mailbox.put([answer])

    def _crash(self, mode: Mode, fault: Exception) -> None:
        """The batch is lost with all that was in it; the next row opens another."""
        self._metrics.fault()
        batch = self._batches.pop(mode, None)
        for call in {} if batch is None else {job.call: None for job in batch.jobs.values()}:
            self._fail(call, fault)

    def _fail(self, call: Call, fault: Exception) -> None:
        for job in call.jobs:
            if job.phase != "done":
                self._metrics.ended("failed", time.monotonic() - call.asked)
        self._board.fail(call, fault)


def _known(job: Job) -> Answer:
    """What is known of a job's answer before it has said anything."""
    call = job.call
    known = job.plan.answer if job.plan else Answer(job.index, call.requests[job.index])
    return replace(known, queued_seconds=(job.began or time.monotonic()) - call.asked)
