"""The books of the scheduling, by chance: whatever comes, counts are right, order is kept and nobody is forgotten."""

from __future__ import annotations

import random
from itertools import count
from threading import Event

import pytest

from serve.engine.config import EngineConfig
from serve.engine.output_stream import OutputQueue, OutputStream
from serve.engine.scheduler import FairScheduler, RequestBatch, ScheduledRequest
from serve.types import PartialOutput, Request, RequestOutput, SamplingParams
from tasks.methods import parse_method
from tasks.problem import Problem

REQUEST = Request(Problem("p", "sort"), parse_method("zero-shot", ()))
LIMITS = EngineConfig(max_num_seqs=16, max_num_beam_seqs=12)


def call(owner: str, rows: int, decoding: SamplingParams) -> RequestBatch:
    return RequestBatch([REQUEST] * rows, decoding, owner, Event(), OutputQueue(rows), 0.0)


class Books:
    """Lanes, driven at random, beside the plainest account of the same."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.lanes = FairScheduler(LIMITS)
        self.keys = count()
        self.jobs: list[ScheduledRequest] = []

    def of(self, *phases: str) -> list[ScheduledRequest]:
        return [job for job in self.jobs if job.status in phases]

    def arrive(self) -> None:
        mode, most, width = self.chance.choice((("greedy", 14, 1), ("sample", 14, 3), ("beam", 12, 4)))
        decoding = SamplingParams(mode, candidates=width)  # type: ignore[arg-type]
        new = call(self.chance.choice("abcdef"), self.chance.randint(1, 20), decoding)
        self.lanes.add(new.make_start_groups(self.keys, most))
        self.jobs += new.scheduled

    def plan(self) -> None:
        job = self.lanes.next_to_prepare()
        if job is None:
            return
        assert job.status == "preparing"
        chance = self.chance.random()
        if chance < 0.7:
            self.lanes.mark_ready(job)
        elif chance < 0.85:
            self.lanes.defer(job)
        else:
            self.lanes.finish(job)

    def join(self) -> None:
        flying = [job for job in self.of("running") if job.request_batch.mode == "step"]
        lines = sum(job.num_seqs for job in flying)
        while (job := self.lanes.next_to_run("step", lines)) is not None:
            lines += job.num_seqs
        assert lines <= LIMITS.max_num_seqs
        if not [job for job in self.of("running") if job.request_batch.mode == "beam"]:
            lines = 0
            while (job := self.lanes.next_to_run("beam", lines)) is not None:
                lines += job.num_seqs
            assert lines <= LIMITS.max_num_beam_seqs

    def end(self) -> None:
        going = self.of("running") or self.of("waiting", "preparing", "ready")
        if going:
            self.lanes.finish(self.chance.choice(going))

    def check(self) -> None:
        lanes = self.lanes
        assert lanes.waiting == len(self.of("waiting", "preparing", "ready"))
        assert lanes.running == len(self.of("running"))
        assert lanes.num_seqs == sum(job.num_seqs for job in self.of("running"))
        for mode in ("step", "beam"):
            ready = [job for lane in lanes._round_robin for job in lane.ready[mode] if job.status == "ready"]
            assert lanes.ready[mode] == len(ready)
        owners = {job.request_batch.owner for job in self.jobs if job.status != "finished"}
        assert set(lanes._queues) == owners
        for owner, lane in lanes._queues.items():
            own = [job for job in self.jobs if job.request_batch.owner == owner]
            assert lane.prepared == sum(job.status in ("preparing", "ready") for job in own)
            assert lane.num_seqs == sum(job.num_seqs for job in own if job.status == "running")


@pytest.mark.parametrize("seed", range(20))
def test_the_books_are_right_whatever_happens(seed: int) -> None:
    books = Books(seed)
    for _ in range(300):
        books.chance.choices(
            [books.arrive, books.plan, books.join, books.end, books.lanes.retry_deferred], weights=[1, 10, 3, 4, 1]
        )[0]()
        books.check()
    # Then nothing new comes, and all of it ends.
    for _ in range(20_000):
        books.lanes.retry_deferred()
        books.plan()
        books.join()
        books.end()
        if not books.lanes._queues:
            break
    books.check()
    assert not books.of("waiting", "preparing", "ready", "running")


def test_a_group_joins_when_the_last_of_it_is_planned() -> None:
    lanes = FairScheduler(LIMITS)
    lanes.add(call("a", 3, SamplingParams()).make_start_groups(count(), 14))
    first, second = lanes.next_to_prepare(), lanes.next_to_prepare()
    assert first is not None
    assert second is not None
    lanes.mark_ready(first)
    lanes.mark_ready(second)
    assert lanes.next_to_run("step", 0) is None
    third = lanes.next_to_prepare()
    assert third is not None
    lanes.finish(third)
    assert [lanes.next_to_run("step", 0), lanes.next_to_run("step", 1)] == [first, second]


def test_a_reader_rung_once_hears_of_the_fault_behind_the_news() -> None:
    rung = Event()
    mailbox = OutputQueue(2, rung.set)
    stream = OutputStream(mailbox, lambda _: None)
    mailbox.put([PartialOutput(0, "x", 1), RequestOutput(1, REQUEST)])
    mailbox.fail(RuntimeError("a defect"))
    rung.clear()
    assert [event.index for event in stream.get_nowait()] == [0, 1]
    assert rung.is_set()
    with pytest.raises(RuntimeError, match="a defect"):
        stream.get_nowait()
    assert stream.finished
    mailbox.put([RequestOutput(0, REQUEST)])
    assert stream.get_nowait() == []


def test_a_whole_answer_comes_behind_what_had_grown_before() -> None:
    mailbox = OutputQueue(2)
    mailbox.put([PartialOutput(0, "x", 1), PartialOutput(1, "y", 1)])
    mailbox.put([RequestOutput(0, REQUEST), PartialOutput(1, "yz", 2)])
    stream = OutputStream(mailbox, lambda _: None)
    assert stream.get_nowait() == [PartialOutput(0, "x", 1), PartialOutput(1, "yz", 2), RequestOutput(0, REQUEST)]
    assert not stream.finished
    mailbox.put([RequestOutput(1, REQUEST)])
    assert list(stream) == [RequestOutput(1, REQUEST)]
