"""Rows that join and leave must not change what any other row says."""

from __future__ import annotations

from threading import Event

import pytest
import torch

from serve.backends.local.batch import run_to_end
from serve.types import PartialOutput, Row, RowOutput, SamplingParams
from tests.serve.scripted_state import (
    DECODINGS,
    ROWS,
    Bench,
    alone,
    by_key,
    drain,
    noise,
    said,
    saying,
)


@pytest.mark.parametrize("joins", [True, False])
@pytest.mark.parametrize("piece", [4, 1000])
def test_rows_that_come_one_after_the_other_say_what_each_says_alone(joins: bool, piece: int) -> None:
    bench = Bench(noise(), joins=joins, piece=piece)
    events: list[PartialOutput | RowOutput] = []
    for key, (row, decoding) in enumerate(zip(ROWS, DECODINGS, strict=True)):
        bench.batch.add(key, row, decoding)
        events += bench.batch.step() + bench.batch.step()
    found = drain(bench, events)
    expected = {key: alone(row, decoding) for key, (row, decoding) in enumerate(zip(ROWS, DECODINGS, strict=True))}
    for key, finished in expected.items():
        assert said(found[key]) == said(finished), key
        assert found[key].candidates == finished.candidates
    assert len({text for finished in expected.values() for text in said(finished)}) > 6, "else this would prove nothing"


def test_a_row_that_joins_is_read_beside_those_in_flight_which_go_on_meanwhile() -> None:
    bench = Bench(noise(), piece=4)
    bench.batch.add(0, ROWS[1], SamplingParams(max_new_tokens=50))
    bench.batch.step()
    bench.batch.add(1, ROWS[0], SamplingParams(max_new_tokens=50))
    bench.batch.add(2, ROWS[0], SamplingParams("sample", 50, 2))
    seen = [[event.index for event in bench.batch.step()] for _ in range(3)]
    assert seen == [[0], [0], [0, 1, 2, 2]], "11 tokens are three pieces, and both rows are read together"
    assert bench.state.calls.count("read") == 2
    assert len(bench.batch) == 4


def test_without_joining_rows_wait_for_the_batch_to_be_empty_and_samples_share_their_prompt() -> None:
    bench = Bench(noise(), joins=False)
    bench.batch.add(0, ROWS[0], SamplingParams("sample", 3, 3))
    bench.batch.step()
    bench.batch.add(1, ROWS[1], SamplingParams(max_new_tokens=2))
    assert len(bench.batch) == 4
    assert {event.index for event in bench.batch.step()} == {0}
    assert {event.index for event in bench.batch.step()} == {0}
    assert "branch" in bench.states[-2].calls
    assert [event.index for event in bench.batch.step()] == [1]
    assert "branch" not in bench.state.calls


def test_beams_say_the_same_in_a_batch_as_alone() -> None:
    bench = Bench(noise(), "beam")
    decodings = [SamplingParams("beam", 6 + key, 2 + key % 3) for key in range(len(ROWS))]
    for key, (row, decoding) in enumerate(zip(ROWS, decodings, strict=True)):
        bench.batch.add(key, row, decoding)
    assert len(bench.batch) == sum(decoding.candidates for decoding in decodings)
    assert not bench.batch.supports_continuous_batching
    found = drain(bench)
    for key, (row, decoding) in enumerate(zip(ROWS, decodings, strict=True)):
        assert found[key].candidates == alone(row, decoding).candidates
        assert not found[key].cancelled
        assert {candidate.finish for candidate in found[key].candidates} == {"length"}


def test_to_the_end_every_row_has_its_answer_by_its_place() -> None:
    bench = Bench(saying({"a": "first", "b": "the second", "c": ""}))
    events = list(run_to_end(bench.batch, [Row(prompt, None) for prompt in "abc"], SamplingParams(), Event()))
    found = by_key(events)
    assert [said(found[key]) for key in range(3)] == [["first"], ["the second"], [""]]
    assert all(found[key].candidates[0].finish == "stop" and found[key].seconds > 0 for key in range(3))
    shown = [event.text for event in events if isinstance(event, PartialOutput) and event.index == 0]
    assert shown == ["f", "fi", "fir", "firs", "first"]


def test_logits_of_sixteen_bits_are_enough() -> None:
    script = noise()
    bench = Bench(lambda read, worn: script(read, worn).to(torch.bfloat16))
    bench.batch.add(0, ROWS[0], SamplingParams("sample", 6, 2, top_logprobs=3))
    assert {sample.tokens for sample in drain(bench)[0].samples} == {6}
