"""A run's losses as a picture, for the adapter's folder and its card."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FIGURE_INCHES, _DPI = (12.0, 7.0), 100
_TRAIN_COLOR, _VALIDATION_COLOR, _MUTED_COLOR = "#2f6db5", "#d1603d", "#5f6672"
# How much of the smoothed value comes from before; about the last ten records count.
_EMA_DECAY = 0.9
# More crosses than this hide the line they stand on.
_MAX_MARKERS = 60


def plot_losses(log: Sequence[Mapping[str, Any]], target: Path, title: str) -> None:
    """Writes a PNG of 1200 x 700 pixels: training and validation loss in nats a token, against the optimizer step.

    `log` has a run's records {"step", "epoch", "loss"} and {"step", "epoch", "eval_loss"} in any order; further
    fields are ignored, losses that are no number leave a gap. The same log gives the same bytes. Raises OSError.
    """
    # Figure and canvas without pyplot, whose global state is shared with whoever plots in the same process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_FIGURE_INCHES, dpi=_DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(facecolor="white")
    _draw_training(axes, _loss_points(log, "loss"))
    _draw_validation(axes, _loss_points(log, "eval_loss"))
    _label_axes(axes, log, title)
    # No metadata: nothing in the file differs from day to day.
    figure.savefig(target, format="png", dpi=_DPI, metadata={"Software": None})


def _loss_points(log: Sequence[Mapping[str, Any]], field: str) -> list[tuple[int, float]]:
    """(step, loss) in the order of steps; of a step that was logged again after a resume, the later record."""
    found = {int(entry["step"]): float(entry[field]) for entry in log if entry.get(field) is not None}
    return sorted(found.items())


def _smooth(losses: Sequence[float]) -> list[float]:
    """The exponential moving average with the start's bias corrected, as in Adam (arXiv 1412.6980, section 3)."""
    total, weight, smooth = 0.0, 0.0, []
    for loss in losses:
        if math.isfinite(loss):
            total, weight = _EMA_DECAY * total + (1 - _EMA_DECAY) * loss, _EMA_DECAY * weight + (1 - _EMA_DECAY)
        smooth.append(total / weight if weight else math.nan)
    return smooth


def _draw_training(axes: Axes, points: list[tuple[int, float]]) -> None:
    if not points:
        return
    steps, losses = zip(*points, strict=True)
    axes.plot(steps, losses, color=_TRAIN_COLOR, alpha=0.35, linewidth=1, label="training, as logged")
    axes.plot(steps, _smooth(losses), color=_TRAIN_COLOR, linewidth=1.8, label="training, smoothed")


def _draw_validation(axes: Axes, points: list[tuple[int, float]]) -> None:
    if not points:
        return
    steps, losses = zip(*points, strict=True)
    mark = "o" if len(points) <= _MAX_MARKERS else ""
    axes.plot(steps, losses, color=_VALIDATION_COLOR, linewidth=2, marker=mark, markersize=5, label="validation")
    step, loss = min(((s, v) for s, v in points if math.isfinite(v)), key=lambda point: point[1], default=(0, math.nan))
    if math.isfinite(loss):
        best = f"best checkpoint: {loss:.4f} at step {step:,}"
        axes.plot([step], [loss], color=_VALIDATION_COLOR, marker="*", markersize=20, markeredgecolor="white",
                  linestyle="none", zorder=5, label=best)  # fmt: skip
        axes.axvline(step, color=_VALIDATION_COLOR, alpha=0.4, linewidth=1, linestyle=(0, (4, 4)))


def _label_axes(axes: Axes, log: Sequence[Mapping[str, Any]], title: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, fontsize=15, loc="left", pad=14)
    axes.set_xlabel("optimizer step", fontsize=12)
    axes.set_ylabel("cross-entropy of learned tokens (nats a token)", fontsize=12)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color="#d9dce1", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=11, colors=_MUTED_COLOR)
    axes.spines[["top", "right"]].set_visible(False)
    _add_epoch_axis(axes, log)
    if axes.has_data():
        axes.legend(fontsize=11, frameon=False, loc="upper right")
    else:
        axes.text(
            0.5, 0.5, "no losses were logged", ha="center", color=_MUTED_COLOR, fontsize=14, transform=axes.transAxes
        )


def _add_epoch_axis(axes: Axes, log: Sequence[Mapping[str, Any]]) -> None:
    """A second scale in epochs, where the log says how many steps one has."""
    last = max(log, key=lambda entry: int(entry["step"]), default={})
    if not last.get("epoch") or not last["step"]:
        return
    steps = int(last["step"]) / float(last["epoch"])

    def to_epochs(step: Any) -> Any:
        return step / steps

    def to_steps(epoch: Any) -> Any:
        return epoch * steps

    above = axes.secondary_xaxis("top", functions=(to_epochs, to_steps))
    above.set_xlabel("epoch", fontsize=11, color=_MUTED_COLOR)
    above.tick_params(labelsize=10, colors=_MUTED_COLOR)
    above.spines["top"].set_visible(False)
