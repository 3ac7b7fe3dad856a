"""A run from the click to its records: it waits for the model and in line, and can be stopped at any point."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from threading import Event
from typing import Any

import pytest

from errors import BaseModelError, PromptOrTuneError
from serve.engine.llm_engine import EngineLoader, ProgressFn
from serve.types import PartialOutput, RequestOutput
from tasks.problem import Problem
from tests.fakes import FakeEngine
from ui.compare.run import make_comparison
from ui.compare.steps import STOPPED_EARLY, collect_records, run_comparison
from ui.context import CancelRegistry, Context
from ui.test_bench import AdmissionQueue

ASK = make_comparison(Problem("typed", "reverse a string", "s[::-1]"), ["zero-shot", "icl-2"])


def context_of(engine: Any) -> Any:
    return Context(EngineLoader(lambda report: engine).start(), run_queue=AdmissionQueue())


def test_it_waits_for_the_model_and_then_runs() -> None:
    go = threading.Event()

    def build(report: ProgressFn) -> FakeEngine:
        report("Loading the model.")
        go.wait(10)
        return FakeEngine()

    steps = run_comparison(Context(EngineLoader(build)), ASK, Event())
    assert "Waiting for the model (Loading the model)" in next(steps).status
    go.set()
    rest = list(steps)
    assert [record["method"] for record in rest[-1].records] == ["zero-shot", "icl-2"]


def test_it_says_how_many_are_before_it() -> None:
    context = context_of(FakeEngine())
    with context.run_queue.enqueue():
        steps = run_comparison(context, ASK, Event())
        assert next(steps).status == "Waiting: 1 run before yours."
    assert list(steps)[-1].records


def test_a_run_in_line_can_be_stopped_and_gives_its_place_back() -> None:
    context, cancel = context_of(FakeEngine()), Event()
    with context.run_queue.enqueue() as first:
        steps = run_comparison(context, ASK, cancel)
        next(steps)
        cancel.set()
        assert [step.status for step in steps] == [STOPPED_EARLY]
        with context.run_queue.enqueue() as place:
            assert place.wait(0) == 1
        assert first.wait(0) == 0


def test_a_model_that_cannot_be_loaded_is_one_sentence() -> None:
    def build(report: ProgressFn) -> FakeEngine:
        raise BaseModelError("No base 'x'.")

    context = Context(EngineLoader(build), run_queue=AdmissionQueue())
    with pytest.raises(PromptOrTuneError, match=r"No base 'x'\."):
        list(run_comparison(context, ASK, Event()))
    with pytest.raises(PromptOrTuneError, match=r"No base 'x'\."):
        collect_records(context, ASK)


def test_an_engine_that_breaks_gives_its_place_back() -> None:
    class Broken(FakeEngine):
        def stream(
            self, requests: Any, sampling_params: Any, cancel: Any = None, owner: str = ""
        ) -> Iterator[PartialOutput | RequestOutput]:
            raise RuntimeError("out of memory")

    context = context_of(Broken())
    with pytest.raises(RuntimeError, match="out of memory"):
        collect_records(context, ASK)
    with context.run_queue.enqueue() as place:
        assert place.wait(0) == 0


def test_stops_reach_only_their_session() -> None:
    stops = CancelRegistry()
    with stops.register("a") as first, stops.register("a") as second, stops.register("b") as other:
        stops.cancel("a")
        assert (first.is_set(), second.is_set(), other.is_set()) == (True, True, False)
    assert other.is_set()
    stops.cancel("b")
