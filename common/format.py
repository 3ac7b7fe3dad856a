"""Text for people: bytes, durations, times, percentages with intervals, aligned tables, and CSV for spreadsheets.

A cell that a spreadsheet would run gets an apostrophe before it (OWASP, CSV injection): people and models write them.
Numbers are left as they are. Programs that read an export back take one apostrophe off where `=`, `+`, `-`, `@`, a tab
or a line end follows it, perhaps behind quotes and blanks.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Protocol

# Quotes and blanks before the sign do not help: a spreadsheet leaves them out, or splits the line at another delimiter.
_FORMULA = re.compile(r"""["'`\s\u200b\ufeff]*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n]""")
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?")


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]], line_end: str = "\n") -> str:
    """Return the header and the rows as CSV, with quotes around every cell that has a line end of any kind."""
    return "".join(f"{_line(row)}{line_end}" for row in (header, *rows))


def _line(row: Sequence[object]) -> str:
    out = io.StringIO(newline="")
    # With another line end the module leaves a lone carriage return without quotes, and readers end the row there.
    csv.writer(out, lineterminator="\r\n").writerow(map(harmless_cell, row))
    return out.getvalue().removesuffix("\r\n")


def records_csv(records: Iterable[Mapping[str, object]], line_end: str = "\n") -> str:
    """Return records as CSV with a column for every key."""
    rows = list(records)
    names = list(dict.fromkeys(name for row in rows for name in row))
    return csv_text(names, ([row.get(name, "") for name in names] for row in rows), line_end)


def harmless_cell(value: object) -> object:
    """Return the value, with an apostrophe before a text that a spreadsheet would run as a formula."""
    if isinstance(value, str) and _FORMULA.match(value) and not _NUMBER.fullmatch(value):
        return f"'{value}"
    return value


class IntervalLike(Protocol):
    """A value between two bounds, as shares of 1."""

    @property
    def value(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], markdown: bool) -> str:
    """Format rows below a header, the first column aligned left and the others right; as Markdown with `markdown`."""
    cells = [[_table_cell(cell, markdown) for cell in row] for row in [header, *rows]]
    min_width = 3 if markdown else 1  # Markdown needs a rule of "-:" at least
    widths = [max(min_width, *(len(row[column]) for row in cells)) for column in range(len(header))]

    def format_row(row: Sequence[str]) -> str:
        rest = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        columns = [row[0].ljust(widths[0]), *rest]
        return "| " + " | ".join(columns) + " |" if markdown else "  ".join(columns).rstrip()

    rule = ["-" * widths[0], *("-" * (width - 1) + (":" if markdown else "-") for width in widths[1:])]
    return "\n".join(format_row(row) for row in (cells[0], rule, *cells[1:]))


def format_percent(interval: IntervalLike | None) -> str:
    """Format a value with its interval, in percent; 'none' for None."""
    if interval is None:
        return "none"
    return f"{100 * interval.value:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def format_points(difference: IntervalLike) -> str:
    """Format a difference of shares in percentage points, with its interval."""
    if difference.low == difference.high == 0:
        return "0 (no problem differs)"  # an interval of no width would suggest certainty
    return f"{100 * difference.value:+.1f} [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"


def format_share(interval: IntervalLike | None) -> str:
    """Format a value in percent, without its interval; 'none' for None."""
    return "none" if interval is None else f"{100 * interval.value:.1f}"


def format_p_value(value: float) -> str:
    """Format a p-value with three decimals."""
    return f"{value:.3f}" if value >= 0.001 else "<0.001"


def format_gigabytes(size: int | None) -> str:
    """Format a size in 10**9 bytes, so that a column of them is in one unit; 'none' for None."""
    return "none" if size is None else f"{size / 1e9:.2f} GB"


def format_bytes(size: float, base: int = 1000) -> str:
    """Format a size: '512 bytes', '12.3 kB', '93 MB', '3.61 GB'; three digits, no trailing zeros.

    With `base` 1024 the units are those of the sandbox's limits, whose options and stored texts count in 1024.
    """
    for power, name in ((3, "GB"), (2, "MB"), (1, "kB")):
        unit = float(base**power)
        if size >= unit * 0.9995:  # from where the smaller unit would be rounded up to 1000
            value = size / unit
            decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
            text = f"{value:.{decimals}f}"
            return f"{text.rstrip('0').rstrip('.') if decimals else text} {name}"
    return f"{size:.0f} bytes"


def format_duration(seconds: float) -> str:
    """Format a time span in two units at most: '45 s', '3 min 07 s', '2 h 05 min', '1 d 04 h'."""
    total = max(0, round(seconds))
    for unit, name, part, part_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if total >= unit:
            return f"{total // unit} {name} {total % unit // part:02d} {part_name}"
    return f"{total} s"


def format_clock(seconds: float) -> str:
    """Format a time span as a clock has it: '3:07', '2:05:09'."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def _table_cell(text: str, markdown: bool) -> str:
    flat = " ".join(text.split())
    return flat.replace("|", "\\|") if markdown else flat


def quote_untrusted(value: object, width: int = 100) -> str:
    """Return a value from a file fit for a message: without control characters, `width` characters at most."""
    text = value if isinstance(value, str) and value.isprintable() else repr(value)
    return text if len(text) <= width else text[: width - 1] + "…"


# Control characters (C0 but tab and line feed, DEL, C1), those that reorder the text around them, and half characters.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def terminal_text(text: str) -> str:
    r"""Return a text fit for a terminal: what would control it is shown as an escape such as \x1b.

    Names, messages and logs come from files, the Hub and models: they must not move the cursor, set the title or hide
    a part of a line. Line ends of Windows become plain ones.
    """
    return _CONTROL.sub(_escape_character, text.replace("\r\n", "\n"))


def _escape_character(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def utc_timestamp() -> str:
    """Return the present time in UTC as ISO 8601 with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


_QUANTIZATION_LABELS: Mapping[str, str] = {"nf4": "NF4", "int8": "int8", "none": "unquantized"}


def quantization_label(quantization: str) -> str:
    """Return the quantization of a base for people: NF4, int8, unquantized; an unknown one as it is."""
    return _QUANTIZATION_LABELS.get(quantization, quantization)
