"""Engine core with a CountingBackend: fair sharing, start of rows, beam search, metrics, and a stress test."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any, cast

import pytest
from prometheus_client import generate_latest

from adapters.store import AdapterFolder
from serve.engine.llm_engine import EngineConfig
from serve.types import PartialOutput, RequestOutput, Row, SamplingParams
from tests.serve.counting_backend import words
from tests.serve.engine_fixtures import (
    MAX_OWNER_SEQS,
    MAX_SEQS,
    Build,
    build,
    num_ready,
    num_ready_of,
    remaining_outputs,
    request,
    run_freely,
    step,
    wait_for,
)

pytestmark = pytest.mark.slow

__all__ = ["build"]


def test_short_row_does_not_wait_for_long_rows_of_another_owner(build: Build) -> None:
    engine, backend = build(gated=True)
    long = engine.stream([request()] * 100, SamplingParams(max_new_tokens=1000), owner="many")
    wait_for(lambda: engine.status().num_seqs == MAX_OWNER_SEQS)
    step(backend, 50)
    short = engine.stream([request("rag-2")], SamplingParams(max_new_tokens=5), owner="one")
    wait_for(lambda: num_ready_of(engine, "one") == 1)
    before = backend.steps
    step(backend, 6)
    assert remaining_outputs(short)[0].tokens == 5
    assert backend.steps - before <= 6, "it started with the next step"
    assert engine.status().num_seqs == MAX_OWNER_SEQS
    del long


def test_owners_share_the_batch_evenly(build: Build) -> None:
    engine, backend = build(gated=True)
    first = engine.stream([request(intent="a" * 9)] * 90, SamplingParams(max_new_tokens=10), owner="first")
    wait_for(lambda: engine.status().num_seqs == MAX_OWNER_SEQS)
    second = engine.stream([request(intent="b" * 5)] * 90, SamplingParams(max_new_tokens=10), owner="second")
    wait_for(lambda: num_ready_of(engine, "second") >= MAX_OWNER_SEQS)
    # Each finished row is replaced by one of the owner with fewer sequences, until both owners have the same number.
    step(backend, 25)
    is_second = [row.row.prompt.count("b" * 5) for row in backend.batches[0].rows.values()]
    assert MAX_OWNER_SEQS <= len(is_second) <= MAX_SEQS
    assert abs(sum(is_second) - len(is_second) / 2) <= EngineConfig().num_reserved_seqs
    del first, second


def test_each_call_without_an_owner_counts_as_one_owner(build: Build) -> None:
    engine, backend = build(EngineConfig(max_num_seqs=4), gated=True)
    many = engine.stream([request(intent="m")] * 40, SamplingParams(max_new_tokens=4))
    wait_for(lambda: engine.status().num_seqs == 4)
    four = SamplingParams(max_new_tokens=4)
    others = [engine.stream([request(intent=f"other {number}")], four) for number in range(4)]
    wait_for(lambda: num_ready(engine) >= 8)
    step(backend, 12)
    assert [answers[0].tokens for answers in map(remaining_outputs, others)] == [4, 4, 4, 4]
    del many


def test_rows_of_one_call_start_together_even_if_preparation_is_slow(build: Build) -> None:
    engine, backend = build()
    backend.loading = lambda _: time.sleep(0.02)
    answers = engine.answer(
        [request("zero-shot"), request("lora-1"), request("lora-2")], SamplingParams(max_new_tokens=3)
    )
    assert backend.batches[0].sizes == [3, 3, 3]
    assert len({answer.queued_seconds > 0.03 for answer in answers}) == 1


def test_decoding_continues_while_an_adapter_is_loaded(build: Build) -> None:
    engine, backend = build()
    running = engine.stream([request()], SamplingParams(max_new_tokens=200))
    assert isinstance(next(running), PartialOutput)

    def load(_: AdapterFolder) -> None:
        begin = backend.steps
        wait_for(lambda: backend.steps >= begin + 5)

    backend.loading = load
    engine.answer([request("lora-1")], SamplingParams(max_new_tokens=2))
    assert max(backend.batches[0].sizes) == 2
    assert len(backend.batches) == 1
    assert remaining_outputs(running)[0].tokens == 200


def test_without_continuous_batching_rows_wait_for_the_end_of_the_batch(build: Build) -> None:
    engine, backend = build(continuous=False, gated=True)
    first = engine.stream([request()] * 2, SamplingParams(max_new_tokens=3))
    wait_for(lambda: engine.status().num_seqs == 2)
    second = engine.stream([request()], SamplingParams(max_new_tokens=2))
    wait_for(lambda: num_ready(engine) == 1)
    step(backend, 5)
    assert len(remaining_outputs(first)) == 2
    assert len(remaining_outputs(second)) == 1
    assert backend.batches[0].sizes == [2, 2, 2, 1, 1]


def test_row_with_more_sequences_than_the_limit_runs_alone(build: Build) -> None:
    engine, backend = build(EngineConfig(max_num_seqs=4))
    decoding = SamplingParams("sample", max_new_tokens=3, candidates=10)
    assert len(engine.answer([request(), request()], decoding)[1].candidates) == 10
    assert set(backend.batches[0].sizes) == {10}


def test_beam_search_and_the_continuous_batch_are_stepped_in_turn(build: Build) -> None:
    engine, backend = build(gated=True)
    beams = engine.stream([request()] * 3, SamplingParams("beam", max_new_tokens=100, candidates=5))
    wait_for(lambda: engine.status().num_seqs == 15)
    short = engine.stream([request()], SamplingParams(max_new_tokens=5))
    wait_for(lambda: num_ready(engine) == 1)
    step(backend, 12)
    assert remaining_outputs(short)[0].tokens == 5
    assert {batch.mode: len(batch.sizes) for batch in backend.batches}["beam"] <= 8
    run_freely(backend)
    assert [len(answer.candidates) for answer in remaining_outputs(beams)] == [5, 5, 5]


def test_one_beam_search_at_a_time_with_equal_sampling_params(build: Build) -> None:
    engine, backend = build(gated=True)
    streams = []
    for beams in (2, 3, 2, 2):
        streams.append(engine.stream([request()], SamplingParams("beam", max_new_tokens=2, candidates=beams)))
        wait_for(lambda: engine.status().num_seqs == 2)
    wait_for(lambda: num_ready(engine) == 3)
    step(backend, 6)
    assert [len(remaining_outputs(stream)[0].candidates) for stream in streams] == [2, 3, 2, 2]
    assert [batch.sizes for batch in backend.batches] == [[2, 2], [3, 3], [4, 4]]


def test_metrics_count_requests_and_times(build: Build) -> None:
    engine, backend = build(EngineConfig(max_num_seqs=1), pause=0.005)
    first, second = engine.answer([request("lora-1"), request("lora-1")], SamplingParams(max_new_tokens=10))
    assert first.queued_seconds > 0
    assert first.seconds >= 0.05
    assert 0.005 <= first.first_token_seconds <= first.seconds - 0.045
    assert second.queued_seconds >= first.seconds
    backend.error = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        engine.answer([request()], SamplingParams())
    engine.answer([request("gone")], SamplingParams())
    stop = Event()
    stream = engine.stream([request()], SamplingParams(max_new_tokens=900), stop)
    next(stream)
    stop.set()
    list(stream)
    text = generate_latest(engine.metrics.registry).decode()
    metrics = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert metrics['prompt_or_tune_finished_requests_total{outcome="answered"}'] == "2.0"
    assert metrics['prompt_or_tune_finished_requests_total{outcome="failed"}'] == "1.0"
    assert metrics['prompt_or_tune_finished_requests_total{outcome="refused"}'] == "1.0"
    assert metrics['prompt_or_tune_finished_requests_total{outcome="cancelled"}'] == "1.0"
    assert float(metrics["prompt_or_tune_generation_tokens_total"]) >= 21
    assert float(metrics["prompt_or_tune_prompt_tokens_total"]) == 4 * first.prompt_tokens
    assert metrics["prompt_or_tune_failed_steps_total"] == "1.0"
    assert metrics["prompt_or_tune_num_requests_waiting"] == "0.0"
    assert metrics["prompt_or_tune_adapters"] == "1.0"
    assert metrics["prompt_or_tune_adapter_bytes"] == "1000.0"
    assert metrics["prompt_or_tune_adapter_hits_total"] == "1.0"
    assert metrics["prompt_or_tune_adapter_loads_total"] == "1.0"
    assert float(metrics["prompt_or_tune_batch_num_seqs_count"]) >= 21
    assert metrics["prompt_or_tune_e2e_request_latency_seconds_count"] == "2.0"


def test_fifty_clients_get_their_own_outputs(build: Build) -> None:
    config = EngineConfig(max_loaded_adapters=5, max_queued=10_000)
    engine, backend = build(config, pause=0.0)

    def ask(client: int) -> int:
        rng = random.Random(client)
        num_finished = 0
        for turn in range(12):
            names = [f"lora-{rng.randrange(8)}" if rng.random() < 0.8 else "icl-2" for _ in range(rng.randint(1, 9))]
            requests = [request(name, f"{client} {turn} {index}") for index, name in enumerate(names)]
            samples = rng.choice((1, 1, 1, 4))
            mode = rng.choice(("sample", "beam")) if samples > 1 else "greedy"
            decoding = SamplingParams(cast("Any", mode), max_new_tokens=rng.randint(1, 30), candidates=samples)
            cancel = Event()
            for number, event in enumerate(engine.stream(requests, decoding, cancel, owner=f"client {client % 7}")):
                if number > 20 and rng.random() < 0.02:
                    cancel.set()
                if rng.random() < 0.001:
                    break
                digest = None if (name := names[event.index]) == "icl-2" else f"digest of {name}"
                if isinstance(event, RequestOutput):
                    assert event.error is None
                    assert event.cancelled or len(event.candidates) == samples
                    row = Row(event.prompt, event.style, requests[event.index].method.adapter)
                    for index, candidate in enumerate(event.candidates):
                        assert candidate.text == words(row, digest, index, candidate.tokens)
                    num_finished += not event.cancelled
                else:
                    assert event.text.split("|")[2:4] == [str(requests[event.index].method.adapter), str(digest)]
        return num_finished

    with ThreadPoolExecutor(50) as clients:
        answered = sum(clients.map(ask, range(50)))
    assert answered > 1000
    wait_for(lambda: engine.status().num_seqs == 0 and engine.status().queued == 0)
    status = engine.adapter_cache.status()
    assert not any(adapter.leases for adapter in status.adapters)
    assert status.count <= 5
    assert not engine._queue.scheduler._queues
    assert all(len(batch) == 0 for batch in backend.batches)
    assert max(size for batch in backend.batches if batch.mode == "step" for size in batch.sizes) <= MAX_SEQS
