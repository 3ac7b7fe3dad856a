"""The stand-in that is timed: its operations are counted, its width is bounded, and it leaves no trace."""

from __future__ import annotations

import pytest
import torch

from train import estimate
from train.estimate import measure_flops_per_second


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
    model = estimate._build_proxy_layer(8192, 22016, "meta")
    assert model.config.hidden_size == 2048
    assert model.config.intermediate_size == 22016 // 4
