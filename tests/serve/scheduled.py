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
from serve.engine import Engine, EngineLimits, Stream
from serve.examples import Pools
from serve.method import parse_method
from serve.rows import Answer, Partial, Request
from tasks.problem import Problem
from tests.serve.counting import BASE, POOL, CountingBackend, InOrder, OneStore

LINES = EngineLimits().max_lines
MANY = LINES - EngineLimits().reserved_lines  # as many lines as one owner may have
Build = Callable[..., tuple[Engine, CountingBackend]]


@pytest.fixture
def build() -> Iterator[Build]:
    """Makes engines; at the end all gates open, and no thread is left behind."""
    made: list[tuple[Engine, CountingBackend]] = []

    def make(
        limits: EngineLimits | None = None, gated: bool = False, **settings: Any
    ) -> tuple[Engine, CountingBackend]:
        backend = CountingBackend(gate=Semaphore(0) if gated else None, **settings)
        backend.base = replace(BASE, context_length=100_000)
        pools = Pools(load=lambda _: POOL, index=lambda *_: InOrder())
        engine = Engine(cast("Any", backend), cast("Store", OneStore()), pools, limits=limits)
        made.append((engine, backend))
        return engine, backend

    before = threading.active_count()
    yield make
    for engine, backend in made:
        if backend.gate is not None:
            backend.gate.release(1_000_000)
        engine._scheduler.close(abandon=True)
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


def planned(engine: Engine) -> int:
    """How many rows are ready to join."""
    return sum(engine._board.lanes.ready.values())


def ready(engine: Engine, owner: str) -> int:
    """How many rows of the owner are ready to join."""
    lane = engine._board.lanes._lanes.get(owner)
    return 0 if lane is None else sum(map(len, lane.ready.values()))


def last(stream: Iterator[Partial | Answer]) -> list[Answer]:
    """The answers of a stream that ends soon."""
    answers: list[Answer] = []
    ends = cast("Stream", stream)

    def read() -> bool:
        answers.extend(event for event in ends.ready() if isinstance(event, Answer))
        return ends.over

    wait_for(read)
    return answers
