"""A run's losses as a picture, for the adapter's folder and its card."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INCHES, _DOTS = (12.0, 7.0), 100
_TRAINING, _VALIDATION, _QUIET = "#2f6db5", "#d1603d", "#5f6672"
# How much of the smoothed value comes from before; about the last ten records count.
_MEMORY = 0.9
# More crosses than this hide the line they stand on.
_MOST_MARKS = 60


def plot_losses(log: Sequence[Mapping[str, Any]], target: Path, title: str) -> None:
    """Writes a PNG of 1200 x 700 pixels: training and validation loss in nats a token, against the optimizer step.

    `log` has a run's records {"step", "epoch", "loss"} and {"step", "epoch", "eval_loss"} in any order; further
    fields are ignored, losses that are no number leave a gap. The same log gives the same bytes. Raises OSError.
    """
    # Figure and canvas without pyplot, whose global state is shared with whoever plots in the same process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_INCHES, dpi=_DOTS, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(facecolor="white")
    _draw_training(axes, _points(log, "loss"))
    _draw_validation(axes, _points(log, "eval_loss"))
    _label(axes, log, title)
    # No metadata: nothing in the file differs from day to day.
    figure.savefig(target, format="png", dpi=_DOTS, metadata={"Software": None})


def _points(log: Sequence[Mapping[str, Any]], field: str) -> list[tuple[int, float]]:
    """(step, loss) in the order of steps; of a step that was logged again after a resume, the later record."""
    found = {int(entry["step"]): float(entry[field]) for entry in log if entry.get(field) is not None}
    return sorted(found.items())


def _smoothed(losses: Sequence[float]) -> list[float]:
    """The exponential moving average with the start's bias corrected, as in Adam (arXiv 1412.6980, section 3)."""
    total, weight, smooth = 0.0, 0.0, []
    for loss in losses:
        if math.isfinite(loss):
            total, weight = _MEMORY * total + (1 - _MEMORY) * loss, _MEMORY * weight + (1 - _MEMORY)
        smooth.append(total / weight if weight else math.nan)
    return smooth


def _draw_training(axes: Axes, points: list[tuple[int, float]]) -> None:
    if not points:
        return
    steps, losses = zip(*points, strict=True)
    axes.plot(steps, losses, color=_TRAINING, alpha=0.35, linewidth=1, label="training, as logged")
    axes.plot(steps, _smoothed(losses), color=_TRAINING, linewidth=1.8, label="training, smoothed")


def _draw_validation(axes: Axes, points: list[tuple[int, float]]) -> None:
    if not points:
        return
    steps, losses = zip(*points, strict=True)
    mark = "o" if len(points) <= _MOST_MARKS else ""
    axes.plot(steps, losses, color=_VALIDATION, linewidth=2, marker=mark, markersize=5, label="validation")
    step, loss = min(((s, v) for s, v in points if math.isfinite(v)), key=lambda point: point[1], default=(0, math.nan))
    if math.isfinite(loss):
        best = f"best checkpoint: {loss:.4f} at step {step:,}"
        axes.plot([step], [loss], color=_VALIDATION, marker="*", markersize=20, markeredgecolor="white",
                  linestyle="none", zorder=5, label=best)  # fmt: skip
        axes.axvline(step, color=_VALIDATION, alpha=0.4, linewidth=1, linestyle=(0, (4, 4)))


def _label(axes: Axes, log: Sequence[Mapping[str, Any]], title: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, fontsize=15, loc="left", pad=14)
    axes.set_xlabel("optimizer step", fontsize=12)
    axes.set_ylabel("cross-entropy of learned tokens (nats a token)", fontsize=12)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color="#d9dce1", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=11, colors=_QUIET)
    axes.spines[["top", "right"]].set_visible(False)
    _epochs(axes, log)
    if axes.has_data():
        axes.legend(fontsize=11, frameon=False, loc="upper right")
    else:
        axes.text(0.5, 0.5, "no losses were logged", ha="center", color=_QUIET, fontsize=14, transform=axes.transAxes)


def _epochs(axes: Axes, log: Sequence[Mapping[str, Any]]) -> None:
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
    above.set_xlabel("epoch", fontsize=11, color=_QUIET)
    above.tick_params(labelsize=10, colors=_QUIET)
    above.spines["top"].set_visible(False)
