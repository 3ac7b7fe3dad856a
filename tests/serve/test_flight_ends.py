"""Rows that are cancelled, rows that break and rows that cannot be answered: nothing of them stays."""

from __future__ import annotations

import gc
import weakref
from contextlib import suppress
from threading import Event
from typing import Any

import pytest
import torch

from errors import PromptOrTuneError
from serve.backends.local.batch import SamplingBatch, run_to_end
from serve.backends.local.beam_search import BeamSearchBatch
from serve.types import PartialOutput, Row, RowOutput, SamplingParams
from tests.serve.scripted_state import (
    DECODINGS,
    ROWS,
    Bench,
    ScriptedState,
    alone,
    by_key,
    drain,
    encode,
    noise,
    vocabulary,
)


@pytest.mark.parametrize("kind", ["step", "beam"])
@pytest.mark.parametrize("after", [0, 1, 2, 4, 6])
def test_a_cancelled_row_keeps_what_it_said_and_the_others_say_the_same(kind: str, after: int) -> None:
    decoding = SamplingParams("sample", 15, 2, seed=3) if kind == "step" else SamplingParams("beam", 15, 3)
    bench = Bench(noise(), kind, piece=4)
    rows = [ROWS[0], ROWS[1], ROWS[2]]
    for key, row in enumerate(rows):
        bench.batch.add(key, row, decoding)
    events: list[PartialOutput | RowOutput] = []
    for _ in range(after):
        events += bench.batch.step()
    said = {event.text: event.tokens for event in events if isinstance(event, PartialOutput) and event.index == 1}
    gone = bench.batch.cancel(1)
    assert gone.cancelled
    assert {candidate.finish for candidate in gone.candidates} == {"cancelled"}
    assert gone.candidates[0].tokens == max(said.values(), default=0) == max(0, after - 2)
    assert len(bench.batch) == 2 * decoding.candidates
    with pytest.raises(KeyError):
        bench.batch.cancel(1)
    bench.batch.add(1, ROWS[5], decoding)
    assert 1 in drain(bench, events)
    for key in (0, 2):
        assert by_key(events)[key].candidates == alone(rows[key], decoding).candidates


def test_when_all_rows_that_are_being_read_are_cancelled_the_reading_ends() -> None:
    bench = Bench(noise(), piece=2)
    bench.batch.add(0, ROWS[1], SamplingParams(max_new_tokens=50))
    bench.batch.step()
    bench.batch.add(1, ROWS[0], SamplingParams())
    bench.batch.add(2, ROWS[0], SamplingParams())
    bench.batch.step()
    reading = []
    for key in (1, 2):
        bench.batch.cancel(key)
        reading.append(bench.state.reading)
    assert reading == [True, False]
    state = bench.state
    bench.batch.cancel(0)
    assert bench.state is not state, "an empty batch keeps nothing in memory"
    assert bench.batch.step() == []


def test_the_last_row_in_flight_may_be_cancelled_while_another_is_read() -> None:
    bench = Bench(noise(), piece=4)
    bench.batch.add(0, ROWS[1], SamplingParams(max_new_tokens=50))
    bench.batch.step()
    bench.batch.add(1, ROWS[0], DECODINGS[1])
    bench.batch.step()
    bench.batch.cancel(0)
    assert drain(bench)[1].candidates == alone(ROWS[0], DECODINGS[1]).candidates


@pytest.mark.parametrize("kind", ["step", "beam"])
@pytest.mark.parametrize("call", ["read", "piece", "step", "select", "branch"])
def test_after_an_error_the_batch_is_empty_and_works_on(kind: str, call: str) -> None:
    decoding = SamplingParams("sample", 5, 2, seed=3) if kind == "step" else SamplingParams("beam", 5, 2)
    bench = Bench(noise(), kind, joins=False, piece=4)
    bench.state.break_at = call
    for key, row in enumerate(ROWS):
        bench.batch.add(key, row, decoding)
    with pytest.raises(RuntimeError, match="the base broke"):
        drain(bench)
    assert len(bench.batch) == 0
    assert not any(state.reading for state in bench.states)
    bench.batch.add(0, ROWS[0], decoding)
    assert drain(bench)[0].candidates == alone(ROWS[0], decoding).candidates


@pytest.mark.parametrize("kind", ["step", "beam"])
@pytest.mark.parametrize("end", ["said", "cancelled", "broken"])
def test_nothing_holds_what_a_row_wore_when_it_has_ended(kind: str, end: str) -> None:
    class Thing:
        """An adapter in memory."""

        def __repr__(self) -> str:
            return "thing"

    class Breaking(ScriptedState):
        def decode(self, tokens: torch.Tensor) -> torch.Tensor:
            if end == "broken" and len(self.calls) > 4:
                raise RuntimeError("the base broke")
            return super().decode(tokens)

    things: dict[str, Any] = {"one": Thing()}
    kept = weakref.ref(things["one"])
    make = SamplingBatch if kind == "step" else BeamSearchBatch
    batch = make(lambda: Breaking(noise()), encode, lambda row: things[row.adapter or ""], vocabulary())
    decoding = SamplingParams("sample", 9, 2) if kind == "step" else SamplingParams("beam", 9, 2)
    batch.add(0, ROWS[1], decoding)
    things.clear()
    batch.step()
    assert kept() is not None, "what is taken off in memory is still worn by rows in flight"
    if end == "cancelled":
        batch.cancel(0)
    with suppress(RuntimeError):
        while len(batch):
            batch.step()
    gc.collect()
    assert kept() is None


def test_what_cannot_be_answered_changes_nothing() -> None:
    bench = Bench(noise())
    with pytest.raises(PromptOrTuneError, match="prompt is empty"):
        bench.batch.add(0, Row("", None), SamplingParams())
    with pytest.raises(ValueError, match="batch of its own"):
        bench.batch.add(0, ROWS[0], SamplingParams("beam"))
    with pytest.raises(ValueError, match="beam search alone"):
        Bench(noise(), "beam").batch.add(0, ROWS[0], SamplingParams())
    bench.batch.add(0, ROWS[0], SamplingParams())
    with pytest.raises(ValueError, match="in the batch already"):
        bench.batch.add(0, ROWS[1], SamplingParams())
    assert len(bench.batch) == 1


def test_to_the_end_a_cancel_or_a_caller_who_leaves_empties_the_batch() -> None:
    bench = Bench(noise())
    cancel = Event()
    finished = []
    for event in run_to_end(bench.batch, ROWS[:3], SamplingParams(max_new_tokens=50), cancel):
        if isinstance(event, RowOutput):
            finished.append(event)
        elif event.tokens == 3:
            cancel.set()
    assert [(event.index, event.cancelled, event.candidates[0].tokens) for event in finished] == [
        (0, True, 3),
        (1, True, 3),
        (2, True, 3),
    ]
    assert len(bench.batch) == 0
    events = run_to_end(bench.batch, [ROWS[0], ROWS[4]], DECODINGS[4], Event())
    assert isinstance(next(iter(events)), RowOutput)
    events.close()  # type: ignore[attr-defined]
    assert len(bench.batch) == 0
    with pytest.raises(PromptOrTuneError, match="prompt is empty"):
        list(run_to_end(bench.batch, [ROWS[0], Row("", None)], SamplingParams(), Event()))
    assert len(bench.batch) == 0
    bench.state.break_at = "step"
    with pytest.raises(RuntimeError, match="the base broke"):
        list(run_to_end(bench.batch, ROWS[:2], SamplingParams(), Event()))
