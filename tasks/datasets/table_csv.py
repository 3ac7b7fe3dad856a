"""CSV with a header: comma, semicolon or tab between cells, line ends inside of quotes, UTF-8 with or without BOM."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from errors import DataError
from tasks.datasets.tables import RowError, Table, TableRow, limit_rows, read_bytes

_DELIMITERS = ",;\t"
# How often reading starts again behind a row with a broken quote.
_MAX_RESTARTS = 100


def open_csv(path: Path) -> Table:
    """The table; the first line that is not blank names its columns."""
    # Bytes that are not UTF-8 become lone surrogates, which are found again in the rows that have them.
    text = read_bytes(path).decode("utf-8-sig", errors="surrogateescape")
    lines = list(io.StringIO(text, newline=""))
    start = next((index for index, line in enumerate(lines) if line.strip()), None)
    if start is None:
        raise DataError(f"{path} is empty: it has neither columns nor rows.")
    delimiter = max(_DELIMITERS, key=lambda mark: len(_split_header(lines[start], mark)))
    names = tuple(_replace_surrogates(name.strip()) for name in _split_header(lines[start], delimiter))
    repeated = [name for name, times in Counter(names).items() if name and times > 1]
    if not any(names):
        raise DataError(f"{path}, line {start + 1}: this line names no columns: begin the file with a header.")
    if repeated:
        raise DataError(f"{path}, line {start + 1}: two columns are named '{repeated[0]}': rename one of them.")
    body = _CsvRows(lines, names, delimiter)
    return Table(tuple(filter(None, names)), lambda _: limit_rows(path, body.records(start + 1)))


def _split_header(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:  # a cell longer than the module reads
        return []


def _replace_surrogates(name: str) -> str:
    return name.encode("utf-8", errors="surrogateescape").decode("utf-8", errors="replace")


@dataclass
class _CsvRows:
    """The lines behind the header.

    A quote that is not doubled, or never closed, breaks its row, and what follows may still belong to it: rows after
    it are held back until it is clear that they are rows. A line with a quote where none may stand is the end of the
    broken cell, and what was held back is a part of that cell.
    """

    lines: list[str]
    names: tuple[str, ...]
    delimiter: str
    _broken_row: int = 0
    _pending: list[TableRow | RowError] = field(default_factory=list)

    def records(self, start: int) -> Iterator[TableRow | RowError]:
        """Rows from the line with index `start` on."""
        sound = re.compile(
            r'(?:"(?:[^"]|"")*"|[^"D\r\n]*)(?:D(?:"(?:[^"]|"")*"|[^"D\r\n]*))*\s*'.replace("D", self.delimiter)
        )
        restarts = 0
        while True:
            reader = csv.reader(islice(self.lines, start, None), delimiter=self.delimiter, strict=True)
            first = start
            try:
                for cells in reader:
                    end = start + reader.line_num
                    row = self._make_row(first + 1, cells)
                    if not self._broken_row:
                        yield from (row,) if row else ()
                    elif sound.fullmatch("".join(self.lines[first:end])):
                        self._pending += (row,) if row else ()
                    else:
                        yield from self._quote_errors(first + 1)
                    first = end
                yield from self._pending
                return
            except csv.Error as fault:
                yield from self._pending
                self._pending, self._broken_row, restarts = [], first + 1, restarts + 1
                yield RowError(first + 1, "", f"line {first + 1}: {_csv_error_reason(str(fault))}")
            if restarts > _MAX_RESTARTS:
                yield RowError(
                    first + 2, "", f"line {first + 2}: too many quotes are broken; from here on nothing is read."
                )
                return
            start = first + 1

    def _quote_errors(self, line: int) -> Iterator[RowError]:
        """Faults for the rows held back, and for this line, which shows that they are the rest of a broken cell."""
        for number in (*(row.line for row in self._pending), line):
            yield RowError(
                number, "", f"line {number}: belongs to the broken quote in line {self._broken_row}, or has its own."
            )
        self._pending = []

    def _make_row(self, line: int, cells: list[str]) -> TableRow | RowError | None:
        if not cells:
            return None
        if len(cells) > len(self.names) and any(cell.strip() for cell in cells[len(self.names) :]):
            return RowError(
                line,
                "",
                f"line {line}: has {len(cells)} cells and the header {len(self.names)}: put quotes around a cell "
                f"that has {_DELIMITER_NAMES[self.delimiter]}s in it.",
            )
        return TableRow(line, {name: cell for name, cell in zip(self.names, cells, strict=False) if name})


_DELIMITER_NAMES = {",": "comma", ";": "semicolon", "\t": "tab"}


def _csv_error_reason(message: str) -> str:
    if "unexpected end" in message:
        return "a quote opens here and never closes."
    if "expected after" in message:
        return "text follows a quote that closes a cell: double the quotes inside of a cell."
    return f"cannot be read ({message})."
