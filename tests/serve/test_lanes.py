"""The books of the scheduling, by chance: whatever comes, counts are right, order is kept and nobody is forgotten."""

from __future__ import annotations

import random
from itertools import count
from threading import Event

import pytest

from serve.method import parse_method
from serve.rows import Answer, Decoding, Partial, Request
from serve.scheduling.jobs import Call, Job
from serve.scheduling.lanes import Lanes
from serve.scheduling.limits import EngineLimits
from serve.scheduling.mailbox import Mailbox, Stream
from tasks.problem import Problem

REQUEST = Request(Problem("p", "sort"), parse_method("zero-shot", ()))
LIMITS = EngineLimits(max_lines=16, max_beam_lines=12)


def call(owner: str, rows: int, decoding: Decoding) -> Call:
    return Call([REQUEST] * rows, decoding, owner, Event(), Mailbox(rows), 0.0)


class Books:
    """Lanes, driven at random, beside the plainest account of the same."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.lanes = Lanes(LIMITS)
        self.keys = count()
        self.jobs: list[Job] = []

    def of(self, *phases: str) -> list[Job]:
        return [job for job in self.jobs if job.phase in phases]

    def arrive(self) -> None:
        mode, most, width = self.chance.choice((("greedy", 14, 1), ("sample", 14, 3), ("beam", 12, 4)))
        decoding = Decoding(mode, candidates=width)  # type: ignore[arg-type]
        new = call(self.chance.choice("abcdef"), self.chance.randint(1, 20), decoding)
        self.lanes.add(new.split(self.keys, most))
        self.jobs += new.jobs

    def plan(self) -> None:
        job = self.lanes.next_to_plan()
        if job is None:
            return
        assert job.phase == "planning"
        chance = self.chance.random()
        if chance < 0.7:
            self.lanes.planned(job)
        elif chance < 0.85:
            self.lanes.stall(job)
        else:
            self.lanes.leave(job)

    def join(self) -> None:
        flying = [job for job in self.of("flying") if job.call.mode == "step"]
        lines = sum(job.lines for job in flying)
        while (job := self.lanes.next_to_join("step", lines)) is not None:
            lines += job.lines
        assert lines <= LIMITS.max_lines
        if not [job for job in self.of("flying") if job.call.mode == "beam"]:
            lines = 0
            while (job := self.lanes.next_to_join("beam", lines)) is not None:
                lines += job.lines
            assert lines <= LIMITS.max_beam_lines

    def end(self) -> None:
        going = self.of("flying") or self.of("waiting", "planning", "planned")
        if going:
            self.lanes.leave(self.chance.choice(going))

    def check(self) -> None:
        lanes = self.lanes
        assert lanes.waiting == len(self.of("waiting", "planning", "planned"))
        assert lanes.flying == len(self.of("flying"))
        assert lanes.lines == sum(job.lines for job in self.of("flying"))
        for mode in ("step", "beam"):
            ready = [job for lane in lanes._turns for job in lane.ready[mode] if job.phase == "planned"]
            assert lanes.ready[mode] == len(ready)
        owners = {job.call.owner for job in self.jobs if job.phase != "done"}
        assert set(lanes._lanes) == owners
        for owner, lane in lanes._lanes.items():
            own = [job for job in self.jobs if job.call.owner == owner]
            assert lane.ahead == sum(job.phase in ("planning", "planned") for job in own)
            assert lane.lines == sum(job.lines for job in own if job.phase == "flying")


@pytest.mark.parametrize("seed", range(20))
def test_the_books_are_right_whatever_happens(seed: int) -> None:
    books = Books(seed)
    for _ in range(300):
        books.chance.choices(
            [books.arrive, books.plan, books.join, books.end, books.lanes.retry], weights=[1, 10, 3, 4, 1]
        )[0]()
        books.check()
    # Then nothing new comes, and all of it ends.
    for _ in range(20_000):
        books.lanes.retry()
        books.plan()
        books.join()
        books.end()
        if not books.lanes._lanes:
            break
    books.check()
    assert not books.of("waiting", "planning", "planned", "flying")


def test_a_group_joins_when_the_last_of_it_is_planned() -> None:
    lanes = Lanes(LIMITS)
    lanes.add(call("a", 3, Decoding()).split(count(), 14))
    first, second = lanes.next_to_plan(), lanes.next_to_plan()
    assert first is not None
    assert second is not None
    lanes.planned(first)
    lanes.planned(second)
    assert lanes.next_to_join("step", 0) is None
    third = lanes.next_to_plan()
    assert third is not None
    lanes.leave(third)
    assert [lanes.next_to_join("step", 0), lanes.next_to_join("step", 1)] == [first, second]


def test_a_reader_rung_once_hears_of_the_fault_behind_the_news() -> None:
    rung = Event()
    mailbox = Mailbox(2, rung.set)
    stream = Stream(mailbox, lambda _: None)
    mailbox.put([Partial(0, "x", 1), Answer(1, REQUEST)])
    mailbox.fail(RuntimeError("a defect"))
    rung.clear()
    assert [event.index for event in stream.ready()] == [0, 1]
    assert rung.is_set()
    with pytest.raises(RuntimeError, match="a defect"):
        stream.ready()
    assert stream.over
    mailbox.put([Answer(0, REQUEST)])
    assert stream.ready() == []


def test_a_whole_answer_comes_behind_what_had_grown_before() -> None:
    mailbox = Mailbox(2)
    mailbox.put([Partial(0, "x", 1), Partial(1, "y", 1)])
    mailbox.put([Answer(0, REQUEST), Partial(1, "yz", 2)])
    stream = Stream(mailbox, lambda _: None)
    assert stream.ready() == [Partial(0, "x", 1), Partial(1, "yz", 2), Answer(0, REQUEST)]
    assert not stream.over
    mailbox.put([Answer(1, REQUEST)])
    assert list(stream) == [Answer(1, REQUEST)]
