"""Plots as HTML and SVG that follow the page's theme: interval bars, and curves over k. All texts are escaped.

The numbers come finished from evaluate; here they only become places on a sheet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from evaluate.stats import Interval

_SCALES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
_WIDTH, _HEIGHT = 560, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 200, 12, 36
_COLOR_COUNT = 6
_LABEL_HEIGHT = 15
_LABEL_LENGTH = 26


@dataclass(frozen=True)
class Bar:
    """A method's value with its interval, both in [0, 1]; None where it has none."""

    label: str
    interval: Interval | None


def interval_bars(title: str, bars: Sequence[Bar]) -> str:
    """One line a method: a dot for the value, a bar for its interval, and both in figures."""
    known = [bar.interval for bar in bars if bar.interval is not None]
    if not known:
        return ""
    most = axis_end(max(interval.high for interval in known))
    lines = "".join(_bar_row(bar, most) for bar in bars)
    ends = f'<div class="axis" aria-hidden="true"><span>0</span><span>{most:.0%}</span></div>'
    caption = f"<figcaption>{escape(title)}</figcaption>"
    return f'<figure class="plot" tabindex="0">{caption}<ul class="bars">{lines}</ul>{ends}</figure>'


def axis_end(maximum: float) -> float:
    """The end of an axis: the next round share at or above `most`."""
    return next((end for end in _SCALES if end >= maximum), 1.0)


def curves(title: str, axis: str, lines: Mapping[str, Sequence[float]]) -> str:
    """One curve a method over k = 1, 2, ...; '' where no method has two points.

    Each curve has its name at its end, and a dash of its own besides its colour.
    """
    drawn = {label: points for label, points in lines.items() if len(points) > 1}
    if not drawn:
        return ""
    most = axis_end(max(max(points) for points in drawn.values()) or _SCALES[0])
    longest = max(len(points) for points in drawn.values())
    heights = _spread_labels({label: _y_position(points[-1], most) for label, points in drawn.items()})
    body = "".join(
        _curve_svg(place, label, points, longest, most, heights[label])
        for place, (label, points) in enumerate(drawn.items())
    )
    last = max(_HEIGHT, max(heights.values()) + _LABEL_HEIGHT)
    return (
        f'<figure class="plot" tabindex="0"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {last:.0f}" role="img" aria-label="{escape(title)}">'
        f"{_axes_svg(axis, longest, most)}{body}</svg></figure>"
    )


def _bar_row(bar: Bar, maximum: float) -> str:
    if bar.interval is None:
        return f'<li><span class="name">{escape(bar.label)}</span><span class="value">none</span></li>'
    value, low, high = bar.interval.value, bar.interval.low, bar.interval.high
    figures = f"{100 * value:.1f} <span>[{100 * low:.1f}, {100 * high:.1f}]</span>"
    width = max((high - low) / maximum, 0.002)
    label = escape(bar.label)
    return (
        f'<li><span class="name" title="{label}">{label}</span><span class="track" aria-hidden="true">'
        f'<span class="range" style="left:{low / maximum:.2%};width:{width:.2%}"></span>'
        f'<span class="dot" style="left:{value / maximum:.2%}"></span></span><span class="value">{figures}</span></li>'
    )


def _x_position(k: int, max_k: int) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (k - 1) / max(max_k - 1, 1)


def _y_position(value: float, maximum: float) -> float:
    return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - value / maximum)


def _axes_svg(axis: str, max_k: int, maximum: float) -> str:
    rows = "".join(
        f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{_y_position(share, maximum):.1f}" y2="{_y_position(share, maximum):.1f}"/>'
        f'<text x="{_LEFT - 8}" y="{_y_position(share, maximum) + 4:.1f}" text-anchor="end">{100 * share:.3g} %</text>'
        for share in (0.0, maximum / 2, maximum)
    )
    steps = sorted({1, (max_k + 1) // 2, max_k})
    columns = "".join(
        f'<text x="{_x_position(k, max_k):.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{k}</text>'
        for k in steps
    )
    name = f'<text x="{_LEFT}" y="{_HEIGHT - 2}">{escape(axis)}</text>'
    return f'<g class="axes">{rows}{columns}{name}</g>'


def _curve_svg(index: int, label: str, points: Sequence[float], max_k: int, maximum: float, height: float) -> str:
    path = " ".join(
        f"{_x_position(k, max_k):.1f},{_y_position(value, maximum):.1f}" for k, value in enumerate(points, start=1)
    )
    end_x, end_y = _x_position(len(points), max_k), _y_position(points[-1], maximum)
    short = label if len(label) <= _LABEL_LENGTH else label[: _LABEL_LENGTH - 1] + "…"
    return (
        f'<g class="curve c{index % _COLOR_COUNT} d{index // _COLOR_COUNT % 3}"><polyline points="{path}"/>'
        f'<polyline class="lead" points="{end_x:.1f},{end_y:.1f} {_WIDTH - _RIGHT + 12},{height:.1f}"/>'
        f'<text x="{_WIDTH - _RIGHT + 16}" y="{height + 4:.1f}">{escape(short)}</text></g>'
    )


def _spread_labels(heights: Mapping[str, float]) -> dict[str, float]:
    """The same heights, moved down as far as labels need not to lie on one another."""
    placed: dict[str, float] = {}
    free = float(_TOP)
    for label, height in sorted(heights.items(), key=lambda item: item[1]):
        placed[label] = max(height, free)
        free = placed[label] + _LABEL_HEIGHT
    return placed
