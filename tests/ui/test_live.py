"""A run from the click to its records: it waits for the model and in line, and can be stopped at any point."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from threading import Event
from typing import Any

import pytest

from errors import BaseModelError, PeftArenaError
from serve.engine_source import EngineSource, Report
from serve.rows import Answer, Partial
from tasks.problem import Problem
from tests.fakes import FakeEngine
from ui.compare_run import make_ask
from ui.context import Context, Stops
from ui.line import Line
from ui.live import STOPPED_EARLY, answers, live_steps

ASK = make_ask(Problem("typed", "reverse a string", "s[::-1]"), ["zero-shot", "icl-2"])


def context_of(engine: Any) -> Any:
    return Context(EngineSource(lambda report: engine).start(), line=Line())


def test_it_waits_for_the_model_and_then_runs() -> None:
    go = threading.Event()

    def build(report: Report) -> FakeEngine:
        report("Loading the model.")
        go.wait(10)
        return FakeEngine()

    steps = live_steps(Context(EngineSource(build)), ASK, Event())
    assert "Waiting for the model (Loading the model)" in next(steps).status
    go.set()
    rest = list(steps)
    assert [record["method"] for record in rest[-1].records] == ["zero-shot", "icl-2"]


def test_it_says_how_many_are_before_it() -> None:
    context = context_of(FakeEngine())
    with context.line.join():
        steps = live_steps(context, ASK, Event())
        assert next(steps).status == "Waiting: 1 run before yours."
    assert list(steps)[-1].records


def test_a_run_in_line_can_be_stopped_and_gives_its_place_back() -> None:
    context, cancel = context_of(FakeEngine()), Event()
    with context.line.join() as first:
        steps = live_steps(context, ASK, cancel)
        next(steps)
        cancel.set()
        assert [step.status for step in steps] == [STOPPED_EARLY]
        with context.line.join() as place:
            assert place.wait(0) == 1
        assert first.wait(0) == 0


def test_a_model_that_cannot_be_loaded_is_one_sentence() -> None:
    def build(report: Report) -> FakeEngine:
        raise BaseModelError("No base 'x'.")

    context = Context(EngineSource(build), line=Line())
    with pytest.raises(PeftArenaError, match=r"No base 'x'\."):
        list(live_steps(context, ASK, Event()))
    with pytest.raises(PeftArenaError, match=r"No base 'x'\."):
        answers(context, ASK)


def test_an_engine_that_breaks_gives_its_place_back() -> None:
    class Broken(FakeEngine):
        def stream(
            self, requests: Any, decoding: Any, cancel: Any = None, owner: str = ""
        ) -> Iterator[Partial | Answer]:
            raise RuntimeError("out of memory")

    context = context_of(Broken())
    with pytest.raises(RuntimeError, match="out of memory"):
        answers(context, ASK)
    with context.line.join() as place:
        assert place.wait(0) == 0


def test_stops_reach_only_their_session() -> None:
    stops = Stops()
    with stops.running("a") as first, stops.running("a") as second, stops.running("b") as other:
        stops.stop("a")
        assert (first.is_set(), second.is_set(), other.is_set()) == (True, True, False)
    assert other.is_set()
    stops.stop("b")
