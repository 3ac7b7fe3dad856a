"""A table whose cells are values, written as Markdown for people and as CSV for programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from evaluate.grid import format_percent, text_table
from evaluate.stats import Interval

CellValue = str | float | Interval | None
# Shares are kept in [0, 1] and shown in percent; numbers are shown with so many digits.
ColumnKind = Literal["text", "share", "whole", "tenths", "hundredths"]
_DECIMALS = {"whole": 0, "tenths": 1, "hundredths": 2}


@dataclass(frozen=True)
class TableColumn:
    """A column's title and what stands in it."""

    title: str
    kind: ColumnKind = "text"


@dataclass(frozen=True)
class StudyTable:
    """`name` is the CSV file's, `title` the heading; `note` says what a reader must know."""

    name: str
    title: str
    columns: Sequence[TableColumn]
    rows: Sequence[Sequence[CellValue]]
    note: str = ""

    def to_markdown(self) -> str:
        """The heading, the grid without columns that are empty throughout, and the note."""
        kept = [at for at in range(len(self.columns)) if any(row[at] is not None for row in self.rows)]
        header = [self.columns[at].title for at in kept]
        lines = [[format_cell(row[at], self.columns[at].kind) for at in kept] for row in self.rows]
        parts = [f"## {self.title}", text_table(header, lines, markdown=True), self.note]
        return "\n\n".join(part for part in parts if part)

    def to_csv(self) -> str:
        """One line a row; an interval is three columns. Scores are in percent, as in the study's own files."""
        wide = [any(isinstance(row[at], Interval) for row in self.rows) for at in range(len(self.columns))]
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        header: list[str] = []
        for column, is_wide in zip(self.columns, wide, strict=True):
            header += [column.title, *([f"{column.title} low", f"{column.title} high"] if is_wide else [])]
        writer.writerow(header)
        for row in self.rows:
            line: list[str] = []
            for value, column, is_wide in zip(row, self.columns, wide, strict=True):
                line += _csv_cells(value, column.kind, is_wide)
            writer.writerow(line)
        return out.getvalue()


def format_cell(value: CellValue, kind: ColumnKind) -> str:
    """As a person reads it; "-" where there is nothing."""
    if value is None or value == "":
        return "-"
    if isinstance(value, Interval):
        return format_percent(value)
    if isinstance(value, str):
        return value
    return f"{100 * value:.2f}" if kind == "share" else f"{value:,.{_DECIMALS.get(kind, 2)}f}"


def _csv_cells(value: CellValue, kind: ColumnKind, with_interval: bool) -> list[str]:
    if isinstance(value, Interval):
        return [f"{100 * each:.4f}" for each in (value.value, value.low, value.high)]
    text = (
        "" if value is None else value if isinstance(value, str) else f"{100 * value if kind == 'share' else value:.6g}"
    )
    return [text, "", ""] if with_interval else [text]
