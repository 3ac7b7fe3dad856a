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
from tasks.datasets.columns import listed
from tasks.datasets.jsonl import kind, parse
from tasks.datasets.tables import HEAD, Fault, Record, Table, limited, read_bytes

# Names under which an object holds its rows.
WRAPPERS = ("data", "train", "rows", "examples")
_BLANK = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


def open_json(path: Path) -> Table:
    """The table; its columns are those of the first rows."""
    content = read_bytes(path).removeprefix(b"\xef\xbb\xbf")
    start = content.lstrip()
    if start.startswith(b"[") or (start.startswith(b"{") and path.suffix != ".jsonl" and not _first_is_row(start)):
        records = _listed(path, content)
    else:
        records = _lines(content)
    records = limited(path, records)
    head = list(islice(records, HEAD))
    columns: dict[str, None] = {}
    for record in head:
        if isinstance(record, Record):
            columns.update(dict.fromkeys(record.values))
    if not columns:
        why = next((f": {record.sentence}" for record in head if isinstance(record, Fault)), ".")
        raise DataError(f"{path} has no row with named columns{why}")
    return Table(tuple(columns), lambda _: chain(head, records))


def _first_is_row(content: bytes) -> bool:
    """Whether the first line is a whole object, and not one that wraps a list of rows."""
    try:
        value = json.loads(content.split(b"\n", 1)[0])
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and not any(isinstance(value.get(name), list) for name in WRAPPERS)


def _lines(content: bytes) -> Iterator[Record | Fault]:
    # Only b"\n" ends a line of JSON Lines, while str.splitlines knows many more ends.
    for line, raw in enumerate(content.split(b"\n"), start=1):
        if not raw.strip():
            continue
        try:
            value = parse(raw.decode("utf-8").strip(), f"line {line}")
        except UnicodeDecodeError as fault:
            yield Fault(line, "", f"line {line}: not UTF-8 (byte {fault.start + 1} of the line).")
        except DataError as fault:
            yield Fault(line, "", str(fault))
        else:
            yield _record(line, value)


def _record(line: int, value: Any) -> Record | Fault:
    if isinstance(value, dict):
        return Record(line, value)
    return Fault(line, "", f"line {line}: must be a JSON object with named columns, it is {kind(value)}.")


def _listed(path: Path, content: bytes) -> Iterator[Record | Fault]:
    """The rows of a list, decoded one after the other, so that each one's line is known."""
    try:
        text = content.decode("utf-8")
        line, seen = 1, 0
        for place, value in _elements(text, _list_start(path, text)):
            line += text.count("\n", seen, place)
            seen = place
            yield _record(line, value)
    except UnicodeDecodeError as fault:
        line = content.count(b"\n", 0, fault.start) + 1
        raise DataError(f"{path}, line {line}: not UTF-8 (byte {fault.start + 1} of the file).") from fault
    except json.JSONDecodeError as fault:
        raise DataError(f"{path}: not JSON ({fault.msg} at line {fault.lineno}, character {fault.colno}).") from fault
    except (ValueError, RecursionError) as fault:  # a number too long for Python, or nesting without end
        raise DataError(f"{path}: not JSON that Python can read ({fault}).") from fault


def _list_start(path: Path, text: str) -> int:
    """Where the list of rows begins."""
    place = _skip(text, 0)
    if text[place] == "[":
        return place
    names = []
    while text[place] != "}":
        name, place = _DECODER.raw_decode(text, _skip(text, place + 1))
        names.append(str(name))
        place = _expect(text, _skip(text, place), ":")
        if name in WRAPPERS and text[place : place + 1] == "[":
            return place
        _, place = _DECODER.raw_decode(text, place)
        place = _skip(text, place)
        if text[place : place + 1] not in (",", "}"):
            raise json.JSONDecodeError("Expecting ',' delimiter", text, place)
    raise DataError(
        f"{path} holds one object ({listed(names)}): it should be a list of rows, or have one under "
        f"{' or '.join(repr(name) for name in WRAPPERS)}."
    )


def _elements(text: str, start: int) -> Iterator[tuple[int, Any]]:
    """Place and value of each element; nothing may stand behind a list that is the whole file."""
    place = _skip(text, start + 1)
    more = text[place : place + 1] != "]"
    while more:
        value, end = _DECODER.raw_decode(text, place)
        yield place, value
        place = _skip(text, end)
        more = text[place : place + 1] != "]"
        if more:
            place = _expect(text, place, ",")
    rest = _skip(text, place + 1)
    if text[:start].strip() == "" and rest < len(text):
        raise json.JSONDecodeError("Extra data behind the list", text, rest)


def _expect(text: str, place: int, mark: str) -> int:
    """The place behind `mark` and what is blank."""
    if text[place : place + 1] != mark:
        raise json.JSONDecodeError(f"Expecting '{mark}' delimiter", text, place)
    return _skip(text, place + 1)


def _skip(text: str, place: int) -> int:
    match = _BLANK.match(text, place)
    return match.end() if match else place
