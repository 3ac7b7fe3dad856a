"""Tests of train/estimate.py: the estimate before a run, the report after it, and the measured speed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.serve.tiny import make_base
from tests.train.runs import tiny_config
from train.estimate import Estimate, _build_proxy_layer, compare_with_actual, estimate, measure_flops_per_second
from train.run import train
from train.tokenize import TokenizedExample

pytestmark = pytest.mark.slow

ROWS = [TokenizedExample([5] * 40, [6] * 20)] * 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny Llama base."""
    folder = tmp_path_factory.mktemp("estimate")
    make_base("llama", folder / "base")
    return folder


def _estimate(folder: Path, device: str = "cuda", **changes: Any) -> Estimate:
    return estimate(tiny_config(folder, **changes), folder / "base", ROWS, ROWS, measure_speed=False, device=device)


def test_parts_sum_to_the_memory_and_steps_and_tokens_are_counted(folder: Path, tmp_path: Path) -> None:
    make_base("t5", tmp_path / "base")
    for base, tokens_per_row in ((folder, 60), (tmp_path, 40)):
        result = _estimate(base, per_device_train_batch_size=5, num_train_epochs=3)
        assert sum(result.parts.values()) == result.memory_bytes
        assert result.steps == 12
        assert result.tokens == 16 * 3 * tokens_per_row
        assert result.seconds is None


def test_settings_that_cost_more_memory_have_higher_estimates(folder: Path) -> None:
    small, large = _estimate(folder), _estimate(folder, per_device_train_batch_size=16)
    assert large.parts["activations"] == pytest.approx(2 * small.parts["activations"], rel=0.05)
    saving = _estimate(folder, gradient_checkpointing=True)
    assert saving.parts["activations"] < small.parts["activations"]
    assert _estimate(folder, technique="qlora-4bit").parts["base"] < small.parts["base"]
    full = _estimate(folder, technique="full")
    assert full.parts["base"] > small.parts["base"]
    adamw = _estimate(folder, technique="full", optim="adamw_torch")
    assert adamw.parts["adapter and optimizer"] > full.parts["adapter and optimizer"]
    bounded = _estimate(folder, max_tokens_at_once=120)
    assert bounded.parts["activations"] < small.parts["activations"] / 2


def test_run_reports_estimate_and_measurement(folder: Path) -> None:
    progress: list[str] = []
    train(tiny_config(folder, adapter_name="report", max_train_samples=8, num_train_epochs=1), progress.append)
    lines = progress[-1].splitlines()
    assert [line.split()[0] for line in lines] == ["memory", "time", "size"]
    assert all("estimated" in line and "measured" in line and "%" in line for line in lines)


def test_run_without_an_estimate_reports_the_reason(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no such operation on meta tensors\nmore")

    monkeypatch.setattr("train.estimate.estimate", broken)
    progress: list[str] = []
    train(tiny_config(folder, adapter_name="failing", max_train_samples=8, num_train_epochs=1), progress.append)
    reason = "(RuntimeError: no such operation on meta tensors)."
    assert [line for line in progress if line.startswith("The cost of the run is not known") and line.endswith(reason)]
    assert not any("estimated" in line for line in progress)


def test_comparison_is_in_percent() -> None:
    result = Estimate(3_000_000_000, 90.0, 10.0, 3_700_000, 534, 1000, {})
    assert compare_with_actual(result, 2_000_000_000, 120.0, 3_700_000).splitlines() == [
        "  memory  estimated      3 GB, measured      2 GB (+50 %)",
        "  time    estimated      1:30, measured      2:00 (-25 %)",
        "  size    estimated    3.7 MB, measured    3.7 MB (+0 %)",
    ]


def test_speed_measurement_leaves_the_random_state_unchanged() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    assert measure_flops_per_second(64, 128, 2, 8, "cpu") > 0
    assert torch.equal(torch.rand(3), expected)


def test_speed_is_operations_divided_by_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock gives every step two seconds, so that one step is timed; other threads keep theirs."""
    clock = iter(range(0, 100, 2))
    monkeypatch.setattr("train.estimate.time", SimpleNamespace(perf_counter=lambda: float(next(clock))))
    rows, tokens, hidden, inner = 2, 8, 64, 128
    products = rows * tokens * (4 * hidden * hidden + 3 * hidden * inner)
    # Two layers, two operations per product, forward pass and gradient of the input; plus LoRA's small products.
    frozen = 2 * 2 * 2 * products
    adapters = 2 * 4 * 2 * 16 * hidden * rows * tokens * 2 * 3
    flops = measure_flops_per_second(hidden, inner, rows, tokens, "cpu") * 2
    assert frozen < flops < frozen + adapters * 1.5


def test_proxy_layer_of_a_wide_base_has_reduced_width() -> None:
    model = _build_proxy_layer(8192, 22016, "meta")
    assert model.config.hidden_size == 2048
    assert model.config.intermediate_size == 22016 // 4
