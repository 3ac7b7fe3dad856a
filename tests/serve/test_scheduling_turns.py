"""Many callers and one model: whose row joins, and when; the backend only counts."""

from __future__ import annotations

import time

from adapters.store import AdapterFolder
from serve.engine.llm_engine import EngineConfig
from serve.types import PartialOutput, SamplingParams
from tests.serve.scheduled import LINES, MANY, Build, build, last, planned, ready, request, run_on, step, wait_for

__all__ = ["build"]


def test_a_short_row_does_not_wait_for_a_hundred_long_ones(build: Build) -> None:
    engine, backend = build(gated=True)
    long = engine.stream([request()] * 100, SamplingParams(max_new_tokens=1000), owner="many")
    wait_for(lambda: engine.status().num_seqs == MANY)
    step(backend, 50)
    short = engine.stream([request("rag-2")], SamplingParams(max_new_tokens=5), owner="one")
    wait_for(lambda: ready(engine, "one") == 1)
    before = backend.steps
    step(backend, 6)
    assert last(short)[0].tokens == 5
    assert backend.steps - before <= 6, "it joined at the next step"
    assert engine.status().num_seqs == MANY
    del long


def test_owners_share_the_batch_evenly(build: Build) -> None:
    engine, backend = build(gated=True)
    first = engine.stream([request(intent="a" * 9)] * 90, SamplingParams(max_new_tokens=10), owner="first")
    wait_for(lambda: engine.status().num_seqs == MANY)
    second = engine.stream([request(intent="b" * 5)] * 90, SamplingParams(max_new_tokens=10), owner="second")
    wait_for(lambda: ready(engine, "second") >= MANY)
    # Whatever ends makes room for the one who has less, so that both soon have the same.
    step(backend, 25)
    whose = [each.row.prompt.count("b" * 5) for each in backend.batches[0].rows.values()]
    assert MANY <= len(whose) <= LINES
    assert abs(sum(whose) - len(whose) / 2) <= EngineConfig().num_reserved_seqs
    del first, second


def test_calls_without_an_owner_are_owners_of_their_own(build: Build) -> None:
    engine, backend = build(EngineConfig(max_num_seqs=4), gated=True)
    many = engine.stream([request(intent="m")] * 40, SamplingParams(max_new_tokens=4))
    wait_for(lambda: engine.status().num_seqs == 4)
    others = [engine.stream([request(intent=f"other {place}")], SamplingParams(max_new_tokens=4)) for place in range(4)]
    wait_for(lambda: planned(engine) >= 8)
    step(backend, 12)
    assert [answers[0].tokens for answers in map(last, others)] == [4, 4, 4, 4]
    del many


def test_rows_of_one_call_start_together_even_when_planning_is_slow(build: Build) -> None:
    engine, backend = build()
    backend.loading = lambda _: time.sleep(0.02)
    answers = engine.answer(
        [request("zero-shot"), request("lora-1"), request("lora-2")], SamplingParams(max_new_tokens=3)
    )
    assert backend.batches[0].sizes == [3, 3, 3]
    assert len({answer.queued_seconds > 0.03 for answer in answers}) == 1


def test_rows_join_those_in_flight_while_others_load(build: Build) -> None:
    engine, backend = build()
    going = engine.stream([request()], SamplingParams(max_new_tokens=200))
    assert isinstance(next(going), PartialOutput)

    def load(_: AdapterFolder) -> None:
        began = backend.steps
        wait_for(lambda: backend.steps >= began + 5)  # nobody who is being answered waits for a disk

    backend.loading = load
    engine.answer([request("lora-1")], SamplingParams(max_new_tokens=2))
    assert max(backend.batches[0].sizes) == 2
    assert len(backend.batches) == 1
    assert last(going)[0].tokens == 200


def test_a_batch_that_cannot_be_joined_is_waited_for(build: Build) -> None:
    engine, backend = build(joins=False, gated=True)
    first = engine.stream([request()] * 2, SamplingParams(max_new_tokens=3))
    wait_for(lambda: engine.status().num_seqs == 2)
    second = engine.stream([request()], SamplingParams(max_new_tokens=2))
    wait_for(lambda: planned(engine) == 1)
    step(backend, 5)
    assert len(last(first)) == 2
    assert len(last(second)) == 1
    assert backend.batches[0].sizes == [2, 2, 2, 1, 1]


def test_a_row_with_more_lines_than_fit_runs_alone(build: Build) -> None:
    engine, backend = build(EngineConfig(max_num_seqs=4))
    decoding = SamplingParams("sample", max_new_tokens=3, candidates=10)
    assert len(engine.answer([request(), request()], decoding)[1].candidates) == 10
    assert set(backend.batches[0].sizes) == {10}


def test_beam_search_and_short_rows_take_turns(build: Build) -> None:
    engine, backend = build(gated=True)
    beams = engine.stream([request()] * 3, SamplingParams("beam", max_new_tokens=100, candidates=5))
    wait_for(lambda: engine.status().num_seqs == 15)
    short = engine.stream([request()], SamplingParams(max_new_tokens=5))
    wait_for(lambda: planned(engine) == 1)
    step(backend, 12)
    assert last(short)[0].tokens == 5
    assert {batch.mode: len(batch.sizes) for batch in backend.batches}["beam"] <= 8
    run_on(backend)
    assert [len(answer.candidates) for answer in last(beams)] == [5, 5, 5]


def test_one_beam_search_at_a_time_with_one_decoding(build: Build) -> None:
    engine, backend = build(gated=True)
    streams = []
    for beams in (2, 3, 2, 2):
        streams.append(engine.stream([request()], SamplingParams("beam", max_new_tokens=2, candidates=beams)))
        wait_for(lambda: engine.status().num_seqs == 2)
    wait_for(lambda: planned(engine) == 3)
    step(backend, 6)
    assert [len(last(stream)[0].candidates) for stream in streams] == [2, 3, 2, 2]
    assert [batch.sizes for batch in backend.batches] == [[2, 2], [3, 3], [4, 4]]
