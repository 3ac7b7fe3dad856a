"""JSON Lines, a JSON list of rows, and the same list inside of an object ({"data": [...]}).

Which of them a file is, its content says: both kinds are often given the other's ending.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from errors import DataError
from tasks.datasets.columns import quote_names
from tasks.datasets.jsonl import json_type, parse_json
from tasks.datasets.tables import COLUMN_SAMPLE_ROWS, RowError, Table, TableRow, limit_rows, read_bytes

# Names under which an object holds its rows.
WRAPPER_KEYS = ("data", "train", "rows", "examples")
_BLANK = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


def open_json(path: Path) -> Table:
    """The table; its columns are those of the first rows."""
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
    if not columns:
        why = next((f": {record.message}" for record in head if isinstance(record, RowError)), ".")
        raise DataError(f"{path} has no row with named columns{why}")
    return Table(tuple(columns), lambda _: chain(head, records))


def _first_is_row(content: bytes) -> bool:
    """Whether the first line is a whole object, and not one that wraps a list of rows."""
    try:
        value = json.loads(content.split(b"\n", 1)[0])
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and not any(isinstance(value.get(name), list) for name in WRAPPER_KEYS)


def _read_json_rows(content: bytes) -> Iterator[TableRow | RowError]:
    # Only b"\n" ends a line of JSON Lines, while str.splitlines knows many more ends.
    for line, raw in enumerate(content.split(b"\n"), start=1):
        if not raw.strip():
            continue
        try:
            value = parse_json(raw.decode("utf-8").strip(), f"line {line}")
        except UnicodeDecodeError as fault:
            yield RowError(line, "", f"line {line}: not UTF-8 (byte {fault.start + 1} of the line).")
        except DataError as fault:
            yield RowError(line, "", str(fault))
        else:
            yield _make_record(line, value)


def _make_record(line: int, value: Any) -> TableRow | RowError:
    if isinstance(value, dict):
        return TableRow(line, value)
    return RowError(line, "", f"line {line}: must be a JSON object with named columns, it is {json_type(value)}.")


def _read_json_list(path: Path, content: bytes) -> Iterator[TableRow | RowError]:
    """The rows of a list, decoded one after the other, so that each one's line is known."""
    try:
        text = content.decode("utf-8")
        line, seen = 1, 0
        for place, value in _iter_elements(text, _find_list_start(path, text)):
            line += text.count("\n", seen, place)
            seen = place
            yield _make_record(line, value)
    except UnicodeDecodeError as fault:
        line = content.count(b"\n", 0, fault.start) + 1
        raise DataError(f"{path}, line {line}: not UTF-8 (byte {fault.start + 1} of the file).") from fault
    except json.JSONDecodeError as fault:
        raise DataError(f"{path}: not JSON ({fault.msg} at line {fault.lineno}, character {fault.colno}).") from fault
    except (ValueError, RecursionError) as fault:  # a number too long for Python, or nesting without end
        raise DataError(f"{path}: not JSON that Python can read ({fault}).") from fault


def _find_list_start(path: Path, text: str) -> int:
    """Where the list of rows begins."""
    place = _skip_blank(text, 0)
    if text[place] == "[":
        return place
    names = []
    while text[place] != "}":
        name, place = _DECODER.raw_decode(text, _skip_blank(text, place + 1))
        names.append(str(name))
        place = _expect(text, _skip_blank(text, place), ":")
        if name in WRAPPER_KEYS and text[place : place + 1] == "[":
            return place
        _, place = _DECODER.raw_decode(text, place)
        place = _skip_blank(text, place)
        if text[place : place + 1] not in (",", "}"):
            raise json.JSONDecodeError("Expecting ',' delimiter", text, place)
    raise DataError(
        f"{path} holds one object ({quote_names(names)}): it should be a list of rows, or have one under "
        f"{' or '.join(repr(name) for name in WRAPPER_KEYS)}."
    )


def _iter_elements(text: str, start: int) -> Iterator[tuple[int, Any]]:
    """Place and value of each element; nothing may stand behind a list that is the whole file."""
    place = _skip_blank(text, start + 1)
    more = text[place : place + 1] != "]"
    while more:
        value, end = _DECODER.raw_decode(text, place)
        yield place, value
        place = _skip_blank(text, end)
        more = text[place : place + 1] != "]"
        if more:
            place = _expect(text, place, ",")
    rest = _skip_blank(text, place + 1)
    if text[:start].strip() == "" and rest < len(text):
        raise json.JSONDecodeError("Extra data behind the list", text, rest)


def _expect(text: str, index: int, delimiter: str) -> int:
    """The place behind `mark` and what is blank."""
    if text[index : index + 1] != delimiter:
        raise json.JSONDecodeError(f"Expecting '{delimiter}' delimiter", text, index)
    return _skip_blank(text, index + 1)


def _skip_blank(text: str, index: int) -> int:
    match = _BLANK.match(text, index)
    return match.end() if match else index
