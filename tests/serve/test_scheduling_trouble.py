"""Many callers and one model: cancelling, bounds, faults and the end; the backend only counts."""

from __future__ import annotations

import gc
import threading
from threading import Event
from typing import Any, cast

import pytest
from prometheus_client import generate_latest

from adapters.store import AdapterFolder, Store
from errors import BusyError, PromptOrTuneError
from serve.engine.llm_engine import EngineConfig, LLMEngine
from serve.types import PartialOutput, RequestOutput, SamplingParams
from tasks.retrieval import ExamplePools
from tests.serve.counting import POOL, CountingBackend, InOrder, OneStore, words
from tests.serve.scheduled import Build, build, last, planned, request, run_on, step, wait_for

__all__ = ["build"]


def test_cancelled_rows_leave_within_a_step_wherever_they_are(build: Build) -> None:
    engine, backend = build(EngineConfig(max_num_seqs=8), gated=True)
    loading, load = Event(), Event()

    def slowly(_: AdapterFolder) -> None:
        loading.set()
        load.wait(5)

    backend.loading = slowly
    stay = engine.stream([request()], SamplingParams(max_new_tokens=20), owner="stay")
    flying, queued, planning, waiting = Event(), Event(), Event(), Event()
    wait_for(lambda: engine.status().num_seqs == 1)
    streams = {
        "flying": engine.stream([request()] * 6, SamplingParams(max_new_tokens=90), flying, "a"),
        "queued": engine.stream([request()] * 4, SamplingParams(max_new_tokens=90), queued, "b"),
    }
    wait_for(lambda: planned(engine) == 10)
    step(backend, 1)
    wait_for(lambda: planned(engine) == 4)  # of both calls some grow and some wait
    streams["planning"] = engine.stream([request("lora-1")], SamplingParams(max_new_tokens=90), planning, "c")
    assert loading.wait(5)
    streams["waiting"] = engine.stream([request("lora-2")], SamplingParams(max_new_tokens=90), waiting, "d")
    step(backend, 2)
    for event in (flying, queued, planning, waiting):
        event.set()
    step(backend, 2)
    for name, stream in streams.items():
        assert all(answer.cancelled for answer in last(stream)), name
    assert engine.status().num_seqs == 1
    assert engine.status().queued == 0
    load.set()
    wait_for(lambda: engine.adapter_cache.status().loads == 1)
    wait_for(lambda: not any(each.leases for each in engine.adapter_cache.status().adapters))
    run_on(backend)
    assert last(stay)[0].tokens == 20


def test_a_stream_that_is_dropped_frees_its_rows(build: Build) -> None:
    engine, _ = build()
    stream = engine.stream([request("lora-1")], SamplingParams(max_new_tokens=5000))
    assert isinstance(next(stream), PartialOutput)
    del stream
    gc.collect()
    wait_for(lambda: engine.status().num_seqs == 0)
    assert [each.leases for each in engine.adapter_cache.status().adapters] == [0]


def test_a_consumer_that_does_not_read_costs_no_memory(build: Build) -> None:
    engine, backend = build(pause=0.0)
    stream = engine.stream([request(), request("gone")], SamplingParams("sample", max_new_tokens=500, candidates=3))
    wait_for(lambda: engine.status().phase == "idle")
    assert backend.steps == 500
    events = list(stream)
    assert len([event for event in events if isinstance(event, PartialOutput)]) == 3, "of each sample the last word"
    assert [answer.index for answer in events if isinstance(answer, RequestOutput)] == [1, 0]
    assert events[-1] == [event for event in events if isinstance(event, RequestOutput)][-1]


def test_news_ring_and_are_fetched_without_waiting(build: Build) -> None:
    engine, _ = build()
    rung, seen = Event(), []
    stream = engine.submit([request(), request("broken")], SamplingParams(max_new_tokens=20), notify=rung.set)
    while not stream.finished:
        assert rung.wait(5)
        rung.clear()
        seen += stream.get_nowait()
    assert [answer.index for answer in seen if isinstance(answer, RequestOutput)] == [1, 0]
    assert stream.get_nowait() == []


def test_a_full_queue_says_about_how_long(build: Build) -> None:
    engine, backend = build(EngineConfig(max_num_seqs=2, max_queued=4), gated=True)
    going = engine.stream([request()] * 6, SamplingParams(max_new_tokens=10))
    wait_for(lambda: engine.status().num_seqs == 2)
    with pytest.raises(BusyError, match=r"^The queue is full \(4 rows wait\): busy, about \d+ s\.$") as caught:
        engine.stream([request()], SamplingParams(max_new_tokens=10))
    assert caught.value.seconds >= 1
    assert engine.status().queued == 4
    assert engine.status().wait_seconds > 0
    run_on(backend)
    assert len(last(going)) == 6
    assert engine.status().queued == 0
    assert len(engine.answer([request()], SamplingParams(max_new_tokens=1))) == 1
    assert b"prompt_or_tune_busy_refusals_total 1.0" in generate_latest(engine.metrics.registry)


def test_the_estimate_follows_what_rows_took(build: Build) -> None:
    engine, _ = build(EngineConfig(max_num_seqs=1, max_queued=3), pause=0.002)
    took = [engine.answer([request()], SamplingParams(max_new_tokens=20))[0].seconds for _ in range(20)]
    going = engine.stream([request()] * 4, SamplingParams(max_new_tokens=400))
    wait_for(lambda: engine.status().queued == 3)
    assert min(took) <= engine.status().wait_seconds / 4 <= max(took), "four rows like those before, one at a time"
    del going


def test_adapters_that_have_no_room_keep_their_owner_waiting_alone(build: Build) -> None:
    engine, backend = build(EngineConfig(max_loaded_adapters=1, adapter_timeout_s=0.5), gated=True)
    first = engine.stream([request("lora-1")], SamplingParams(max_new_tokens=10), owner="a")
    wait_for(lambda: engine.status().num_seqs == 1)
    second = engine.stream([request("lora-2")], SamplingParams(max_new_tokens=10), owner="b")
    third = engine.stream([request("icl-2"), request("lora-1")], SamplingParams(max_new_tokens=2), owner="c")
    wait_for(lambda: planned(engine) == 2)
    step(backend, 3)
    assert [answer.tokens for answer in last(third)] == [2, 2]
    refused = last(second)[0]
    assert isinstance(refused.exception, BusyError)
    assert refused.queued_seconds >= 0.5
    fourth = engine.stream([request("lora-2")], SamplingParams(max_new_tokens=1), owner="b")
    run_on(backend)
    assert last(first)[0].tokens == 10
    assert last(fourth)[0].text.split("|")[2] == "lora-2"


def test_a_fault_in_a_step_ends_that_batch_alone(build: Build) -> None:
    engine, backend = build(EngineConfig(max_num_seqs=2), gated=True)
    lost = [engine.stream([request("lora-1")], SamplingParams(max_new_tokens=9)) for _ in range(2)]
    wait_for(lambda: engine.status().num_seqs == 2)
    beams = engine.stream([request()], SamplingParams("beam", max_new_tokens=9, candidates=2))
    waiting = engine.stream([request()], SamplingParams(max_new_tokens=9))
    wait_for(lambda: planned(engine) == 2)
    step(backend, 4)
    backend.fault = RuntimeError("out of memory at 0x7f")
    step(backend, 2)
    for stream in lost:
        with pytest.raises(RuntimeError, match="out of memory"):
            last(stream)
        assert last(stream) == [], "a stream that has raised is over"
    run_on(backend)
    assert last(beams)[0].tokens == 9
    assert last(waiting)[0].tokens == 9
    assert [each.leases for each in engine.adapter_cache.status().adapters] == [0]
    fresh = engine.stream([request("lora-1")], SamplingParams(max_new_tokens=2))
    assert last(fresh)[0].text == words(backend.rows[0], "digest of lora-1", 0, 2)


def test_a_row_that_the_backend_refuses_is_one_sentence(build: Build) -> None:
    engine, _ = build()
    answers = engine.answer([request(intent="refuse me"), request()], SamplingParams(max_new_tokens=2))
    assert answers[0].error == "This row is refused."
    assert isinstance(answers[0].exception, PromptOrTuneError)
    assert answers[1].tokens == 2


def test_a_closed_engine_ends_what_grows_and_gives_up_what_waits(build: Build) -> None:
    engine, backend = build(EngineConfig(max_num_seqs=1), gated=True)
    stream = engine.stream([request(), request()], SamplingParams(max_new_tokens=3))
    wait_for(lambda: engine.status().num_seqs == 1)
    engine.close()
    step(backend, 3)
    assert [(answer.tokens, answer.cancelled) for answer in sorted(last(stream), key=lambda each: each.index)] == [
        (3, False),
        (0, True),
    ]
    with pytest.raises(PromptOrTuneError, match="The engine was closed"):
        engine.answer([request()], SamplingParams())
    with pytest.raises(PromptOrTuneError, match="The engine was closed"):
        engine.count_prompt_tokens([request()], SamplingParams())
    assert engine.status().phase == "closed"


def test_an_engine_that_nobody_holds_ends_but_not_before_its_streams(build: Build) -> None:
    threads = threading.active_count()
    pools = ExamplePools(load=lambda _: POOL, index=lambda *_: InOrder())
    stream = LLMEngine(cast("Any", CountingBackend()), cast("Store", OneStore()), pools).stream(
        [request("lora-1"), request("rag-3")], SamplingParams(max_new_tokens=20)
    )
    gc.collect()
    assert [answer.tokens for answer in last(stream)] == [20, 20]
    del stream
    gc.collect()
    wait_for(lambda: threading.active_count() == threads)
