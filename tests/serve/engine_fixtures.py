"""Fixtures for tests of the engine core: engines with a CountingBackend, whose steps a test can control."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from threading import Semaphore
from typing import Any, cast

import pytest

from adapters.store import Store
from serve.engine.llm_engine import EngineConfig, LLMEngine, OutputStream
from serve.types import PartialOutput, Request, RequestOutput
from tasks.methods import ExamplePools, parse_method
from tasks.problem import Problem
from tests.serve.counting_backend import BASE, POOL, CountingBackend, FakeStore, FirstExamples

MAX_SEQS = EngineConfig().max_num_seqs
MAX_OWNER_SEQS = MAX_SEQS - EngineConfig().num_reserved_seqs
Build = Callable[..., tuple[LLMEngine, CountingBackend]]


@pytest.fixture
def build() -> Iterator[Build]:
    """Return a function that makes engines; checks at the end that all their threads have ended."""
    engines: list[tuple[LLMEngine, CountingBackend]] = []

    def make(
        config: EngineConfig | None = None, gated: bool = False, **settings: Any
    ) -> tuple[LLMEngine, CountingBackend]:
        backend = CountingBackend(gate=Semaphore(0) if gated else None, **settings)
        backend.base = replace(BASE, context_length=100_000)
        pools = ExamplePools(load=lambda _: POOL, index=lambda *_: FirstExamples())
        engine = LLMEngine(cast("Any", backend), cast("Store", FakeStore()), pools, config=config)
        engines.append((engine, backend))
        return engine, backend

    before = threading.active_count()
    yield make
    for engine, backend in engines:
        if backend.gate is not None:
            backend.gate.release(1_000_000)
        engine._core.close(abort_running=True)
    wait_for(lambda: threading.active_count() <= before)


def wait_for(condition: Callable[[], object], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not become true in time"
        time.sleep(0.001)


def request(method: str = "zero-shot", intent: str = "sort a list") -> Request:
    return Request(Problem("p", intent), parse_method(method, [*FakeStore().names(), "gone"]))


def step(backend: CountingBackend, times: int) -> None:
    """Allow `times` steps and wait for them."""
    assert backend.gate is not None
    target = backend.steps + times
    backend.gate.release(times)
    wait_for(lambda: backend.steps >= target)


def run_freely(backend: CountingBackend) -> None:
    """Allow all further steps."""
    assert backend.gate is not None
    backend.gate.release(100_000)


def num_ready(engine: LLMEngine) -> int:
    """Return the number of rows that are ready to start."""
    return sum(engine._queue.scheduler.ready.values())


def num_ready_of(engine: LLMEngine, owner: str) -> int:
    """Return the number of rows of one owner that are ready to start."""
    queue = engine._queue.scheduler._queues.get(owner)
    return 0 if queue is None else sum(map(len, queue.ready.values()))


def remaining_outputs(stream: Iterator[PartialOutput | RequestOutput]) -> list[RequestOutput]:
    """Wait for the end of a stream and return its request outputs."""
    outputs: list[RequestOutput] = []
    output_stream = cast("OutputStream", stream)

    def read_all() -> bool:
        outputs.extend(event for event in output_stream.get_nowait() if isinstance(event, RequestOutput))
        return output_stream.finished

    wait_for(read_all)
    return outputs
