"""CSV for spreadsheets: the one writer of all exports, whose cells no spreadsheet runs as a formula.

A cell that a spreadsheet would run gets an apostrophe before it (OWASP, CSV injection): people and models write them.
Numbers are left as they are. Programs that read an export back take one apostrophe off where `=`, `+`, `-`, `@`, a tab
or a line end follows it, perhaps behind quotes and blanks.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence

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
