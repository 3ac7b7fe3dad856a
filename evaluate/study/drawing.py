"""Drawing functions for the study's figures: points and bars with intervals, panels, and PNG output."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from evaluate.stats import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
# The palette of Okabe and Ito, which is distinguishable with colour blindness, and two more.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#7F7F7F", "#8C564B")
MARKERS = "osD^vPX*h"
HOLLOW_MARKER = "o"  # the marker of ICL
MAX_ERROR_BARS = 3  # with more lines or models, error bars hide each other
PUBLISHED_COLOR, MUTED_COLOR = "#9AA1AB", "#5F6672"

DrawFn = Callable[["Figure"], None]


def draw_line(
    axes: Axes, points: Iterable[tuple[int, Interval | None]], index: int, label: str, band: bool = True
) -> None:
    """Draw a line and, with `band`, the band of its intervals."""
    drawn = [(x, each) for x, each in points if each]
    xs = [x for x, _ in drawn]
    colour = COLORS[index % len(COLORS)]
    axes.plot(
        xs, [100 * each.value for _, each in drawn], marker=MARKERS[index % len(MARKERS)], color=colour, label=label
    )
    if band:
        low, high = ([100 * each.low for _, each in drawn], [100 * each.high for _, each in drawn])
        axes.fill_between(xs, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.set_xticks(sorted({*xs, *(axes.get_xticks() if index else ())}))


def draw_point(axes: Axes, x: Interval, y: Interval, index: int, marker: str, bars: bool = True) -> None:
    """Draw a point in colour number `index` and, with `bars`, its intervals in both directions."""
    x_error = [[100 * (x.value - x.low)], [100 * (x.high - x.value)]]
    y_error = [[100 * (y.value - y.low)], [100 * (y.high - y.value)]]
    colour = COLORS[index % len(COLORS)]
    axes.errorbar(
        100 * x.value,
        100 * y.value,
        yerr=y_error if bars else None,
        xerr=x_error if bars else None,
        fmt=marker,
        color=colour,
        markerfacecolor="white" if marker == HOLLOW_MARKER else colour,
        elinewidth=0.8,
        capsize=2,
        markersize=7,
    )


def add_legend_entries(axes: Axes, entries: Iterable[tuple[str, str, str]]) -> None:
    """Add legend entries (marker, colour, label) for points that have no label of their own."""
    for marker, colour, label in entries:
        face = "white" if marker == HOLLOW_MARKER else colour
        axes.plot([], [], marker, color=colour, markerfacecolor=face, label=label)


def draw_points_with_intervals(
    axes: Axes, positions: Iterable[float], intervals: Iterable[Interval | None], index: int, label: str
) -> None:
    """Draw points with intervals and without a line."""
    drawn = [(x, each) for x, each in zip(positions, intervals, strict=True) if each]
    axes.errorbar(
        [x for x, _ in drawn],
        [100 * each.value for _, each in drawn],
        yerr=_error_bar_lengths([each for _, each in drawn]),
        fmt=MARKERS[index],
        color=COLORS[index],
        capsize=3,
        elinewidth=1,
        label=label,
    )


def draw_bars(
    axes: Axes,
    positions: Iterable[float],
    intervals: Iterable[Interval | None],
    color: str,
    label: str,
    width: float = 0.26,
) -> None:
    """Draw bars with intervals."""
    drawn = [(x, each) for x, each in zip(positions, intervals, strict=True) if each]
    if drawn:
        axes.bar(
            [x for x, _ in drawn],
            [100 * each.value for _, each in drawn],
            width,
            color=color,
            label=label,
            yerr=_error_bar_lengths([each for _, each in drawn]),
            error_kw={"elinewidth": 1, "capsize": 2, "ecolor": "#222222"},
        )


def _error_bar_lengths(intervals: Sequence[Interval]) -> list[list[float]]:
    return [
        [100 * (each.value - each.low) for each in intervals],
        [100 * (each.high - each.value) for each in intervals],
    ]


def draw_panels(names: Sequence[str], draw_panel: Callable[[Axes, str], None], width: float = 6.5) -> bytes | None:
    """Draw one panel for each name, three in a row; return the PNG, or None without names."""
    columns = min(len(names), 3)

    def draw(figure: Figure) -> None:
        for at, name in enumerate(names, start=1):
            draw_panel(new_axes(figure, name, (-(-len(names) // columns), columns, at)), name)

    return render_png(draw, width * columns, 5.2 * -(-len(names) // columns)) if names else None


def label_axes(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    """Set title, axis labels and legend; the y axis begins at 0."""
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x_label, fontsize=9)
    axes.set_ylabel(y_label, fontsize=9)
    axes.set_ylim(bottom=0)
    entries = len(axes.get_legend_handles_labels()[0])
    if entries:
        # Below the plot, where it covers no points.
        axes.legend(
            fontsize=7.5, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=min(2, -(-entries // 2))
        )


def new_axes(figure: Figure, title: str, subplot: tuple[int, int, int] = (1, 1, 1)) -> Axes:
    """Return an empty plot in the style of the figures."""
    axes = figure.add_subplot(*subplot)
    axes.set_title(title, fontsize=10)
    axes.grid(visible=True, color="#E6E8EB", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    return axes


def render_png(draw: DrawFn, width: float, height: float) -> bytes:
    """Return the figure as PNG; equal drawings give equal bytes."""
    # Without pyplot, whose global state is shared by all code that plots in this process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    draw(figure)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=DPI, metadata={"Software": None})
    return out.getvalue()
