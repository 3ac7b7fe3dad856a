"""Steps of a comparison: model loading, queue, cancellation."""

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
from tests import messages
from tests.fakes import FakeEngine
from ui.access.quota import AdmissionQueue
from ui.compare.comparison import make_comparison
from ui.compare.steps import STOPPED_EARLY, collect_records, run_comparison
from ui.context import CancelRegistry, Context

COMPARISON = make_comparison(Problem("typed", "reverse a string", "s[::-1]"), ["zero-shot", "icl-2"])


def context_of(engine: Any) -> Any:
    return Context(EngineLoader(lambda report: engine).start(), run_queue=AdmissionQueue())


def test_run_waits_for_the_model() -> None:
    go = threading.Event()

    def build(report: ProgressFn) -> FakeEngine:
        report("Loading the model.")
        go.wait(10)
        return FakeEngine()

    steps = run_comparison(Context(EngineLoader(build)), COMPARISON, Event())
    assert "Waiting for the model (Loading the model)" in next(steps).status
    go.set()
    rest = list(steps)
    assert [record["method"] for record in rest[-1].records] == ["zero-shot", "icl-2"]


def test_status_contains_the_number_of_runs_ahead() -> None:
    context = context_of(FakeEngine())
    with context.run_queue.enqueue():
        steps = run_comparison(context, COMPARISON, Event())
        assert next(steps).status == "Waiting: 1 run before yours."
    assert list(steps)[-1].records


def test_waiting_run_can_be_cancelled_and_leaves_the_queue() -> None:
    context, cancel = context_of(FakeEngine()), Event()
    with context.run_queue.enqueue() as first:
        steps = run_comparison(context, COMPARISON, cancel)
        next(steps)
        cancel.set()
        assert [step.status for step in steps] == [STOPPED_EARLY]
        with context.run_queue.enqueue() as ticket:
            assert ticket.wait(0) == 1
        assert first.wait(0) == 0


def test_failed_model_load_is_raised() -> None:
    def build(report: ProgressFn) -> FakeEngine:
        raise BaseModelError("No base 'x'.")

    context = Context(EngineLoader(build), run_queue=AdmissionQueue())
    with pytest.raises(PromptOrTuneError, match=messages.UNKNOWN_BASE_X):
        list(run_comparison(context, COMPARISON, Event()))
    with pytest.raises(PromptOrTuneError, match=messages.UNKNOWN_BASE_X):
        collect_records(context, COMPARISON)


def test_run_that_raises_leaves_the_queue() -> None:
    class Broken(FakeEngine):
        def stream(
            self, requests: Any, sampling_params: Any, cancel: Any = None, owner: str = ""
        ) -> Iterator[PartialOutput | RequestOutput]:
            raise RuntimeError("out of memory")

    context = context_of(Broken())
    with pytest.raises(RuntimeError, match=messages.OUT_OF_MEMORY):
        collect_records(context, COMPARISON)
    with context.run_queue.enqueue() as ticket:
        assert ticket.wait(0) == 0


def test_cancel_affects_only_its_session() -> None:
    registry = CancelRegistry()
    with registry.register("a") as first, registry.register("a") as second, registry.register("b") as other:
        registry.cancel("a")
        assert (first.is_set(), second.is_set(), other.is_set()) == (True, True, False)
    assert other.is_set()
    registry.cancel("b")
