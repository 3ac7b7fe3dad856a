"""Many callers and one model: what is told of it, and all of it at once; the backend only counts."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any, cast

import pytest
from prometheus_client import generate_latest

from serve.engine.llm_engine import EngineConfig
from serve.types import RequestOutput, Row, SamplingParams
from tests.serve.counting import words
from tests.serve.scheduled import LINES, Build, build, request, wait_for

__all__ = ["build"]


def test_times_and_metrics_say_what_happened(build: Build) -> None:
    engine, backend = build(EngineConfig(max_num_seqs=1), pause=0.005)
    first, second = engine.answer([request("lora-1"), request("lora-1")], SamplingParams(max_new_tokens=10))
    assert first.queued_seconds > 0
    assert first.seconds >= 0.05
    assert 0.005 <= first.first_token_seconds <= first.seconds - 0.045
    assert second.queued_seconds >= first.seconds
    backend.fault = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        engine.answer([request()], SamplingParams())
    engine.answer([request("gone")], SamplingParams())
    stop = Event()
    stream = engine.stream([request()], SamplingParams(max_new_tokens=900), stop)
    next(stream)
    stop.set()
    list(stream)
    text = generate_latest(engine.metrics.registry).decode()
    found = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert found['prompt_or_tune_finished_requests_total{outcome="answered"}'] == "2.0"
    assert found['prompt_or_tune_finished_requests_total{outcome="failed"}'] == "1.0"
    assert found['prompt_or_tune_finished_requests_total{outcome="refused"}'] == "1.0"
    assert found['prompt_or_tune_finished_requests_total{outcome="cancelled"}'] == "1.0"
    assert float(found["prompt_or_tune_generation_tokens_total"]) >= 21
    assert float(found["prompt_or_tune_prompt_tokens_total"]) == 4 * first.prompt_tokens
    assert found["prompt_or_tune_failed_steps_total"] == "1.0"
    assert found["prompt_or_tune_num_requests_waiting"] == "0.0"
    assert found["prompt_or_tune_adapters"] == "1.0"
    assert found["prompt_or_tune_adapter_bytes"] == "1000.0"
    assert (found["prompt_or_tune_adapter_hits_total"], found["prompt_or_tune_adapter_loads_total"]) == ("1.0", "1.0")
    assert float(found["prompt_or_tune_batch_num_seqs_count"]) >= 21
    assert found["prompt_or_tune_e2e_request_latency_seconds_count"] == "2.0"


def test_thousands_of_rows_of_fifty_clients_each_get_their_own(build: Build) -> None:
    limits = EngineConfig(max_loaded_adapters=5, max_queued=10_000)
    engine, backend = build(limits, pause=0.0)

    def ask(client: int) -> int:
        chance = random.Random(client)
        whole = 0
        for turn in range(12):
            names = [
                f"lora-{chance.randrange(8)}" if chance.random() < 0.8 else "icl-2" for _ in range(chance.randint(1, 9))
            ]
            requests = [request(name, f"{client} {turn} {place}") for place, name in enumerate(names)]
            samples = chance.choice((1, 1, 1, 4))
            mode = chance.choice(("sample", "beam")) if samples > 1 else "greedy"
            decoding = SamplingParams(cast("Any", mode), max_new_tokens=chance.randint(1, 30), candidates=samples)
            cancel = Event()
            for number, event in enumerate(engine.stream(requests, decoding, cancel, owner=f"client {client % 7}")):
                if number > 20 and chance.random() < 0.02:
                    cancel.set()
                if chance.random() < 0.001:
                    break
                digest = None if (name := names[event.index]) == "icl-2" else f"digest of {name}"
                if isinstance(event, RequestOutput):
                    assert event.error is None
                    assert event.cancelled or len(event.candidates) == samples
                    row = Row(event.prompt, event.style, requests[event.index].method.adapter)
                    for place, candidate in enumerate(event.candidates):
                        assert candidate.text == words(row, digest, place, candidate.tokens)
                    whole += not event.cancelled
                else:
                    assert event.text.split("|")[2:4] == [str(requests[event.index].method.adapter), str(digest)]
        return whole

    with ThreadPoolExecutor(50) as clients:
        answered = sum(clients.map(ask, range(50)))
    assert answered > 1000
    wait_for(lambda: engine.status().num_seqs == 0 and engine.status().queued == 0)
    status = engine.adapter_cache.status()
    assert not any(each.leases for each in status.adapters)
    assert status.count <= 5
    assert not engine._queue.scheduler._queues
    assert all(len(batch) == 0 for batch in backend.batches)
    assert max(size for batch in backend.batches if batch.mode == "step" for size in batch.sizes) <= LINES
