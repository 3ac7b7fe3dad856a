"""Rows that join, leave, are cancelled and break must not change what any other row says."""

from __future__ import annotations

from collections.abc import Iterable
from threading import Event

import pytest
import torch

from errors import PeftArenaError
from serve.backends.local.flight import run_to_end
from serve.rows import Decoding, Finished, Partial, Row
from tasks.prompt import STYLES
from tests.serve.scripted_state import Bench, noise, saying

PLAIN = STYLES["plain"]
ROWS = [
    Row("sort a list", None),
    Row("x", None, "one"),
    Row("sort a list", None, "two"),
    Row("a much longer prompt " * 3, None, "one"),
    Row("sort", PLAIN),
    Row("y", None),
]
DECODINGS = [
    Decoding(max_new_tokens=12),
    Decoding("sample", 9, 3, 1.5, 0.9, 5),
    Decoding("sample", 20, 1, 0.7, 1.0, 6),
    Decoding(max_new_tokens=3),
    Decoding(max_new_tokens=1),
    Decoding("sample", 7, 2, 1.0, 0.5, 7, top_logprobs=2),
]


def _alone(row: Row, decoding: Decoding) -> Finished:
    batch = Bench(noise(), "beam" if decoding.mode == "beam" else "step").batch
    (finished,) = (event for event in run_to_end(batch, [row], decoding, Event()) if isinstance(event, Finished))
    return finished


def _drain(bench: Bench, events: list[Partial | Finished] | None = None) -> dict[int, Finished]:
    events = [] if events is None else events
    for _ in range(300):
        if not len(bench.batch):
            break
        events += bench.batch.step()
    assert not len(bench.batch)
    return _by_key(events)


def _by_key(events: Iterable[Partial | Finished]) -> dict[int, Finished]:
    return {event.index: event for event in events if isinstance(event, Finished)}


def _said(finished: Finished) -> list[str]:
    return [sample.text for sample in finished.samples]


@pytest.mark.parametrize("joins", [True, False])
@pytest.mark.parametrize("piece", [4, 1000])
def test_rows_that_come_one_after_the_other_say_what_each_says_alone(joins: bool, piece: int) -> None:
    bench = Bench(noise(), joins=joins, piece=piece)
    events: list[Partial | Finished] = []
    for key, (row, decoding) in enumerate(zip(ROWS, DECODINGS, strict=True)):
        bench.batch.add(key, row, decoding)
        events += bench.batch.step() + bench.batch.step()
    found = _drain(bench, events)
    expected = {key: _alone(row, decoding) for key, (row, decoding) in enumerate(zip(ROWS, DECODINGS, strict=True))}
    for key, alone in expected.items():
        assert _said(found[key]) == _said(alone), key
        assert found[key].candidates == alone.candidates
    assert len({text for alone in expected.values() for text in _said(alone)}) > 6, "else this would prove nothing"


def test_a_row_that_joins_is_read_beside_those_in_flight_which_go_on_meanwhile() -> None:
    bench = Bench(noise(), piece=4)
    bench.batch.add(0, ROWS[1], Decoding(max_new_tokens=50))
    bench.batch.step()
    bench.batch.add(1, ROWS[0], Decoding(max_new_tokens=50))
    bench.batch.add(2, ROWS[0], Decoding("sample", 50, 2))
    seen = [[event.index for event in bench.batch.step()] for _ in range(3)]
    assert seen == [[0], [0], [0, 1, 2, 2]], "11 tokens are three pieces, and both rows are read together"
    assert bench.state.calls.count("read") == 2
    assert len(bench.batch) == 4


def test_without_joining_rows_wait_for_the_batch_to_be_empty_and_samples_share_their_prompt() -> None:
    bench = Bench(noise(), joins=False)
    bench.batch.add(0, ROWS[0], Decoding("sample", 3, 3))
    bench.batch.step()
    bench.batch.add(1, ROWS[1], Decoding(max_new_tokens=2))
    assert len(bench.batch) == 4
    assert {event.index for event in bench.batch.step()} == {0}
    assert {event.index for event in bench.batch.step()} == {0}
    assert "branch" in bench.states[-2].calls
    assert [event.index for event in bench.batch.step()] == [1]
    assert "branch" not in bench.state.calls


def test_beams_say_the_same_in_a_batch_as_alone() -> None:
    bench = Bench(noise(), "beam")
    decodings = [Decoding("beam", 6 + key, 2 + key % 3) for key in range(len(ROWS))]
    for key, (row, decoding) in enumerate(zip(ROWS, decodings, strict=True)):
        bench.batch.add(key, row, decoding)
    assert len(bench.batch) == sum(decoding.candidates for decoding in decodings)
    assert not bench.batch.joins
    found = _drain(bench)
    for key, (row, decoding) in enumerate(zip(ROWS, decodings, strict=True)):
        assert found[key].candidates == _alone(row, decoding).candidates
        assert not found[key].cancelled
        assert {candidate.finish for candidate in found[key].candidates} == {"length"}


@pytest.mark.parametrize("kind", ["step", "beam"])
@pytest.mark.parametrize("after", [0, 1, 2, 4, 6])
def test_a_cancelled_row_keeps_what_it_said_and_the_others_say_the_same(kind: str, after: int) -> None:
    decoding = Decoding("sample", 15, 2, seed=3) if kind == "step" else Decoding("beam", 15, 3)
    bench = Bench(noise(), kind, piece=4)
    rows = [ROWS[0], ROWS[1], ROWS[2]]
    for key, row in enumerate(rows):
        bench.batch.add(key, row, decoding)
    events: list[Partial | Finished] = []
    for _ in range(after):
        events += bench.batch.step()
    said = {event.text: event.tokens for event in events if isinstance(event, Partial) and event.index == 1}
    gone = bench.batch.cancel(1)
    assert gone.cancelled
    assert {candidate.finish for candidate in gone.candidates} == {"cancelled"}
    assert gone.candidates[0].tokens == max(said.values(), default=0) == max(0, after - 2)
    assert len(bench.batch) == 2 * decoding.candidates
    with pytest.raises(KeyError):
        bench.batch.cancel(1)
    bench.batch.add(1, ROWS[5], decoding)
    assert 1 in _drain(bench, events)
    for key in (0, 2):
        assert _by_key(events)[key].candidates == _alone(rows[key], decoding).candidates


def test_when_all_rows_that_are_being_read_are_cancelled_the_reading_ends() -> None:
    bench = Bench(noise(), piece=2)
    bench.batch.add(0, ROWS[1], Decoding(max_new_tokens=50))
    bench.batch.step()
    bench.batch.add(1, ROWS[0], Decoding())
    bench.batch.add(2, ROWS[0], Decoding())
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
    bench.batch.add(0, ROWS[1], Decoding(max_new_tokens=50))
    bench.batch.step()
    bench.batch.add(1, ROWS[0], DECODINGS[1])
    bench.batch.step()
    bench.batch.cancel(0)
    assert _drain(bench)[1].candidates == _alone(ROWS[0], DECODINGS[1]).candidates


@pytest.mark.parametrize("kind", ["step", "beam"])
@pytest.mark.parametrize("call", ["read", "piece", "step", "select", "branch"])
def test_after_an_error_the_batch_is_empty_and_works_on(kind: str, call: str) -> None:
    decoding = Decoding("sample", 5, 2, seed=3) if kind == "step" else Decoding("beam", 5, 2)
    bench = Bench(noise(), kind, joins=False, piece=4)
    bench.state.break_at = call
    for key, row in enumerate(ROWS):
        bench.batch.add(key, row, decoding)
    with pytest.raises(RuntimeError, match="the base broke"):
        _drain(bench)
    assert len(bench.batch) == 0
    assert not any(state.reading for state in bench.states)
    bench.batch.add(0, ROWS[0], decoding)
    assert _drain(bench)[0].candidates == _alone(ROWS[0], decoding).candidates


def test_what_cannot_be_answered_changes_nothing() -> None:
    bench = Bench(noise())
    with pytest.raises(PeftArenaError, match="prompt is empty"):
        bench.batch.add(0, Row("", None), Decoding())
    with pytest.raises(ValueError, match="batch of its own"):
        bench.batch.add(0, ROWS[0], Decoding("beam"))
    with pytest.raises(ValueError, match="beam search alone"):
        Bench(noise(), "beam").batch.add(0, ROWS[0], Decoding())
    bench.batch.add(0, ROWS[0], Decoding())
    with pytest.raises(ValueError, match="in the batch already"):
        bench.batch.add(0, ROWS[1], Decoding())
    assert len(bench.batch) == 1


def test_to_the_end_every_row_has_its_answer_by_its_place() -> None:
    bench = Bench(saying({"a": "first", "b": "the second", "c": ""}))
    events = list(run_to_end(bench.batch, [Row(prompt, None) for prompt in "abc"], Decoding(), Event()))
    found = _by_key(events)
    assert [_said(found[key]) for key in range(3)] == [["first"], ["the second"], [""]]
    assert all(found[key].candidates[0].finish == "stop" and found[key].seconds > 0 for key in range(3))
    shown = [event.text for event in events if isinstance(event, Partial) and event.index == 0]
    assert shown == ["f", "fi", "fir", "firs", "first"]


def test_to_the_end_a_cancel_or_a_caller_who_leaves_empties_the_batch() -> None:
    bench = Bench(noise())
    cancel = Event()
    finished = []
    for event in run_to_end(bench.batch, ROWS[:3], Decoding(max_new_tokens=50), cancel):
        if isinstance(event, Finished):
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
    assert isinstance(next(iter(events)), Finished)
    events.close()  # type: ignore[attr-defined]
    assert len(bench.batch) == 0
    with pytest.raises(PeftArenaError, match="prompt is empty"):
        list(run_to_end(bench.batch, [ROWS[0], Row("", None)], Decoding(), Event()))
    assert len(bench.batch) == 0
    bench.state.break_at = "step"
    with pytest.raises(RuntimeError, match="the base broke"):
        list(run_to_end(bench.batch, ROWS[:2], Decoding(), Event()))


def test_logits_of_sixteen_bits_are_enough() -> None:
    script = noise()
    bench = Bench(lambda read, worn: script(read, worn).to(torch.bfloat16))
    bench.batch.add(0, ROWS[0], Decoding("sample", 6, 2, top_logprobs=3))
    assert {sample.tokens for sample in _drain(bench)[0].samples} == {6}
