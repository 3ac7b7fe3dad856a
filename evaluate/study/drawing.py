"""What all of the study's figures are drawn with: points and bars with their intervals, panels, and the PNG itself."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from evaluate.stats import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOTS = 150
# Okabe and Ito's colours, which the colour-blind can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#7F7F7F", "#8C564B")
MARKS = "osD^vPX*h"
HOLLOW = "o"  # of points, where it stands for ICL
CROWD = 3  # lines or models, beyond which intervals would hide each other
THEIRS, QUIET = "#9AA1AB", "#5F6672"

Drawing = Callable[["Figure"], None]


def draw_line(
    axes: Axes, points: Iterable[tuple[int, Interval | None]], at: int, label: str, band: bool = True
) -> None:
    """A line, with its band of intervals where there are few of them."""
    known = [(x, each) for x, each in points if each]
    xs = [x for x, _ in known]
    colour = COLOURS[at % len(COLOURS)]
    axes.plot(xs, [100 * each.value for _, each in known], marker=MARKS[at % len(MARKS)], color=colour, label=label)
    if band:
        low, high = ([100 * each.low for _, each in known], [100 * each.high for _, each in known])
        axes.fill_between(xs, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.set_xticks(sorted({*xs, *(axes.get_xticks() if at else ())}))


def draw_point(axes: Axes, across: Interval, up: Interval, at: int, mark: str, bars: bool = True) -> None:
    """A point in the colour of number `at`, with intervals both ways where there are few of them."""
    reach = [[100 * (across.value - across.low)], [100 * (across.high - across.value)]]
    height = [[100 * (up.value - up.low)], [100 * (up.high - up.value)]]
    colour = COLOURS[at % len(COLOURS)]
    axes.errorbar(
        100 * across.value,
        100 * up.value,
        yerr=height if bars else None,
        xerr=reach if bars else None,
        fmt=mark,
        color=colour,
        markerfacecolor="white" if mark == HOLLOW else colour,
        elinewidth=0.8,
        capsize=2,
        markersize=7,
    )


def explain(axes: Axes, entries: Iterable[tuple[str, str, str]]) -> None:
    """Legend entries of mark, colour and words, for points that have no label of their own."""
    for mark, colour, words in entries:
        face = "white" if mark == HOLLOW else colour
        axes.plot([], [], mark, color=colour, markerfacecolor=face, label=words)


def draw_dots(axes: Axes, places: Iterable[float], intervals: Iterable[Interval | None], at: int, label: str) -> None:
    """Points with intervals, no line."""
    known = [(x, each) for x, each in zip(places, intervals, strict=True) if each]
    axes.errorbar(
        [x for x, _ in known],
        [100 * each.value for _, each in known],
        yerr=_ends([each for _, each in known]),
        fmt=MARKS[at],
        color=COLOURS[at],
        capsize=3,
        elinewidth=1,
        label=label,
    )


def draw_bars(
    axes: Axes,
    places: Iterable[float],
    intervals: Iterable[Interval | None],
    colour: str,
    label: str,
    width: float = 0.26,
) -> None:
    """Bars with intervals."""
    known = [(x, each) for x, each in zip(places, intervals, strict=True) if each]
    if known:
        axes.bar(
            [x for x, _ in known],
            [100 * each.value for _, each in known],
            width,
            color=colour,
            label=label,
            yerr=_ends([each for _, each in known]),
            error_kw={"elinewidth": 1, "capsize": 2, "ecolor": "#222222"},
        )


def _ends(intervals: Sequence[Interval]) -> list[list[float]]:
    return [
        [100 * (each.value - each.low) for each in intervals],
        [100 * (each.high - each.value) for each in intervals],
    ]


def panels(names: Sequence[str], panel: Callable[[Axes, str], None], width: float = 6.5) -> bytes | None:
    """One panel a name, side by side, three in a row."""
    columns = min(len(names), 3)

    def draw(figure: Figure) -> None:
        for at, name in enumerate(names, start=1):
            panel(new_axes(figure, name, (-(-len(names) // columns), columns, at)), name)

    return png(draw, width * columns, 5.2 * -(-len(names) // columns)) if names else None


def labels(axes: Axes, heading: str, across: str, up: str) -> None:
    """Title, axes' names, legend; the scale begins at 0."""
    axes.set_title(heading, fontsize=10)
    axes.set_xlabel(across, fontsize=9)
    axes.set_ylabel(up, fontsize=9)
    axes.set_ylim(bottom=0)
    entries = len(axes.get_legend_handles_labels()[0])
    if entries:
        # Under the plot, where it hides nothing.
        axes.legend(
            fontsize=7.5, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=min(2, -(-entries // 2))
        )


def new_axes(figure: Figure, heading: str, place: tuple[int, int, int] = (1, 1, 1)) -> Axes:
    """An empty plot in the figure's style."""
    axes = figure.add_subplot(*place)
    axes.set_title(heading, fontsize=10)
    axes.grid(visible=True, color="#E6E8EB", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    return axes


def png(draw: Drawing, width: float, height: float) -> bytes:
    """The figure's bytes; the same drawing gives the same ones."""
    # Figure and canvas without pyplot, whose global state is shared with whoever plots in the same process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DOTS, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    draw(figure)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=DOTS, metadata={"Software": None})
    return out.getvalue()
