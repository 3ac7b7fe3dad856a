"""Tests of the engine benchmarks' arithmetic: timing, ratios, bandwidth limit, request sampling, and the page."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from benchmarks import engine, engine_batches
from benchmarks.engine_adapters import HOT, sample_requests
from benchmarks.engine_harness import Stopwatch, make_timed, medians, round_significant, time_interleaved, time_ratios
from benchmarks.report import TARGETS, render_engine_page
from errors import PromptOrTuneError
from serve.types import Candidate, PartialOutput, RowOutput
from tests import messages


class Clock:
    """A clock that tests advance by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("benchmarks.engine_harness.time.perf_counter", clock)
    return clock


def test_sides_alternate_and_the_warm_up_round_is_not_stored() -> None:
    turns: list[str] = []

    def side(name: str, seconds: list[float]) -> Any:
        def call() -> float:
            turns.append(name)
            return seconds.pop(0)

        return call

    times = time_interleaved("test", {"a": side("a", [9.0, 1.0, 2.0]), "b": side("b", [99.0, 10.0, 10.0])}, runs=2)
    assert times == {"a": [1.0, 2.0], "b": [10.0, 10.0]}
    assert turns == ["b", "a", "a", "b", "b", "a"]


def test_setup_time_is_not_measured(clock: Clock) -> None:
    def work() -> None:
        clock.now += 3

    def setup() -> None:
        clock.now += 50

    assert make_timed(work, setup=setup)() == 3


def test_ratio_is_of_medians_and_each_round_has_a_ratio() -> None:
    times = {"ours": [1.0, 2.0, 30.0], "theirs": [4.0, 5.0, 6.0]}
    assert time_ratios(times, "ours", "theirs") == {"ratio": 0.4, "pair_ratios": [0.25, 0.4, 5.0]}
    assert medians(times) == {"ours": 2.0, "theirs": 5.0}


@pytest.mark.parametrize(("value", "displayed"), [(0.123456, 0.1235), (1234.56, 1235), (0.00098765, 0.0009877), (0, 0)])
def test_metrics_are_rounded_to_four_digits(value: float, displayed: float) -> None:
    assert round_significant(value) == displayed


def finished(index: int, tokens: int) -> RowOutput:
    return RowOutput(index, (Candidate("", "", 0.0, tokens),), 0.0)


def test_step_is_timed_while_all_rows_are_in_flight(clock: Clock) -> None:
    """Row 1 begins one second late; then a step takes 0.5 s, until row 0 ends with its fifth token."""

    def events() -> Iterator[PartialOutput | RowOutput]:
        script: list[tuple[float, PartialOutput | RowOutput]] = [
            (2.0, PartialOutput(0, "", 1)),
            (1.0, PartialOutput(0, "", 2)),
            (0.0, PartialOutput(1, "", 1)),
            (0.5, PartialOutput(0, "", 3)),
            (0.0, PartialOutput(1, "", 2)),
            (0.5, PartialOutput(0, "", 4)),
            (0.0, PartialOutput(1, "", 3)),
            (0.5, finished(0, 5)),
            (0.0, PartialOutput(1, "", 4)),
            (0.1, finished(1, 5)),
        ]
        for seconds, event in script:
            clock.now += seconds
            yield event

    watch = Stopwatch(events())
    assert watch.first_token_seconds() == 2.0
    # Row 1 had its first token at 3.0, when row 0 had two tokens; row 0 ended at 4.5.
    assert watch.step_seconds() == pytest.approx(0.5)


def test_step_time_of_rows_that_do_not_overlap_is_an_error() -> None:
    events: list[PartialOutput | RowOutput] = [
        PartialOutput(0, "", 1),
        finished(0, 2),
        PartialOutput(1, "", 1),
        finished(1, 2),
    ]
    with pytest.raises(PromptOrTuneError, match=messages.NOT_IN_FLIGHT_TOGETHER):
        Stopwatch(iter(events)).step_seconds()


def test_sample_requests_uses_new_adapters_in_five_percent_of_the_requests() -> None:
    hot, cold = [f"hot-{index}" for index in range(HOT)], iter([f"cold-{index}" for index in range(20)])
    rng = random.Random(0)
    rounds = [sample_requests(hot, cold, 100, rng) for _ in range(4)]
    new_names = [[name for name in names if name not in hot] for names in rounds]
    assert [len(names) for names in new_names] == [5, 5, 5, 5]
    assert sorted(name for names in new_names for name in names) == sorted(f"cold-{index}" for index in range(20))
    assert next(cold, None) is None
    assert len({name for name in rounds[0] if name in hot}) > HOT / 2


class Model(torch.nn.Module):
    """A model of input embeddings (10, 4), a layer (4, 4) with bias, and a separate or tied output layer."""

    def __init__(self, is_tied: bool) -> None:
        super().__init__()
        self.inputs = torch.nn.Embedding(10, 4, dtype=torch.bfloat16)
        self.layer = torch.nn.Linear(4, 4, dtype=torch.bfloat16)
        self.outputs = torch.nn.Linear(4, 10, bias=False, dtype=torch.bfloat16)
        if is_tied:
            self.outputs.weight = self.inputs.weight

    def get_input_embeddings(self) -> Any:
        return self.inputs

    def get_output_embeddings(self) -> Any:
        return self.outputs


@pytest.mark.parametrize("is_tied", [True, False])
def test_weight_bytes_count_each_weight_once_without_input_embeddings(is_tied: bool) -> None:
    assert engine_batches.weight_bytes(Model(is_tied)) == 2 * (4 * 4 + 4 + 10 * 4)


def test_weight_bytes_include_the_scales_of_nf4() -> None:
    from bitsandbytes.nn import Linear4bit

    model = Model(is_tied=True)
    layer = Linear4bit(128, 64, bias=False, quant_type="nf4", compress_statistics=False)
    layer.load_state_dict({"weight": torch.randn(64, 128)})
    model.layer = layer.to("cpu")
    # Half a byte per weight, a float32 scale per block of 64, and the table of 16 values.
    assert engine_batches.weight_bytes(model) == 64 * 128 // 2 + 4 * 64 * 128 // 64 + 4 * 16 + 2 * 10 * 4


def test_kv_bytes_per_token_count_keys_and_values_of_every_layer() -> None:
    assert engine_batches.kv_bytes_per_token(30, 3, 64, torch.bfloat16) == 2 * 30 * 3 * 64 * 2


def test_bandwidth_counts_bytes_read_and_written(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(engine_batches.COPY_BYTES, "cpu", 1000)
    monkeypatch.setattr("benchmarks.engine_batches.time.perf_counter", iter(range(0, 100, 4)).__next__)
    assert engine_batches.measure_bandwidth("cpu") == 2 * 1000 / 4


LINE: dict[str, Any] = {
    "six_columns_ratio": 0.25,
    "slowest_column_ratio": 1.6,
    "warm_prefix_ratio": 0.35,
    "share_of_limit": 0.5,
    "prefix": {"seconds": {"warm": 0.1, "cold": 0.4}, "shared_tokens": 600, "prompt_tokens": 640},
    "runs": 5,
    "new_tokens": 64,
    "threads": 2,
    "cores": 2,
    "load_before": 0.1,
    "base": "b",
    "revision": "r",
    "quantization": "nf4",
    "device": "cpu",
    "python": "3.11",
    **dict.fromkeys(("torch", "transformers", "peft", "bitsandbytes"), "1.0"),
}


def test_page_contains_metrics_and_whether_they_meet_their_targets() -> None:
    text = render_engine_page(LINE, "python -m benchmarks.engine --only columns", "engine-speed.json")
    lines = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    titles = {target.metric: target.title for target in TARGETS}
    cells = {
        metric: [cell.strip() for cell in lines[title].split("|")[2:5]]
        for metric, title in titles.items()
        if title in lines
    }
    assert cells == {
        "six_columns_ratio": ["0.25", "at most 0.3", "yes"],
        "slowest_column_ratio": ["1.6", "at most 1.5", "**no**"],
        "warm_prefix_ratio": ["0.35", "at most 0.35", "yes"],
        "share_of_limit": ["0.5", "", ""],
    }
    assert "0.100 s with cached examples, 0.400 s with an empty cache; 600 of 640 tokens" in text
    assert "python -m benchmarks.engine --only columns" in text
    assert "llama.cpp (" not in text


@pytest.mark.parametrize(
    ("given", "displayed"),
    [
        (["--runs", "3"], " --runs 3"),
        (["--llama-python", "/somewhere/python", "--runs", "3"], " --runs 3"),
        (["--llama-python=/somewhere/python"], ""),
    ],
)
def test_command_on_the_page_leaves_out_the_path_of_python(given: list[str], displayed: str) -> None:
    assert engine._command(given) == f"python -m benchmarks.engine{displayed}"


def test_unknown_part_is_an_error_that_lists_the_known_parts(capsys: pytest.CaptureFixture[str]) -> None:
    assert engine.main(["--only", "column"]) == 2
    assert "columns" in capsys.readouterr().err
