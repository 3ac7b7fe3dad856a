"""What tests of the scheduling share: engines over a backend that only counts, stepped by the test."""

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
from tasks.methods import parse_method
from tasks.problem import Problem
from tasks.retrieval import ExamplePools
from tests.serve.counting import BASE, POOL, CountingBackend, InOrder, OneStore

LINES = EngineConfig().max_num_seqs
MANY = LINES - EngineConfig().num_reserved_seqs  # as many lines as one owner may have
Build = Callable[..., tuple[LLMEngine, CountingBackend]]


@pytest.fixture
def build() -> Iterator[Build]:
    """Makes engines; at the end all gates open, and no thread is left behind."""
    made: list[tuple[LLMEngine, CountingBackend]] = []

    def make(
        limits: EngineConfig | None = None, gated: bool = False, **settings: Any
    ) -> tuple[LLMEngine, CountingBackend]:
        backend = CountingBackend(gate=Semaphore(0) if gated else None, **settings)
        backend.base = replace(BASE, context_length=100_000)
        pools = ExamplePools(load=lambda _: POOL, index=lambda *_: InOrder())
        engine = LLMEngine(cast("Any", backend), cast("Store", OneStore()), pools, config=limits)
        made.append((engine, backend))
        return engine, backend

    before = threading.active_count()
    yield make
    for engine, backend in made:
        if backend.gate is not None:
            backend.gate.release(1_000_000)
        engine._core.close(abort_running=True)
    wait_for(lambda: threading.active_count() <= before)


def wait_for(condition: Callable[[], object], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.001)


def request(method: str = "zero-shot", intent: str = "sort a list") -> Request:
    return Request(Problem("p", intent), parse_method(method, [*OneStore().names(), "gone"]))


def step(backend: CountingBackend, times: int) -> None:
    """Lets so many steps happen."""
    assert backend.gate is not None
    target = backend.steps + times
    backend.gate.release(times)
    wait_for(lambda: backend.steps >= target)


def run_on(backend: CountingBackend) -> None:
    """Lets all further steps happen."""
    assert backend.gate is not None
    backend.gate.release(100_000)


def planned(engine: LLMEngine) -> int:
    """How many rows are ready to join."""
    return sum(engine._queue.scheduler.ready.values())


def ready(engine: LLMEngine, owner: str) -> int:
    """How many rows of the owner are ready to join."""
    lane = engine._queue.scheduler._queues.get(owner)
    return 0 if lane is None else sum(map(len, lane.ready.values()))


def last(stream: Iterator[PartialOutput | RequestOutput]) -> list[RequestOutput]:
    """The answers of a stream that ends soon."""
    answers: list[RequestOutput] = []
    ends = cast("OutputStream", stream)

    def read() -> bool:
        answers.extend(event for event in ends.get_nowait() if isinstance(event, RequestOutput))
        return ends.finished

    wait_for(read)
    return answers
