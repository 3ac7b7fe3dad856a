"""Continuous batching: rows that join, end, are cancelled or fail do not change other rows."""

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
from tests import messages
from tests.serve.scripted_runner import (
    DECODINGS,
    ROWS,
    Bench,
    ScriptedRunner,
    alone,
    by_key,
    drain,
    encode,
    noise,
    sample_texts,
    saying,
    vocabulary,
)

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("continuous", [True, False])
@pytest.mark.parametrize("chunk_size", [4, 1000])
def test_rows_added_one_by_one_equal_each_row_alone(continuous: bool, chunk_size: int) -> None:
    bench = Bench(noise(), continuous=continuous, chunk_size=chunk_size)
    events: list[PartialOutput | RowOutput] = []
    for key, (row, decoding) in enumerate(zip(ROWS, DECODINGS, strict=True)):
        bench.batch.add(key, row, decoding)
        events += bench.batch.step() + bench.batch.step()
    outputs = drain(bench, events)
    expected = {key: alone(row, decoding) for key, (row, decoding) in enumerate(zip(ROWS, DECODINGS, strict=True))}
    for key, finished in expected.items():
        assert sample_texts(outputs[key]) == sample_texts(finished), key
        assert outputs[key].candidates == finished.candidates
    assert len({text for finished in expected.values() for text in sample_texts(finished)}) > 6, (
        "else this would prove nothing"
    )


def test_prefill_runs_between_steps_of_running_rows() -> None:
    bench = Bench(noise(), chunk_size=4)
    bench.batch.add(0, ROWS[1], SamplingParams(max_new_tokens=50))
    bench.batch.step()
    bench.batch.add(1, ROWS[0], SamplingParams(max_new_tokens=50))
    bench.batch.add(2, ROWS[0], SamplingParams("sample", 50, 2))
    indices = [[event.index for event in bench.batch.step()] for _ in range(3)]
    assert indices == [[0], [0], [0, 1, 2, 2]], "11 tokens are three chunks, and both rows are prefilled together"
    assert bench.runner.calls.count("prefill") == 2
    assert len(bench.batch) == 4


def test_rows_wait_without_continuous_batching() -> None:
    bench = Bench(noise(), continuous=False)
    bench.batch.add(0, ROWS[0], SamplingParams("sample", 3, 3))
    bench.batch.step()
    bench.batch.add(1, ROWS[1], SamplingParams(max_new_tokens=2))
    assert len(bench.batch) == 4
    assert {event.index for event in bench.batch.step()} == {0}
    assert {event.index for event in bench.batch.step()} == {0}
    assert "fork" in bench.runners[-2].calls
    assert [event.index for event in bench.batch.step()] == [1]
    assert "fork" not in bench.runner.calls


def test_beams_in_a_batch_equal_each_beam_search_alone() -> None:
    bench = Bench(noise(), "beam")
    decodings = [SamplingParams("beam", 6 + key, 2 + key % 3) for key in range(len(ROWS))]
    for key, (row, decoding) in enumerate(zip(ROWS, decodings, strict=True)):
        bench.batch.add(key, row, decoding)
    assert len(bench.batch) == sum(decoding.candidates for decoding in decodings)
    assert not bench.batch.supports_continuous_batching
    outputs = drain(bench)
    for key, (row, decoding) in enumerate(zip(ROWS, decodings, strict=True)):
        assert outputs[key].candidates == alone(row, decoding).candidates
        assert not outputs[key].cancelled
        assert {candidate.finish for candidate in outputs[key].candidates} == {"length"}


def test_run_to_end_gives_each_row_one_output_by_index() -> None:
    bench = Bench(saying({"a": "first", "b": "the second", "c": ""}))
    events = list(run_to_end(bench.batch, [Row(prompt, None) for prompt in "abc"], SamplingParams(), Event()))
    outputs = by_key(events)
    assert [sample_texts(outputs[key]) for key in range(3)] == [["first"], ["the second"], [""]]
    assert all(outputs[key].candidates[0].finish == "stop" and outputs[key].seconds > 0 for key in range(3))
    partial_texts = [event.text for event in events if isinstance(event, PartialOutput) and event.index == 0]
    assert partial_texts == ["f", "fi", "fir", "firs", "first"]


def test_16_bit_logits_are_accepted() -> None:
    script = noise()
    bench = Bench(lambda tokens, adapter: script(tokens, adapter).to(torch.bfloat16))
    bench.batch.add(0, ROWS[0], SamplingParams("sample", 6, 2, top_logprobs=3))
    assert {sample.tokens for sample in drain(bench)[0].samples} == {6}


@pytest.mark.parametrize("kind", ["step", "beam"])
@pytest.mark.parametrize("after", [0, 1, 2, 4, 6])
def test_cancelled_row_returns_its_text_and_others_are_unchanged(kind: str, after: int) -> None:
    decoding = SamplingParams("sample", 15, 2, seed=3) if kind == "step" else SamplingParams("beam", 15, 3)
    bench = Bench(noise(), kind, chunk_size=4)
    rows = [ROWS[0], ROWS[1], ROWS[2]]
    for key, row in enumerate(rows):
        bench.batch.add(key, row, decoding)
    events: list[PartialOutput | RowOutput] = []
    for _ in range(after):
        events += bench.batch.step()
    counts = {event.text: event.tokens for event in events if isinstance(event, PartialOutput) and event.index == 1}
    cancelled_output = bench.batch.cancel(1)
    assert cancelled_output.cancelled
    assert {candidate.finish for candidate in cancelled_output.candidates} == {"cancelled"}
    assert cancelled_output.candidates[0].tokens == max(counts.values(), default=0) == max(0, after - 2)
    assert len(bench.batch) == 2 * decoding.candidates
    with pytest.raises(KeyError):
        bench.batch.cancel(1)
    bench.batch.add(1, ROWS[5], decoding)
    assert 1 in drain(bench, events)
    for key in (0, 2):
        assert by_key(events)[key].candidates == alone(rows[key], decoding).candidates


def test_cancelling_all_rows_in_prefill_ends_the_prefill() -> None:
    bench = Bench(noise(), chunk_size=2)
    bench.batch.add(0, ROWS[1], SamplingParams(max_new_tokens=50))
    bench.batch.step()
    bench.batch.add(1, ROWS[0], SamplingParams())
    bench.batch.add(2, ROWS[0], SamplingParams())
    bench.batch.step()
    was_prefilling = []
    for key in (1, 2):
        bench.batch.cancel(key)
        was_prefilling.append(bench.runner.prefilling)
    assert was_prefilling == [True, False]
    runner = bench.runner
    bench.batch.cancel(0)
    assert bench.runner is not runner, "an empty batch has a new runner"
    assert bench.batch.step() == []


def test_last_running_row_can_be_cancelled_during_prefill() -> None:
    bench = Bench(noise(), chunk_size=4)
    bench.batch.add(0, ROWS[1], SamplingParams(max_new_tokens=50))
    bench.batch.step()
    bench.batch.add(1, ROWS[0], DECODINGS[1])
    bench.batch.step()
    bench.batch.cancel(0)
    assert drain(bench)[1].candidates == alone(ROWS[0], DECODINGS[1]).candidates


@pytest.mark.parametrize("kind", ["step", "beam"])
@pytest.mark.parametrize("call", ["prefill", "chunk", "decode", "reorder", "fork"])
def test_after_an_error_the_batch_is_empty_and_usable(kind: str, call: str) -> None:
    decoding = SamplingParams("sample", 5, 2, seed=3) if kind == "step" else SamplingParams("beam", 5, 2)
    bench = Bench(noise(), kind, continuous=False, chunk_size=4)
    bench.runner.fail_at = call
    for key, row in enumerate(ROWS):
        bench.batch.add(key, row, decoding)
    with pytest.raises(RuntimeError, match=messages.BASE_FAILED):
        drain(bench)
    assert len(bench.batch) == 0
    assert not any(runner.prefilling for runner in bench.runners)
    bench.batch.add(0, ROWS[0], decoding)
    assert drain(bench)[0].candidates == alone(ROWS[0], decoding).candidates


@pytest.mark.parametrize("kind", ["step", "beam"])
@pytest.mark.parametrize("end", ["finished", "cancelled", "failed"])
def test_finished_rows_release_their_adapter(kind: str, end: str) -> None:
    class Adapter:
        """An adapter in memory."""

        def __repr__(self) -> str:
            return "adapter"

    class FailingRunner(ScriptedRunner):
        def decode(self, tokens: torch.Tensor) -> torch.Tensor:
            if end == "failed" and len(self.calls) > 4:
                raise RuntimeError("the base failed")
            return super().decode(tokens)

    adapters: dict[str, Any] = {"one": Adapter()}
    adapter_ref = weakref.ref(adapters["one"])
    make = SamplingBatch if kind == "step" else BeamSearchBatch
    batch = make(lambda: FailingRunner(noise()), encode, lambda row: adapters[row.adapter or ""], vocabulary())
    decoding = SamplingParams("sample", 9, 2) if kind == "step" else SamplingParams("beam", 9, 2)
    batch.add(0, ROWS[1], decoding)
    adapters.clear()
    batch.step()
    assert adapter_ref() is not None, "running rows keep an unloaded adapter"
    if end == "cancelled":
        batch.cancel(0)
    with suppress(RuntimeError):
        while len(batch):
            batch.step()
    gc.collect()
    assert adapter_ref() is None


def test_refused_rows_leave_the_batch_unchanged() -> None:
    bench = Bench(noise())
    with pytest.raises(PromptOrTuneError, match=messages.PROMPT_IS_EMPTY):
        bench.batch.add(0, Row("", None), SamplingParams())
    with pytest.raises(ValueError, match=messages.NEEDS_OWN_BATCH):
        bench.batch.add(0, ROWS[0], SamplingParams("beam"))
    with pytest.raises(ValueError, match=messages.ONLY_BEAM_SEARCH):
        Bench(noise(), "beam").batch.add(0, ROWS[0], SamplingParams())
    bench.batch.add(0, ROWS[0], SamplingParams())
    with pytest.raises(ValueError, match=messages.KEY_IN_BATCH_ALREADY):
        bench.batch.add(0, ROWS[1], SamplingParams())
    assert len(bench.batch) == 1


def test_run_to_end_empties_the_batch_on_cancel_and_close() -> None:
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
    with pytest.raises(PromptOrTuneError, match=messages.PROMPT_IS_EMPTY):
        list(run_to_end(bench.batch, [ROWS[0], Row("", None)], SamplingParams(), Event()))
    assert len(bench.batch) == 0
    bench.runner.fail_at = "decode"
    with pytest.raises(RuntimeError, match=messages.BASE_FAILED):
        list(run_to_end(bench.batch, ROWS[:2], SamplingParams(), Event()))
