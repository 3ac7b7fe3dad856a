"""Aligned tables, on the terminal and in Markdown, and how figures are written in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol


class Interval(Protocol):
    """A value between two bounds, as shares of one."""

    @property
    def value(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], markdown: bool) -> str:
    """Aligned columns, the first to the left and the others to the right; as Markdown where asked."""
    cells = [[_table_cell(cell, markdown) for cell in line] for line in [header, *rows]]
    least = 3 if markdown else 1  # Markdown needs a rule of "-:" at least
    widths = [max(least, *(len(line[at]) for line in cells)) for at in range(len(header))]

    def text(line: Sequence[str], pad: Callable[[str, int], str]) -> str:
        rest = (pad(cell, width) for cell, width in zip(line[1:], widths[1:], strict=True))
        columns = [line[0].ljust(widths[0]), *rest]
        return "| " + " | ".join(columns) + " |" if markdown else "  ".join(columns).rstrip()

    rule = ["-" * widths[0], *("-" * (width - 1) + (":" if markdown else "-") for width in widths[1:])]
    return "\n".join([text(cells[0], str.rjust), text(rule, str.rjust), *(text(line, str.rjust) for line in cells[1:])])


def format_percent(interval: Interval | None) -> str:
    """A value with its interval, in percent; 'none' where there is none."""
    if interval is None:
        return "none"
    return f"{100 * interval.value:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def format_points(difference: Interval) -> str:
    """A difference of shares in percentage points, with its interval."""
    if difference.low == difference.high == 0:
        return "0 (no problem differs)"  # an interval of no width would look like certainty
    return f"{100 * difference.value:+.1f} [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"


def format_share(interval: Interval | None) -> str:
    """A value in percent, without its interval; 'none' where there is none."""
    return "none" if interval is None else f"{100 * interval.value:.1f}"


def format_p_value(value: float) -> str:
    """A p with three places."""
    return f"{value:.3f}" if value >= 0.001 else "<0.001"


def format_gigabytes(size: int | None) -> str:
    """A size in 10**9 bytes; 'none' where it was not measured."""
    return "none" if size is None else f"{size / 1e9:.2f} GB"


def _table_cell(text: str, markdown: bool) -> str:
    flat = " ".join(text.split())
    return flat.replace("|", "\\|") if markdown else flat


def quote_untrusted(value: object, width: int = 100) -> str:
    """A value out of a file, fit for a sentence: without control characters, and not without end."""
    text = value if isinstance(value, str) and value.isprintable() else repr(value)
    return text if len(text) <= width else text[: width - 1] + "…"
