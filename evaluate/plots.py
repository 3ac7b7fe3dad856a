"""Runs as a picture: each metric with its intervals, and how EM@k and Pass@k grow with k."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from errors import PromptOrTuneError
from evaluate.measures import metric_title
from evaluate.results import Run
from evaluate.score_run import require_scored
from evaluate.table import MethodRow, method_rows, table_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 110
_PANEL_INCHES = 5.2
_PANELS_PER_ROW = 3
# Okabe and Ito's colours, which people with any colour vision tell apart; dashes tell more than eight apart.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5f6672", "#b8a900")
_LINE_STYLES = ("-", "--", ":", "-.")
_MUTED_COLOR, _GRID_COLOR = "#5f6672", "#d9dce1"
_MAX_LABEL_LENGTH = 40  # characters of a label

LabelledRows = list[tuple[str, MethodRow]]


def plot_report_png(runs: Sequence[Run]) -> bytes:
    """The picture of all methods of the runs as a PNG; the same runs give the same bytes."""
    buffer = io.BytesIO()
    build_figure(runs).savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()


def build_figure(runs: Sequence[Run]) -> Figure:
    """One panel a metric of the table, with a bar a method, then one with curves over k for EM and for Pass.

    PromptOrTuneError where there is no result yet, or a run is not scored to its end.
    """
    require_scored(runs)
    # Without pyplot, whose global state is shared with whoever plots in the same process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = _label_rows(runs)
    if not rows:
        raise PromptOrTuneError("There is nothing to draw: the files hold no answers yet.")
    metrics = table_metrics([row for _, row in rows])
    curves = [name for name in ("pass", "em") if _is_curve(rows, name, metrics)]
    panels = len(metrics) + len(curves)
    across = min(_PANELS_PER_ROW, panels)
    down = math.ceil(panels / across)
    height = max(2.6, 1.2 + 0.34 * len(rows))
    figure = Figure(
        figsize=(_PANEL_INCHES * across, height * down + 0.6), dpi=_DPI, layout="constrained", facecolor="white"
    )
    FigureCanvasAgg(figure)
    for at, metric in enumerate(metrics):
        _draw_bars(figure.add_subplot(down, across, at + 1), rows, metric, first=at % across == 0)
    for at, name in enumerate(curves, start=len(metrics)):
        _draw_curves(figure.add_subplot(down, across, at + 1), rows, name)
    figure.suptitle(_heading(runs), fontsize=11, x=0.01, ha="left")
    return figure


def _label_rows(runs: Sequence[Run]) -> LabelledRows:
    """Each row under its method's name, with its file where several files have that method."""
    rows = [(run.path.name.removesuffix(".gz").removesuffix(".jsonl"), row) for run in runs for row in method_rows(run)]
    often = Counter(row.method for _, row in rows)
    return [
        (_shorten_label(row.method if often[row.method] == 1 else f"{row.method} ({file})"), row) for file, row in rows
    ]


def _is_curve(rows: LabelledRows, name: str, metrics: Sequence[str]) -> bool:
    """Whether the table shows the metric and it has more than one k."""
    return f"{name}@1" in metrics and any(f"{name}@2" in row.metrics for _, row in rows)


def _draw_bars(axes: Axes, rows: LabelledRows, metric: str, first: bool) -> None:
    highest = 0.0
    for at, (_, row) in enumerate(rows):
        found = row.interval(metric)
        if found is None:
            continue
        value, low, high = (100 * each for each in (found.value, found.low, found.high))
        # Rounding can leave an end of the interval on the wrong side of its value by a hair.
        axes.errorbar(value, at, xerr=[[max(0.0, value - low)], [max(0.0, high - value)]], fmt="o", markersize=6,
                      color=_color(at), capsize=3, linewidth=1.8, clip_on=False)  # fmt: skip
        # A figure at the left edge would be cut by it.
        side = "left" if value < low + 0.01 else "center"
        axes.annotate(f"{value:.1f}", (value, at), textcoords="offset points", xytext=(0, 6), ha=side, fontsize=8)
        highest = max(highest, high)
    axes.set_yticks(range(len(rows)), [label for label, _ in rows] if first else [])
    axes.set_ylim(len(rows) - 0.4, -0.7)  # the first method on top
    axes.set_xlim(0, min(100, 1.08 * highest) if highest else 100)
    axes.margins(x=0.02)
    axes.set_title(f"{metric_title(metric)}, %, with 95 % intervals", fontsize=10, loc="left")
    _style_axes(axes)


def _draw_curves(axes: Axes, rows: LabelledRows, name: str) -> None:
    from matplotlib.ticker import MaxNLocator

    for at, (label, row) in enumerate(rows):
        points = [(k, row.interval(f"{name}@{k}")) for k in range(1, row.k + 1)]
        known = [(k, 100 * found.value) for k, found in points if found is not None]
        if known:
            axes.plot(*zip(*known, strict=True), marker="o", markersize=4, color=_color(at), label=label,
                      linestyle=_LINE_STYLES[at // len(_COLORS) % len(_LINE_STYLES)])  # fmt: skip
    axes.set_title(f"{metric_title(name)}@k, %", fontsize=10, loc="left")
    axes.set_xlabel("k", fontsize=9)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    _style_axes(axes)


def _style_axes(axes: Axes) -> None:
    axes.grid(color=_GRID_COLOR, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9, colors=_MUTED_COLOR)
    axes.spines[["top", "right"]].set_visible(False)


def _heading(runs: Sequence[Run]) -> str:
    """What the numbers were measured on; several runs are named each once."""
    said = (
        f"{run.settings['data']} {run.settings['split']}, n = {run.settings['n']}, {run.settings['base_id']}, "
        f"{run.settings['quantization']}, {run.settings['decoding']['mode']}, seed {run.settings['seed']}"
        for run in runs
    )
    return "\n".join(dict.fromkeys(said))


def _color(index: int) -> str:
    return _COLORS[index % len(_COLORS)]


def _shorten_label(label: str) -> str:
    return (
        label
        if len(label) <= _MAX_LABEL_LENGTH
        else f"{label[: _MAX_LABEL_LENGTH // 2]}…{label[1 - _MAX_LABEL_LENGTH // 2 :]}"
    )
