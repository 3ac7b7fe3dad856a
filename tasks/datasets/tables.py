"""Tables that people bring, whatever their format: named columns, records with their line, faults for bad rows.

Nothing in a file is trusted: its size, its number of rows and the length of a cell are limited, and a broken part
costs its own rows, not the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errors import DataError

FORMATS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
MAX_BYTES = 200_000_000
MAX_ROWS = 1_000_000
# Characters of one cell: more than any model reads.
MAX_CELL_CHARS = 100_000
# Rows whose columns are looked at where a format has no header.
COLUMN_SAMPLE_ROWS = 1_000


@dataclass(frozen=True)
class RowError:
    """A row that is left out. `sentence` says where and why; `line` counts from 1, in Parquet it counts rows."""

    line: int
    column: str
    message: str
    # Nothing is wrong with it but that a cell is blank.
    empty: bool = False


class CellError(DataError):
    """What is wrong with one cell; becomes a RowError."""

    def __init__(self, message: str, column: str, empty: bool = False) -> None:
        super().__init__(message)
        self.column, self.empty = column, empty


@dataclass(frozen=True)
class TableRow:
    """A row as the file has it."""

    line: int
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """An opened file. `records` takes the columns that are wanted (a format may give more) and reads once."""

    columns: tuple[str, ...]
    rows: Callable[[Sequence[str]], Iterator[TableRow | RowError]]
    unit: str = "line"


def open_table(path: Path) -> Table:
    """Opens a .jsonl, .json, .csv, .tsv or .parquet file.

    Raises DataError, in one sentence, where the file as a whole cannot be read; that may be while its records are.
    """
    try:
        if path.is_dir():
            raise DataError(f"{path} is a folder: name the file in it, one that ends in {', '.join(FORMATS)}.")
        if not path.is_file():
            raise DataError(f"There is no file {path}: check its path.")
        size = path.stat().st_size
    except OSError as fault:
        raise DataError(f"{path} cannot be read ({fault.strerror or fault}).") from fault
    reader = _reader_for(path)
    if size > MAX_BYTES:
        raise DataError(
            f"{path} has {size / 1e6:.0f} MB and {MAX_BYTES / 1e6:.0f} MB are read at most: split it, or cut it down."
        )
    if not size:
        raise DataError(f"{path} is empty: it has neither columns nor rows.")
    return reader(path)


def _reader_for(path: Path) -> Callable[[Path], Table]:
    # Imported here, as each of them imports the classes above.
    from tasks.datasets.table_csv import open_csv
    from tasks.datasets.table_json import open_json
    from tasks.datasets.table_parquet import open_parquet

    readers = {".csv": open_csv, ".tsv": open_csv, ".parquet": open_parquet}
    ending = path.suffix.casefold()
    if ending not in (*FORMATS, ".ndjson"):
        raise DataError(f"{path} is of no known format: give a file that ends in {', '.join(FORMATS)}.")
    return readers.get(ending, open_json)


def read_bytes(path: Path) -> bytes:
    """The file's content, if it can be text at all."""
    try:
        content = path.read_bytes()
    except OSError as fault:
        raise DataError(f"{path} cannot be read ({fault.strerror or fault}).") from fault
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path} is UTF-16: save it as UTF-8 (in Excel: 'CSV UTF-8').")
    if b"\0" in content[:65_536]:
        raise DataError(f"{path} is no text file, it has NUL bytes: check whether its name ends as it should.")
    return content


def limit_rows(path: Path, rows: Iterator[TableRow | RowError]) -> Iterator[TableRow | RowError]:
    """The records; DataError behind MAX_ROWS of them."""
    for number, record in enumerate(rows, start=1):
        if number > MAX_ROWS:
            raise DataError(f"{path} has more than {MAX_ROWS:,} rows, which is the most that is read: cut it down.")
        yield record
