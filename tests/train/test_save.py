"""Tests of the loss plot of train/save.py: its size, its curves, and its reproducible bytes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from train.save import _loss_points, _smooth, plot_losses

LOG: list[dict[str, Any]] = [
    {"step": 10, "epoch": 0.5, "loss": 3.0, "learning_rate": 1e-4},
    {"step": 20, "epoch": 1.0, "loss": 2.0, "learning_rate": 1e-4},
    {"step": 20, "epoch": 1.0, "eval_loss": 1.5},
    {"step": 30, "epoch": 1.5, "loss": math.nan, "learning_rate": 1e-4},
    {"step": 40, "epoch": 2.0, "loss": 1.0, "learning_rate": 1e-4},
    {"step": 40, "epoch": 2.0, "eval_loss": 1.75},
]


@pytest.fixture
def axes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Return the axes of the plot of LOG."""
    figures: list[Figure] = []
    add_subplot = Figure.add_subplot

    def record(figure: Figure, **options: Any) -> Any:
        figures.append(figure)
        return add_subplot(figure, **options)

    monkeypatch.setattr(Figure, "add_subplot", record)
    plot_losses(LOG, tmp_path / "loss.png", "lora-mine on starter")
    return figures[0].axes[0]


def test_plot_is_reproducible_and_shows_both_curves(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        plot_losses(LOG, tmp_path / name, "lora-mine on starter")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (1200, 700)
        assert not picture.info.keys() & {"Software", "Creation Time", "date"}
        # The plot has both curves, in their colours.
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert all((abs(pixels - np.array(colour)).sum(1) < 12).sum() > 200 for colour in ((47, 109, 181), (209, 96, 61)))


def test_both_losses_are_plotted_and_the_best_is_marked(axes: Any) -> None:
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert list(lines["training, as logged"].get_xdata()) == [10, 20, 30, 40]
    assert list(lines["validation"].get_ydata()) == [1.5, 1.75]
    best = lines["best checkpoint: 1.5000 at step 20"]
    assert (list(best.get_xdata()), list(best.get_ydata())) == ([20], [1.5])
    assert axes.get_title(loc="left") == "lora-mine on starter"


def test_nan_loss_leaves_a_gap(axes: Any) -> None:
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert math.isnan(lines["training, as logged"].get_ydata()[2])
    assert all(math.isfinite(value) for value in lines["training, smoothed"].get_ydata())


def test_smoothing_has_bias_correction() -> None:
    assert _smooth([2.0] * 5) == pytest.approx([2.0] * 5)
    assert _smooth([1.0, 3.0])[1] == pytest.approx((0.9 * 1 + 3) / 1.9)


def test_step_logged_again_after_a_resume_is_plotted_once() -> None:
    again = [{"step": 20, "epoch": 1.0, "loss": 2.5}, {"step": 10, "epoch": 0.5, "loss": 3.5}]
    assert _loss_points([*LOG[:2], *again], "loss") == [(10, 3.5), (20, 2.5)]


@pytest.mark.parametrize("log", [[], LOG[:1], [{"step": 1, "epoch": 0.1, "eval_loss": math.nan}]])
def test_short_log_can_be_plotted(log: list[dict[str, Any]], tmp_path: Path) -> None:
    plot_losses(log, tmp_path / "loss.png", "short")
    with Image.open(tmp_path / "loss.png") as picture:
        assert picture.size == (1200, 700)
