"""FairScheduler under random operations: counters, limits and completeness; OutputQueue and OutputStream."""

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
from tests import messages

REQUEST = Request(Problem("p", "sort"), parse_method("zero-shot", ()))
CONFIG = EngineConfig(max_num_seqs=16, max_num_beam_seqs=12)


def call(owner: str, rows: int, sampling_params: SamplingParams) -> RequestBatch:
    return RequestBatch([REQUEST] * rows, sampling_params, owner, Event(), OutputQueue(rows), 0.0)


class RandomScheduling:
    """A scheduler under random operations, whose counters are compared with the status of all requests."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.scheduler = FairScheduler(CONFIG)
        self.keys = count()
        self.requests: list[ScheduledRequest] = []

    def with_status(self, *statuses: str) -> list[ScheduledRequest]:
        return [request for request in self.requests if request.status in statuses]

    def add(self) -> None:
        mode, max_seqs, candidates = self.random.choice((("greedy", 14, 1), ("sample", 14, 3), ("beam", 12, 4)))
        sampling_params = SamplingParams(mode, candidates=candidates)  # type: ignore[arg-type]
        new = call(self.random.choice("abcdef"), self.random.randint(1, 20), sampling_params)
        self.scheduler.add(new.make_start_groups(self.keys, max_seqs))
        self.requests += new.scheduled

    def prepare(self) -> None:
        request = self.scheduler.next_to_prepare()
        if request is None:
            return
        assert request.status == "preparing"
        value = self.random.random()
        if value < 0.7:
            self.scheduler.mark_ready(request)
        elif value < 0.85:
            self.scheduler.defer(request)
        else:
            self.scheduler.finish(request)

    def run(self) -> None:
        running = [request for request in self.with_status("running") if request.request_batch.mode == "step"]
        num_seqs = sum(request.num_seqs for request in running)
        while (request := self.scheduler.next_to_run("step", num_seqs)) is not None:
            num_seqs += request.num_seqs
        assert num_seqs <= CONFIG.max_num_seqs
        if not [request for request in self.with_status("running") if request.request_batch.mode == "beam"]:
            num_seqs = 0
            while (request := self.scheduler.next_to_run("beam", num_seqs)) is not None:
                num_seqs += request.num_seqs
            assert num_seqs <= CONFIG.max_num_beam_seqs

    def finish(self) -> None:
        unfinished = self.with_status("running") or self.with_status("waiting", "preparing", "ready")
        if unfinished:
            self.scheduler.finish(self.random.choice(unfinished))

    def check(self) -> None:
        scheduler = self.scheduler
        assert scheduler.waiting == len(self.with_status("waiting", "preparing", "ready"))
        assert scheduler.running == len(self.with_status("running"))
        assert scheduler.num_seqs == sum(request.num_seqs for request in self.with_status("running"))
        for mode in ("step", "beam"):
            ready = [
                request
                for queue in scheduler._round_robin
                for request in queue.ready[mode]
                if request.status == "ready"
            ]
            assert scheduler.ready[mode] == len(ready)
        owners = {request.request_batch.owner for request in self.requests if request.status != "finished"}
        assert set(scheduler._queues) == owners
        for owner, queue in scheduler._queues.items():
            requests = [request for request in self.requests if request.request_batch.owner == owner]
            assert queue.prepared == sum(request.status in ("preparing", "ready") for request in requests)
            assert queue.num_seqs == sum(request.num_seqs for request in requests if request.status == "running")


@pytest.mark.parametrize("seed", range(20))
def test_counters_match_the_requests_after_every_operation(seed: int) -> None:
    random_scheduling = RandomScheduling(seed)
    for _ in range(300):
        random_scheduling.random.choices(
            [
                random_scheduling.add,
                random_scheduling.prepare,
                random_scheduling.run,
                random_scheduling.finish,
                random_scheduling.scheduler.retry_deferred,
            ],
            weights=[1, 10, 3, 4, 1],
        )[0]()
        random_scheduling.check()
    # Without new requests, all of them finish.
    for _ in range(20_000):
        random_scheduling.scheduler.retry_deferred()
        random_scheduling.prepare()
        random_scheduling.run()
        random_scheduling.finish()
        if not random_scheduling.scheduler._queues:
            break
    random_scheduling.check()
    assert not random_scheduling.with_status("waiting", "preparing", "ready", "running")


def test_group_starts_when_its_last_request_is_prepared_or_finished() -> None:
    scheduler = FairScheduler(CONFIG)
    scheduler.add(call("a", 3, SamplingParams()).make_start_groups(count(), 14))
    first, second = scheduler.next_to_prepare(), scheduler.next_to_prepare()
    assert first is not None
    assert second is not None
    scheduler.mark_ready(first)
    scheduler.mark_ready(second)
    assert scheduler.next_to_run("step", 0) is None
    third = scheduler.next_to_prepare()
    assert third is not None
    scheduler.finish(third)
    assert [scheduler.next_to_run("step", 0), scheduler.next_to_run("step", 1)] == [first, second]


def test_reader_is_notified_again_for_an_exception_after_the_outputs() -> None:
    notified = Event()
    output_queue = OutputQueue(2, notified.set)
    stream = OutputStream(output_queue, lambda _: None)
    output_queue.put([PartialOutput(0, "x", 1), RequestOutput(1, REQUEST)])
    output_queue.fail(RuntimeError("a defect"))
    notified.clear()
    assert [event.index for event in stream.get_nowait()] == [0, 1]
    assert notified.is_set()
    with pytest.raises(RuntimeError, match=messages.STEP_DEFECT):
        stream.get_nowait()
    assert stream.finished
    output_queue.put([RequestOutput(0, REQUEST)])
    assert stream.get_nowait() == []


def test_request_outputs_come_after_partial_outputs() -> None:
    output_queue = OutputQueue(2)
    output_queue.put([PartialOutput(0, "x", 1), PartialOutput(1, "y", 1)])
    output_queue.put([RequestOutput(0, REQUEST), PartialOutput(1, "yz", 2)])
    stream = OutputStream(output_queue, lambda _: None)
    assert stream.get_nowait() == [PartialOutput(0, "x", 1), PartialOutput(1, "yz", 2), RequestOutput(0, REQUEST)]
    assert not stream.finished
    output_queue.put([RequestOutput(1, REQUEST)])
    assert list(stream) == [RequestOutput(1, REQUEST)]
