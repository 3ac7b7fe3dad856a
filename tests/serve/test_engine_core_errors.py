"""Engine core with a CountingBackend: cancellation, limits, errors, adapter memory and shutdown."""

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
from tasks.methods import ExamplePools
from tests import messages
from tests.serve.counting_backend import POOL, CountingBackend, FakeStore, FirstExamples, words
from tests.serve.engine_fixtures import Build, build, num_ready, remaining_outputs, request, run_freely, step, wait_for

pytestmark = pytest.mark.slow

__all__ = ["build"]


def test_cancelled_rows_are_removed_within_one_step_in_every_status(build: Build) -> None:
    engine, backend = build(EngineConfig(max_num_seqs=8), gated=True)
    load_started, load_may_end = Event(), Event()

    def slowly(_: AdapterFolder) -> None:
        load_started.set()
        load_may_end.wait(5)

    backend.loading = slowly
    stay = engine.stream([request()], SamplingParams(max_new_tokens=20), owner="stay")
    running, ready, preparing, waiting = Event(), Event(), Event(), Event()
    wait_for(lambda: engine.status().num_seqs == 1)
    streams = {
        "running": engine.stream([request()] * 6, SamplingParams(max_new_tokens=90), running, "a"),
        "ready": engine.stream([request()] * 4, SamplingParams(max_new_tokens=90), ready, "b"),
    }
    wait_for(lambda: num_ready(engine) == 10)
    step(backend, 1)
    wait_for(lambda: num_ready(engine) == 4)  # each call has running and ready rows
    streams["preparing"] = engine.stream([request("lora-1")], SamplingParams(max_new_tokens=90), preparing, "c")
    assert load_started.wait(5)
    streams["waiting"] = engine.stream([request("lora-2")], SamplingParams(max_new_tokens=90), waiting, "d")
    step(backend, 2)
    for event in (running, ready, preparing, waiting):
        event.set()
    step(backend, 2)
    for name, stream in streams.items():
        assert all(answer.cancelled for answer in remaining_outputs(stream)), name
    assert engine.status().num_seqs == 1
    assert engine.status().queued == 0
    load_may_end.set()
    wait_for(lambda: engine.adapter_cache.status().loads == 1)
    wait_for(lambda: not any(adapter.leases for adapter in engine.adapter_cache.status().adapters))
    run_freely(backend)
    assert remaining_outputs(stay)[0].tokens == 20


def test_dropping_a_stream_removes_its_rows(build: Build) -> None:
    engine, _ = build()
    stream = engine.stream([request("lora-1")], SamplingParams(max_new_tokens=5000))
    assert isinstance(next(stream), PartialOutput)
    del stream
    gc.collect()
    wait_for(lambda: engine.status().num_seqs == 0)
    assert [adapter.leases for adapter in engine.adapter_cache.status().adapters] == [0]


def test_unread_stream_keeps_only_the_newest_partial_outputs(build: Build) -> None:
    engine, backend = build(pause=0.0)
    stream = engine.stream([request(), request("gone")], SamplingParams("sample", max_new_tokens=500, candidates=3))
    wait_for(lambda: engine.status().phase == "idle")
    assert backend.steps == 500
    events = list(stream)
    assert len([event for event in events if isinstance(event, PartialOutput)]) == 3, "the newest of each sample"
    assert [answer.index for answer in events if isinstance(answer, RequestOutput)] == [1, 0]
    assert events[-1] == [event for event in events if isinstance(event, RequestOutput)][-1]


def test_notify_is_called_and_outputs_are_read_without_blocking(build: Build) -> None:
    engine, _ = build()
    notified, seen = Event(), []
    stream = engine.submit([request(), request("broken")], SamplingParams(max_new_tokens=20), notify=notified.set)
    while not stream.finished:
        assert notified.wait(5)
        notified.clear()
        seen += stream.get_nowait()
    assert [answer.index for answer in seen if isinstance(answer, RequestOutput)] == [1, 0]
    assert stream.get_nowait() == []


def test_full_queue_refuses_calls_with_an_estimated_wait(build: Build) -> None:
    engine, backend = build(EngineConfig(max_num_seqs=2, max_queued=4), gated=True)
    running = engine.stream([request()] * 6, SamplingParams(max_new_tokens=10))
    wait_for(lambda: engine.status().num_seqs == 2)
    with pytest.raises(BusyError, match=messages.QUEUE_FULL) as caught:
        engine.stream([request()], SamplingParams(max_new_tokens=10))
    assert caught.value.seconds >= 1
    assert engine.status().queued == 4
    assert engine.status().wait_seconds > 0
    run_freely(backend)
    assert len(remaining_outputs(running)) == 6
    assert engine.status().queued == 0
    assert len(engine.answer([request()], SamplingParams(max_new_tokens=1))) == 1
    assert b"prompt_or_tune_busy_refusals_total 1.0" in generate_latest(engine.metrics.registry)


def test_estimated_wait_follows_the_duration_of_rows(build: Build) -> None:
    engine, _ = build(EngineConfig(max_num_seqs=1, max_queued=3), pause=0.002)
    durations = [engine.answer([request()], SamplingParams(max_new_tokens=20))[0].seconds for _ in range(20)]
    running = engine.stream([request()] * 4, SamplingParams(max_new_tokens=400))
    wait_for(lambda: engine.status().queued == 3)
    assert min(durations) <= engine.status().wait_seconds / 4 <= max(durations), (
        "four rows like those before, one at a time"
    )
    del running


def test_only_the_owner_of_an_adapter_without_memory_waits(build: Build) -> None:
    engine, backend = build(EngineConfig(max_loaded_adapters=1, adapter_timeout_s=0.5), gated=True)
    first = engine.stream([request("lora-1")], SamplingParams(max_new_tokens=10), owner="a")
    wait_for(lambda: engine.status().num_seqs == 1)
    second = engine.stream([request("lora-2")], SamplingParams(max_new_tokens=10), owner="b")
    third = engine.stream([request("icl-2"), request("lora-1")], SamplingParams(max_new_tokens=2), owner="c")
    wait_for(lambda: num_ready(engine) == 2)
    step(backend, 3)
    assert [answer.tokens for answer in remaining_outputs(third)] == [2, 2]
    refused = remaining_outputs(second)[0]
    assert isinstance(refused.exception, BusyError)
    assert refused.queued_seconds >= 0.5
    fourth = engine.stream([request("lora-2")], SamplingParams(max_new_tokens=1), owner="b")
    run_freely(backend)
    assert remaining_outputs(first)[0].tokens == 10
    assert remaining_outputs(fourth)[0].text.split("|")[2] == "lora-2"


def test_exception_in_a_step_ends_only_that_batch(build: Build) -> None:
    engine, backend = build(EngineConfig(max_num_seqs=2), gated=True)
    failing = [engine.stream([request("lora-1")], SamplingParams(max_new_tokens=9)) for _ in range(2)]
    wait_for(lambda: engine.status().num_seqs == 2)
    beams = engine.stream([request()], SamplingParams("beam", max_new_tokens=9, candidates=2))
    waiting = engine.stream([request()], SamplingParams(max_new_tokens=9))
    wait_for(lambda: num_ready(engine) == 2)
    step(backend, 4)
    backend.error = RuntimeError("out of memory at 0x7f")
    step(backend, 2)
    for stream in failing:
        with pytest.raises(RuntimeError, match=messages.OUT_OF_MEMORY):
            remaining_outputs(stream)
        assert remaining_outputs(stream) == [], "a stream that raised is finished"
    run_freely(backend)
    assert remaining_outputs(beams)[0].tokens == 9
    assert remaining_outputs(waiting)[0].tokens == 9
    assert [adapter.leases for adapter in engine.adapter_cache.status().adapters] == [0]
    fresh = engine.stream([request("lora-1")], SamplingParams(max_new_tokens=2))
    assert remaining_outputs(fresh)[0].text == words(backend.rows[0], "digest of lora-1", 0, 2)


def test_row_refused_by_the_backend_gets_an_error(build: Build) -> None:
    engine, _ = build()
    answers = engine.answer([request(intent="refuse me"), request()], SamplingParams(max_new_tokens=2))
    assert answers[0].error == "This row is refused."
    assert isinstance(answers[0].exception, PromptOrTuneError)
    assert answers[1].tokens == 2


def test_closed_engine_finishes_running_rows_and_cancels_waiting_ones(build: Build) -> None:
    engine, backend = build(EngineConfig(max_num_seqs=1), gated=True)
    stream = engine.stream([request(), request()], SamplingParams(max_new_tokens=3))
    wait_for(lambda: engine.status().num_seqs == 1)
    engine.close()
    step(backend, 3)
    assert [
        (answer.tokens, answer.cancelled)
        for answer in sorted(remaining_outputs(stream), key=lambda output: output.index)
    ] == [
        (3, False),
        (0, True),
    ]
    with pytest.raises(PromptOrTuneError, match=messages.ENGINE_CLOSED):
        engine.answer([request()], SamplingParams())
    with pytest.raises(PromptOrTuneError, match=messages.ENGINE_CLOSED):
        engine.count_prompt_tokens([request()], SamplingParams())
    assert engine.status().phase == "closed"


def test_unreferenced_engine_ends_after_its_streams(build: Build) -> None:
    before = set(threading.enumerate())  # threads of earlier tests may end while this one waits
    pools = ExamplePools(load=lambda _: POOL, index=lambda *_: FirstExamples())
    stream = LLMEngine(cast("Any", CountingBackend()), cast("Store", FakeStore()), pools).stream(
        [request("lora-1"), request("rag-3")], SamplingParams(max_new_tokens=20)
    )
    gc.collect()
    assert [answer.tokens for answer in remaining_outputs(stream)] == [20, 20]
    del stream
    gc.collect()
    wait_for(lambda: set(threading.enumerate()) <= before)
