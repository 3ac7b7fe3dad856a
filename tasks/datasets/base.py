"""Base types of the data sets: the source, its rows and columns, and the reader of JSON Lines files.

Every error about a row has its location.
"""

from __future__ import annotations

import difflib
import gzip
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.parsing import json_type, parse_json
from errors import DataError
from tasks.problem import Problem

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Columns:
    """The columns in use: `turns`, one column with both sides of a chat, or `intent` and `code`.

    `context` is appended to the intent where a row has it.
    """

    intent: str = ""
    code: str = ""
    context: str = ""
    turns: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all columns in use."""
        return tuple(name for name in (self.intent, self.context, self.code, self.turns) if name)

    def __str__(self) -> str:
        if self.turns:
            return f"{self.turns} (user to assistant)"
        return f"{self.intent}{f' + {self.context}' if self.context else ''} -> {self.code}"


# Ordered from the most specific names, as a table can match several.
KNOWN_COLUMNS = (
    Columns("intent", "snippet"),
    Columns("nl", "cmd"),
    Columns("instruction", "output", context="input"),
    Columns("instruction", "response", context="context"),
    Columns("instruction", "response", context="input"),
    Columns("prompt", "completion"),
    Columns(turns="messages"),
    Columns(turns="conversations"),
    Columns("question", "answer"),
    Columns("intent", "code"),
    Columns("prompt", "response"),
    Columns("text", "code"),
)


def detect_columns(path: Path, columns: Sequence[str], intent: str | None = None, code: str | None = None) -> Columns:
    """Return the columns to read. `intent` and `code` override the detection; the same name twice is a chat column.

    Raises DataError with the table's columns and how to map them.
    """
    for mapped in (intent, code):
        if mapped is not None and mapped not in columns:
            near = difflib.get_close_matches(mapped, columns, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise DataError(f"{path} has no column '{mapped}': {hint}it has {quote_names(columns)}.")
    if intent is not None and code is not None:
        return Columns(turns=intent) if intent == code else Columns(intent, code)
    by_folded_name = {name.strip().casefold(): name for name in reversed(columns)}
    if intent is None and code is None:
        found = next(
            (_with_table_names(layout, by_folded_name) for layout in KNOWN_COLUMNS if _matches(layout, by_folded_name)),
            None,
        )
    else:
        found = _complete_mapping(intent, code, by_folded_name)
    if found is None:
        missing = " ".join(
            f"--{side}-column NAME" for side, name in (("intent", intent), ("code", code)) if name is None
        )
        raise DataError(
            f"{path} has the columns {quote_names(columns)}, and none that are known as "
            f"{'an intent and its code' if intent == code else 'the intent' if code else 'the code'}: add {missing}."
        )
    return found


def _matches(layout: Columns, table_names: Mapping[str, str]) -> bool:
    return all(name in table_names for name in layout.names if name != layout.context)


def _with_table_names(layout: Columns, table_names: Mapping[str, str]) -> Columns:
    """Return the layout with the names as the table spells them."""
    return Columns(*(table_names.get(name, "") for name in (layout.intent, layout.code, layout.context, layout.turns)))


def _complete_mapping(intent: str | None, code: str | None, table_names: Mapping[str, str]) -> Columns | None:
    """Find the column that was not mapped, by its usual partner, or else by any known name."""
    pairs = [_with_table_names(layout, table_names) for layout in KNOWN_COLUMNS if not layout.turns]
    mapped = intent or code
    partners = [pair for pair in pairs if mapped in (pair.intent, pair.code)]
    for pair in (*partners, *pairs):
        chosen = Columns(intent or pair.intent, code or pair.code, pair.context if pair.intent == intent else "")
        if chosen.intent and chosen.code and chosen.intent != chosen.code:
            return chosen
    return None


def quote_names(columns: Iterable[object]) -> str:
    """Quote the first twenty names from a file for a message, each printable and shortened."""
    names = list(columns)
    quoted = [f"'{_printable(str(name))}'" for name in names[:20]]
    return ", ".join(quoted) + (f" and {len(names) - 20} more" if len(names) > 20 else "") or "none"


def _printable(name: str) -> str:
    clean = "".join(character if character.isprintable() else "?" for character in name[:61])
    return clean if len(clean) <= 60 else clean[:59] + "…"


@dataclass(frozen=True)
class DatasetSource:
    """A data set: how its folder is recognised and read, and how it is fetched from the Hub.

    The data set's folder matches at least one of the glob `patterns`; `layout` describes them in words. `read` takes
    that folder, or with `is_file` the file of the data set in its place, and one of the `splits`; `fetch` takes a
    split.
    """

    name: str
    title: str
    patterns: tuple[str, ...]
    layout: str
    read: Callable[[Path, str], list[Problem]]
    fetch: Callable[[str], list[Problem]]
    splits: tuple[str, ...] = SPLITS
    is_file: bool = False

    def require_split(self, split: str) -> None:
        """Raise DataError unless the data set has the split."""
        if split not in self.splits:
            listed = " and ".join(self.splits)
            raise DataError(
                f"{self.title} has no split {split}, it has {listed}: name another data set for examples or training."
                if split != "test"
                else f"{self.title} has no split {split}, it has {listed}: choose one of these."
            )

    def find(self, data_dir: Path, names: frozenset[str]) -> Path | None:
        """Return the folder in `data_dir`, or `data_dir` itself, with this data set; None where neither has it.

        Several data sets have files of the same names, so a folder with the name of another one (`names`) is skipped.
        """
        if self._matches(data_dir / self.name):
            return data_dir / self.name
        if data_dir.name not in names - {self.name} and self._matches(data_dir):
            return data_dir
        return None

    def is_file_of(self, path: Path) -> bool:
        """Whether the name of the file is that of a file of this data set, which may be read without its folder."""
        return self.is_file and any(path.match(pattern) for pattern in self.patterns)

    def folder(self, data_dir: Path, names: frozenset[str]) -> Path:
        """Return the folder as `find` does; raises DataError, with the expected layout, where there is none.

        The file of a data set is returned as it is.
        """
        if data_dir.is_file() and self.is_file:
            return data_dir
        if not data_dir.is_dir():
            raise DataError(f"No such data folder: {data_dir} (--data-dir) should hold {self.layout}.")
        found = self.find(data_dir.resolve(), names)
        if found is None:
            raise DataError(f"{self.title} is not in {data_dir} (--data-dir): expected there is {self.layout}.")
        return found

    def _matches(self, folder: Path) -> bool:
        return folder.is_dir() and any(next(folder.glob(pattern), None) is not None for pattern in self.patterns)


@dataclass(frozen=True)
class DatasetRow:
    """A row and its location (`train.jsonl, line 12`), for error messages."""

    location: str
    values: Mapping[str, Any]

    def text(self, *columns: str) -> str:
        """Return the text in the first of these columns that exists; raises DataError if missing, blank or not text."""
        column = self._require_column(columns)
        value = self.values[column]
        if not isinstance(value, str):
            raise DataError(f"{self.location}: column '{column}' must be text, it is {json_type(value)}.")
        if not value.strip():
            raise DataError(f"{self.location}: column '{column}' is empty.")
        return self._check_unicode(column, value)

    def optional_text(self, column: str) -> str:
        """Return the text in this column, '' if the column is missing or null."""
        value = self.values.get(column)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise DataError(f"{self.location}: column '{column}' must be text, it is {json_type(value)}.")
        return self._check_unicode(column, value)

    def texts(self, column: str) -> list[str]:
        """Return the list of texts in this column."""
        value = self.items(column)
        for item in value:
            if not isinstance(item, str):
                raise DataError(
                    f"{self.location}: column '{column}' must be a list of texts, it has {json_type(item)} in it."
                )
        return [self._check_unicode(column, item) for item in value]

    def items(self, column: str) -> list[Any]:
        """Return the list in this column, with items of any type."""
        value = self.values[self._require_column((column,))]
        if not isinstance(value, list):
            raise DataError(f"{self.location}: column '{column}' must be a list, it is {json_type(value)}.")
        return value

    def number(self, column: str) -> int:
        """Return the integer in this column."""
        value = self.values[self._require_column((column,))]
        if not isinstance(value, int) or isinstance(value, bool):
            raise DataError(f"{self.location}: column '{column}' must be a whole number, it is {json_type(value)}.")
        return value

    def row_id(self, default: str) -> str:
        """Return the row's id (column id, or question_id as on the Hub), or `default`."""
        for column in ("id", "question_id"):
            value = self.values.get(column)
            if isinstance(value, str) and value.strip():
                return self._check_unicode(column, value)
            if isinstance(value, int) and not isinstance(value, bool):
                return str(value)
        return default

    def _require_column(self, columns: tuple[str, ...]) -> str:
        for column in columns:
            if column in self.values:
                return column
        existing = ", ".join(str(name) for name in self.values) or "none"
        expected = " or ".join(f"'{column}'" for column in columns)
        raise DataError(f"{self.location}: column {expected} is missing; the columns there are {existing}.")

    def _check_unicode(self, column: str, value: str) -> str:
        # JSON can have half of a surrogate pair, which no file, hash or tokenizer accepts.
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise DataError(f"{self.location}: column '{column}' has half a character (a lone surrogate).") from None
        return value


def read_rows(path: Path, expected: str) -> list[DatasetRow]:
    """Read all rows of a JSON Lines file (UTF-8, with or without BOM; blank lines skipped), also one packed by gzip.

    `expected` describes the content, for the message where the file is missing. Raises DataError with the line.
    """
    if not path.is_file():
        raise DataError(f"No such file: {path} should hold {expected}.")
    try:
        rows = list(_iter_rows(path))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}).") from error
    if not rows:
        raise DataError(f"{path} is empty: it should hold {expected}.")
    return rows


def read_json(path: Path) -> Any:
    """Read the value in a JSON file; raises DataError."""
    try:
        return parse_json(path.read_bytes().decode("utf-8-sig"), str(path))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 (byte {error.start + 1} of the file).") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}).") from error


def _iter_rows(path: Path) -> Iterator[DatasetRow]:
    # Read as bytes: only b"\n" ends a line of JSON Lines, while text mode and str.splitlines accept other ends.
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        for number, raw in _iter_lines(file, path):
            location = f"{path}, line {number}"
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                raise DataError(f"{location}: not UTF-8 (byte {error.start + 1} of the line).") from error
            if not line:
                continue
            value = parse_json(line, location)
            if not isinstance(value, dict):
                raise DataError(f"{location}: must be a JSON object with named columns, it is {json_type(value)}.")
            yield DatasetRow(location, value)


def _iter_lines(file: Iterable[bytes], path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines with their numbers; raises DataError for a packed file that ends early or is damaged."""
    number = 0
    try:
        for number, raw in enumerate(file, start=1):
            yield number, raw
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path}, line {number + 1}: the gzip file ends early or is damaged ({error}): download it again."
        ) from error
