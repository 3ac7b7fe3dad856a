"""Tests of train/estimate.py: the estimate before a run, the report after it, and the measured speed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.serve.tiny import make_base
from tests.train.runs import tiny_config
from train.estimate import Estimate, _build_proxy_layer, compare_with_actual, estimate, measure_flops_per_second
from train.run import train
from train.tokenize import TokenizedExample

ROWS = [TokenizedExample([5] * 40, [6] * 20)] * 16


@pytest.fixture(scope="module", params=["llama", "t5"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("estimate")
    make_base(request.param, folder / "base")
    return folder


def _guess(place: Path, device: str = "cuda", **changes: Any) -> Estimate:
    return estimate(tiny_config(place, **changes), place / "base", ROWS, ROWS, measure_speed=False, device=device)


@pytest.mark.parametrize("technique", ["lora", "qlora-4bit", "ia3", "prompt-tuning", "prefix-tuning"])
def test_the_size_is_that_of_the_file(place: Path, technique: str) -> None:
    config = tiny_config(place, adapter_name=technique, technique=technique, num_train_epochs=1, max_train_samples=8)
    made = train(config, lambda _: None)
    found = (made / "adapter_model.safetensors").stat().st_size
    header = int.from_bytes((made / "adapter_model.safetensors").read_bytes()[:8], "little") + 8
    assert _guess(place, technique=technique).adapter_bytes == found - header


def test_the_parts_are_the_whole_and_steps_and_tokens_are_counted(place: Path) -> None:
    guess = _guess(place, per_device_train_batch_size=5, num_train_epochs=3)
    assert sum(guess.parts.values()) == guess.memory_bytes
    assert guess.steps == 12
    apart = (place / "base" / "config.json").read_text().count("decoder_start_token_id")
    assert guess.tokens == 16 * 3 * (40 if apart else 60)
    assert guess.seconds is None


def test_what_costs_more_is_estimated_higher(place: Path) -> None:
    small, large = _guess(place), _guess(place, per_device_train_batch_size=16)
    assert large.parts["activations"] == pytest.approx(2 * small.parts["activations"], rel=0.05)
    saving = _guess(place, gradient_checkpointing=True)
    assert saving.parts["activations"] < small.parts["activations"]
    assert _guess(place, technique="qlora-4bit").parts["base"] < small.parts["base"]
    full = _guess(place, technique="full")
    assert full.parts["base"] > small.parts["base"]
    adamw = _guess(place, technique="full", optim="adamw_torch")
    assert adamw.parts["adapter and optimizer"] > full.parts["adapter and optimizer"]
    bounded = _guess(place, max_tokens_at_once=120)
    assert bounded.parts["activations"] < small.parts["activations"] / 2


def test_the_end_says_both(place: Path) -> None:
    said: list[str] = []
    train(tiny_config(place, adapter_name="said", num_train_epochs=1), said.append)
    lines = said[-1].splitlines()
    assert [line.split()[0] for line in lines] == ["memory", "time", "size"]
    assert all("estimated" in line and "measured" in line and "%" in line for line in lines)


def test_an_estimate_that_fails_says_so_and_stops_no_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no such operation on meta tensors\nmore")

    monkeypatch.setattr("train.estimate.estimate", broken)
    said: list[str] = []
    train(tiny_config(place, adapter_name="unforeseen", num_train_epochs=1), said.append)
    sentence = "(RuntimeError: no such operation on meta tensors)."
    assert [line for line in said if line.startswith("What the run takes is not known") and line.endswith(sentence)]
    assert not any("estimated" in line for line in said)


def test_the_comparison_is_in_percent() -> None:
    guess = Estimate(3_000_000_000, 90.0, 10.0, 3_700_000, 534, 1000, {})
    assert compare_with_actual(guess, 2_000_000_000, 120.0, 3_700_000).splitlines() == [
        "  memory  estimated   3.00 GB, measured   2.00 GB (+50 %)",
        "  time    estimated      1:30, measured      2:00 (-25 %)",
        "  size    estimated    3.7 MB, measured    3.7 MB (+0 %)",
    ]


def test_random_numbers_go_on_as_if_nothing_had_been_timed() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    assert measure_flops_per_second(64, 128, 2, 8, "cpu") > 0
    assert torch.equal(torch.rand(3), expected)


def test_a_step_of_known_work_and_time_gives_its_quotient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock of ours: every step takes two seconds, so one is timed."""
    clock = iter(range(0, 100, 2))
    monkeypatch.setattr("train.estimate.time.perf_counter", lambda: float(next(clock)))
    rows, tokens, hidden, inner = 2, 8, 64, 128
    products = rows * tokens * (4 * hidden * hidden + 3 * hidden * inner)
    # Two layers; two operations a product, forward and for the gradient of the input; LoRA's small products on top.
    frozen = 2 * 2 * 2 * products
    adapters = 2 * 4 * 2 * 16 * hidden * rows * tokens * 2 * 3
    found = measure_flops_per_second(hidden, inner, rows, tokens, "cpu") * 2
    assert frozen < found < frozen + adapters * 1.5


def test_a_wide_base_is_stood_in_for_by_a_narrower_one() -> None:
    model = _build_proxy_layer(8192, 22016, "meta")
    assert model.config.hidden_size == 2048
    assert model.config.intermediate_size == 22016 // 4
