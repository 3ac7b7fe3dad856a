"""Table readers: CSV/TSV, JSON, JSON Lines and Parquet files as named columns and rows, with an error for each bad row.

Files are untrusted: their size, the number of rows and the length of a cell are limited. An invalid part costs only its
own rows. The csv and json modules are used, not pandas or pyarrow, because only they know the line of a bad row.

- CSV has a header, with comma, semicolon or tab between cells, line ends inside quotes, UTF-8 with or without BOM.
- JSON is JSON Lines, a list of rows, or such a list inside an object ({"data": [...]}). The content decides which,
  since both endings are in use for both.
- Parquet is read through pyarrow in small batches, as a small file can unpack to a large one.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from common.format import format_bytes
from common.parsing import json_type, parse_json
from errors import DataError
from tasks.datasets.base import quote_names

FORMATS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
MAX_BYTES = 200_000_000
MAX_ROWS = 1_000_000
# More columns, and longer names, than any table of examples has.
MAX_COLUMNS = 500
MAX_COLUMN_NAME_CHARS = 200
# Characters of one cell: more than any model reads.
MAX_CELL_CHARS = 100_000
# Rows whose columns are collected where a format has no header.
COLUMN_SAMPLE_ROWS = 1_000


@dataclass(frozen=True)
class RowError:
    """A row that is skipped. `message` says where and why; `line` counts from 1, in Parquet it counts rows."""

    line: int
    column: str
    message: str
    empty: bool = False  # whether a blank cell is the only problem


class CellError(DataError):
    """An invalid cell; becomes a RowError."""

    def __init__(self, message: str, column: str, empty: bool = False) -> None:
        super().__init__(message)
        self.column, self.empty = column, empty


@dataclass(frozen=True)
class TableRow:
    """A row as it is in the file."""

    line: int
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """An opened file. `rows` takes the columns to read (a format may yield more) and can be called once."""

    columns: tuple[str, ...]
    rows: Callable[[Sequence[str]], Iterator[TableRow | RowError]]
    unit: str = "line"


def open_table(path: Path) -> Table:
    """Open a .jsonl, .json, .csv, .tsv or .parquet file.

    Raises DataError where the file as a whole cannot be read, which may also happen while its rows are read.
    """
    try:
        if path.is_dir():
            raise DataError(f"{path} is a folder: name the file in it, one that ends in {', '.join(FORMATS)}.")
        if not path.is_file():
            raise DataError(f"There is no file {path}: check its path.")
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}).") from error
    reader = _reader_for(path)
    if size > MAX_BYTES:
        raise DataError(
            f"{path} has {format_bytes(size)} and the limit is {format_bytes(MAX_BYTES)}: split it, or make it smaller."
        )
    if not size:
        raise DataError(f"{path} is empty: it has neither columns nor rows.")
    return reader(path)


def _reader_for(path: Path) -> Callable[[Path], Table]:
    readers = {".csv": open_csv, ".tsv": open_csv, ".parquet": open_parquet}
    ending = path.suffix.casefold()
    if ending not in (*FORMATS, ".ndjson"):
        raise DataError(f"{path} is of no known format: give a file that ends in {', '.join(FORMATS)}.")
    return readers.get(ending, open_json)


def read_bytes(path: Path) -> bytes:
    """Read the content; raises DataError where it cannot be UTF-8 text."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}).") from error
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path} is UTF-16: save it as UTF-8 (in Excel: 'CSV UTF-8').")
    if b"\0" in content[:65_536]:
        raise DataError(f"{path} is not a text file, it has NUL bytes: check the ending of its name.")
    return content


def check_columns(path: Path, names: Sequence[str], where: str = "") -> None:
    """Raise DataError for too many columns or too long names. `where` is ', line 1' for a file with lines."""
    if len(names) > MAX_COLUMNS:
        raise DataError(f"{path}{where}: has {len(names):,} columns and {MAX_COLUMNS} are the limit: leave others out.")
    longest = max(map(len, names), default=0)
    if longest > MAX_COLUMN_NAME_CHARS:
        raise DataError(
            f"{path}{where}: a column's name has {longest:,} characters and {MAX_COLUMN_NAME_CHARS} are the limit: "
            "rename it."
        )


def limit_rows(path: Path, rows: Iterator[TableRow | RowError]) -> Iterator[TableRow | RowError]:
    """Yield the rows; raises DataError after MAX_ROWS of them."""
    for number, record in enumerate(rows, start=1):
        if number > MAX_ROWS:
            raise DataError(f"{path} has more than {MAX_ROWS:,} rows, which is the limit: make it smaller.")
        yield record


_DELIMITERS = ",;\t"
# How often reading restarts after a row with a broken quote.
_MAX_RESTARTS = 100


def open_csv(path: Path) -> Table:
    """Open a CSV file; the first line that is not blank is its header."""
    # Bytes that are not UTF-8 become lone surrogates, which are reported for the rows that have them.
    text = read_bytes(path).decode("utf-8-sig", errors="surrogateescape")
    lines = list(io.StringIO(text, newline=""))
    start = next((index for index, line in enumerate(lines) if line.strip()), None)
    if start is None:
        raise DataError(f"{path} is empty: it has neither columns nor rows.")
    if len(lines[start]) > MAX_COLUMNS * MAX_COLUMN_NAME_CHARS:
        raise DataError(
            f"{path}, line {start + 1}: this header has {len(lines[start]):,} characters: name {MAX_COLUMNS} columns "
            "at most."
        )
    delimiter = max(_DELIMITERS, key=lambda candidate: len(_split_header(lines[start], candidate)))
    names = tuple(_replace_surrogates(name.strip()) for name in _split_header(lines[start], delimiter))
    repeated = [name for name, times in Counter(names).items() if name and times > 1]
    if not any(names):
        raise DataError(f"{path}, line {start + 1}: this line has no column names: begin the file with a header.")
    if repeated:
        raise DataError(f"{path}, line {start + 1}: two columns are named '{repeated[0]}': rename one of them.")
    check_columns(path, names, f", line {start + 1}")
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
    """The rows after the header.

    A quote that is not doubled, or never closed, breaks its row, and the lines after it may still be part of it. So the
    rows that follow a broken one are pending until the file ends or another quote breaks. A line with a misplaced quote
    is the end of the broken cell; the pending rows are then parts of that cell and become errors.
    """

    lines: list[str]
    names: tuple[str, ...]
    delimiter: str
    _broken_row: int = 0
    _pending: list[TableRow | RowError] = field(default_factory=list)

    def records(self, start: int) -> Iterator[TableRow | RowError]:
        """Yield the rows from the line with index `start` on."""
        well_quoted = re.compile(
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
                    elif well_quoted.fullmatch("".join(self.lines[first:end])):
                        self._pending += (row,) if row else ()
                    else:
                        yield from self._quote_errors(first + 1)
                    first = end
                yield from self._pending
                return
            except csv.Error as error:
                yield from self._pending
                self._pending, self._broken_row, restarts = [], first + 1, restarts + 1
                yield RowError(first + 1, "", f"line {first + 1}: {_csv_error_reason(str(error))}")
            if restarts > _MAX_RESTARTS:
                yield RowError(
                    first + 2, "", f"line {first + 2}: too many quotes are broken; the rest of the file is not read."
                )
                return
            start = first + 1

    def _quote_errors(self, line: int) -> Iterator[RowError]:
        """Yield errors for the pending rows and for this line, which shows that they are parts of a broken cell."""
        for number in (*(row.line for row in self._pending), line):
            yield RowError(
                number, "", f"line {number}: is part of the broken quote in line {self._broken_row}, or has its own."
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
        return "text follows a quote that closes a cell: double the quotes inside a cell."
    return f"cannot be read ({message})."


# Keys under which an object has its rows.
WRAPPER_KEYS = ("data", "train", "rows", "examples")
_BLANK = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


def open_json(path: Path) -> Table:
    """Open a JSON or JSON Lines file; its columns are those of the first rows."""
    content = read_bytes(path).removeprefix(b"\xef\xbb\xbf")
    start = content.lstrip()
    if start.startswith(b"[") or (start.startswith(b"{") and path.suffix != ".jsonl" and not _first_is_row(start)):
        records = _read_json_list(path, content)
    else:
        records = _read_json_rows(content)
    records = limit_rows(path, records)
    head = list(islice(records, COLUMN_SAMPLE_ROWS))
    columns: dict[str, None] = {}
    for record in head:
        if isinstance(record, TableRow):
            columns.update(dict.fromkeys(record.values))
    check_columns(path, tuple(columns))
    if not columns:
        reason = next((f": {record.message}" for record in head if isinstance(record, RowError)), ".")
        raise DataError(f"{path} has no row with named columns{reason}")
    return Table(tuple(columns), lambda _: chain(head, records))


def _first_is_row(content: bytes) -> bool:
    """Whether the first line is a complete object that does not wrap a list of rows."""
    try:
        value = json.loads(content.split(b"\n", 1)[0])
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and not any(isinstance(value.get(name), list) for name in WRAPPER_KEYS)


def _read_json_rows(content: bytes) -> Iterator[TableRow | RowError]:
    # Only b"\n" ends a line of JSON Lines, while str.splitlines accepts other ends.
    for line, raw in enumerate(content.split(b"\n"), start=1):
        if not raw.strip():
            continue
        try:
            value = parse_json(raw.decode("utf-8").strip(), f"line {line}")
        except UnicodeDecodeError as error:
            yield RowError(line, "", f"line {line}: not UTF-8 (byte {error.start + 1} of the line).")
        except DataError as error:
            yield RowError(line, "", str(error))
        else:
            yield _make_record(line, value)


def _make_record(line: int, value: Any) -> TableRow | RowError:
    if isinstance(value, dict):
        return TableRow(line, value)
    return RowError(line, "", f"line {line}: must be a JSON object with named columns, it is {json_type(value)}.")


def _read_json_list(path: Path, content: bytes) -> Iterator[TableRow | RowError]:
    """Yield the rows of a list, decoded one by one to know the line of each."""
    try:
        text = content.decode("utf-8")
        line, counted = 1, 0
        for index, value in _iter_elements(text, _find_list_start(path, text)):
            line += text.count("\n", counted, index)
            counted = index
            yield _make_record(line, value)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: not UTF-8 (byte {error.start + 1} of the file).") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not JSON ({error.msg} at line {error.lineno}, character {error.colno}).") from error
    except (ValueError, RecursionError) as error:  # a number too long for Python, or deep nesting
        raise DataError(f"{path}: not JSON that Python can read ({error}).") from error


def _find_list_start(path: Path, text: str) -> int:
    """Return the index of the list of rows in `text`."""
    index = _skip_blank(text, 0)
    if text[index] == "[":
        return index
    names = []
    while text[index] != "}":
        name, index = _DECODER.raw_decode(text, _skip_blank(text, index + 1))
        names.append(str(name))
        index = _expect(text, _skip_blank(text, index), ":")
        if name in WRAPPER_KEYS and text[index : index + 1] == "[":
            return index
        _, index = _DECODER.raw_decode(text, index)
        index = _skip_blank(text, index)
        if text[index : index + 1] not in (",", "}"):
            raise json.JSONDecodeError("Expecting ',' delimiter", text, index)
    raise DataError(
        f"{path} holds one object ({quote_names(names)}): it must be a list of rows, or have one under "
        f"{' or '.join(repr(name) for name in WRAPPER_KEYS)}."
    )


def _iter_elements(text: str, start: int) -> Iterator[tuple[int, Any]]:
    """Yield index and value of each element; text after a list that is the whole file is an error."""
    index = _skip_blank(text, start + 1)
    more = text[index : index + 1] != "]"
    while more:
        value, end = _DECODER.raw_decode(text, index)
        yield index, value
        index = _skip_blank(text, end)
        more = text[index : index + 1] != "]"
        if more:
            index = _expect(text, index, ",")
    rest = _skip_blank(text, index + 1)
    if text[:start].strip() == "" and rest < len(text):
        raise json.JSONDecodeError("Extra data after the list", text, rest)


def _expect(text: str, index: int, delimiter: str) -> int:
    """Return the index after `delimiter` and white space."""
    if text[index : index + 1] != delimiter:
        raise json.JSONDecodeError(f"Expecting '{delimiter}' delimiter", text, index)
    return _skip_blank(text, index + 1)


def _skip_blank(text: str, index: int) -> int:
    match = _BLANK.match(text, index)
    return match.end() if match else index


_BATCH_ROWS = 256
# Limit of the unpacked size of the columns in use.
MAX_UNPACKED_BYTES = 2 * MAX_BYTES


def open_parquet(path: Path) -> Table:
    """Open a Parquet file; its rows are numbered from 1, as it has no lines."""
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    try:
        file = pq.ParquetFile(path)
        names = tuple(dict.fromkeys(file.schema_arrow.names))
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise _unreadable_error(path, error) from error
    check_columns(path, names)
    return Table(names, lambda requested: limit_rows(path, _read_parquet(path, names, requested)), "row")


def _read_parquet(path: Path, names: Sequence[str], requested: Sequence[str]) -> Iterator[TableRow | RowError]:
    import pyarrow as pa

    columns = [name for name in requested if name in names]
    unpacked, row = 0, 0
    try:
        _check_unpacked(path, _declared_bytes(path, columns))
        for batch in _open_dictionary_encoded(path, columns).iter_batches(batch_size=_BATCH_ROWS, columns=columns):
            unpacked += sum(_unpacked_bytes(column) for column in batch.columns)
            _check_unpacked(path, unpacked)
            for values in batch.to_pylist():
                row += 1
                yield TableRow(row, values)
    except (pa.ArrowException, OSError, ValueError, KeyError, MemoryError) as error:
        raise _unreadable_error(path, error) from error


def _check_unpacked(path: Path, size: int) -> None:
    if size > MAX_UNPACKED_BYTES:
        raise DataError(
            f"{path} unpacks to more than {format_bytes(MAX_UNPACKED_BYTES)}, which is the limit: "
            "split it, or make it smaller."
        )


def _declared_bytes(path: Path, columns: Sequence[str]) -> int:
    """Return the unpacked size of these columns as the file's metadata has it, before anything is unpacked."""
    import pyarrow.parquet as pq

    metadata = pq.ParquetFile(path).metadata
    chunks = (
        metadata.row_group(group).column(index)
        for group in range(metadata.num_row_groups)
        for index in range(metadata.num_columns)
    )
    parts = tuple(f"{name}." for name in columns)
    return sum(int(chunk.total_uncompressed_size) for chunk in chunks if f"{chunk.path_in_schema}.".startswith(parts))


def _open_dictionary_encoded(path: Path, columns: Sequence[str]) -> Any:
    """Open the file so that repeated texts are in memory once: a page can refer to a long text a million times."""
    import pyarrow.parquet as pq

    metadata = pq.ParquetFile(path).metadata
    group = metadata.row_group(0) if metadata.num_row_groups else None
    chunks = [group.column(index) for index in range(metadata.num_columns)] if group else []
    texts = [
        chunk.path_in_schema
        for chunk in chunks
        if chunk.physical_type == "BYTE_ARRAY" and chunk.path_in_schema.startswith(tuple(columns))
    ]
    return pq.ParquetFile(path, read_dictionary=texts)


def _unpacked_bytes(array: Any) -> int:
    """Return the size of the array's values in bytes, with repeated values counted each time."""
    import pyarrow as pa
    import pyarrow.compute as pc  # type: ignore[import-untyped]

    kind = array.type
    if pa.types.is_struct(kind):
        return sum(map(_unpacked_bytes, array.flatten()))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _unpacked_bytes(array.flatten())
    if pa.types.is_dictionary(kind) and any(is_text(kind.value_type) for is_text in _text_types()):
        return int(pc.sum(pc.take(pc.binary_length(array.dictionary), array.indices)).as_py() or 0)
    return int(array.nbytes)


def _text_types() -> tuple[Callable[[Any], bool], ...]:
    import pyarrow as pa

    return pa.types.is_string, pa.types.is_binary, pa.types.is_large_string, pa.types.is_large_binary


def _unreadable_error(path: Path, error: BaseException) -> DataError:
    reason = str(error).strip().partition("\n")[0].rstrip(".")[:160] or type(error).__name__
    return DataError(f"{path} cannot be read as Parquet ({reason}).")
