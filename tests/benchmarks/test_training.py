"""Tests of benchmarks/training.py: ratios of the two sides, the results of a run, and the error without TRL."""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import training
from tests.serve.tiny import make_base


def _options(tmp_path: Path, **changes: Any) -> argparse.Namespace:
    values = {"data": "starter", "data_dir": None, "base": str(tmp_path / "base"), "samples": 16, "repeats": 3}
    return argparse.Namespace(**(values | changes))


def test_ratios_are_of_medians_and_sides_alternate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes are faked; the first run of each side is an outlier."""
    speeds = {"ours": iter([900.0, 300.0, 310.0]), "trl": iter([20.0, 200.0, 210.0])}
    order: list[str] = []

    def fake_measure_side(side: str, _options: argparse.Namespace) -> dict[str, Any]:
        order.append(side)
        memory = 700 if side == "ours" else 1000
        shared = {"tokens": 5, "validation_loss": 1.5, "settings": {}, "base": "b", "versions": {}}
        return {"tokens_per_second": next(speeds[side]), "peak_memory_bytes": memory, **shared}

    monkeypatch.setattr(training, "_measure_side", fake_measure_side)
    line = training._compare_sides(_options(tmp_path))
    assert order == ["ours", "trl", "trl", "ours", "ours", "trl"]
    assert line["tokens_per_second_ratio"] == round(310 / 200, 3)
    assert line["peak_memory_ratio"] == 0.7
    assert line["runs"]["trl"] == [[20.0, 1000], [200.0, 1000], [210.0, 1000]]


@pytest.mark.parametrize("side", ["ours", "trl"])
def test_run_counts_each_token_once_and_reports_the_validation_loss(side: str, tmp_path: Path) -> None:
    if side == "trl" and importlib.util.find_spec("trl") is None:
        pytest.skip("TRL is not one of the tests' requirements (see requirements-benchmarks.txt).")
    make_base("llama", tmp_path / "base")
    run = (
        training._train_with_project(_options(tmp_path))
        if side == "ours"
        else training._train_with_trl(_options(tmp_path))
    )
    assert json.loads(json.dumps(run)) == run
    assert run["tokens"] == _tokens(tmp_path)
    assert 100e6 < run["peak_memory_bytes"] < 8e9
    # Two steps change little: about the loss of a random guess among the tiny base's 259 tokens.
    assert 4 < run["validation_loss"] < 9
    assert run["tokens_per_second"] > 0


def _tokens(tmp_path: Path) -> int:
    """Count the tokens without the trainers: prompt, code and end token of 16 rows, one token per byte."""
    from tasks.datasets.registry import load_examples
    from tasks.prompt import format_completion, get_style, render_prompt

    style = get_style("plain")
    rows = load_examples("starter", None)[:16]
    return sum(
        len((render_prompt(row.intent, (), style) + format_completion(row.code, style)).encode()) + 1 for row in rows
    )


def test_missing_trl_is_an_error_with_the_install_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    assert training.main([]) == 2
    assert "pip install --no-deps -r requirements-benchmarks.txt" in capsys.readouterr().err
