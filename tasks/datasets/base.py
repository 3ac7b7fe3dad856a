"""Dataset source type, JSONL row reader.

What the package knows of one data set: how its folder is recognised, read, and fetched from the Hub instead.

Rows of a data set, and the reader of JSON Lines files. Whatever is wrong with a row is said with its place.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errors import DataError
from tasks.problem import Problem


@dataclass(frozen=True)
class DatasetSource:
    """One data set.

    `marks` are glob patterns of which the data set's own folder matches at least one, `layout` says the same to a
    person. `read` takes that folder and a split, `fetch` takes a split and asks the Hub.
    """

    name: str
    title: str
    patterns: tuple[str, ...]
    layout: str
    read: Callable[[Path, str], list[Problem]]
    fetch: Callable[[str], list[Problem]]

    def find(self, data_dir: Path, names: frozenset[str]) -> Path | None:
        """The folder in `data_dir`, or `data_dir` itself, that holds this data set; None when neither does.

        Several data sets have files of the same names, so a folder that is called like another one (`names`) is
        not taken for this one.
        """
        if self._matches(data_dir / self.name):
            return data_dir / self.name
        if data_dir.name not in names - {self.name} and self._matches(data_dir):
            return data_dir
        return None

    def folder(self, data_dir: Path, names: frozenset[str]) -> Path:
        """As `find`, with a DataError that says what is expected when there is nothing."""
        if not data_dir.is_dir():
            raise DataError(f"No such data folder: {data_dir} (--data-dir) should hold {self.layout}.")
        found = self.find(data_dir.resolve(), names)
        if found is None:
            raise DataError(f"{self.title} is not in {data_dir} (--data-dir): expected there is {self.layout}.")
        return found

    def _matches(self, folder: Path) -> bool:
        return folder.is_dir() and any(next(folder.glob(mark), None) is not None for mark in self.patterns)


@dataclass(frozen=True)
class DatasetRow:
    """One row and where it stands (`train.jsonl, line 12`), for the sentence that says what is wrong with it."""

    location: str
    values: Mapping[str, Any]

    def text(self, *columns: str) -> str:
        """The text in the first of these columns that the row has; DataError if missing, blank or not text."""
        column = self._require_column(columns)
        value = self.values[column]
        if not isinstance(value, str):
            raise DataError(f"{self.location}: column '{column}' must be text, it is {json_type(value)}.")
        if not value.strip():
            raise DataError(f"{self.location}: column '{column}' is empty.")
        return self._check_unicode(column, value)

    def optional_text(self, column: str) -> str:
        """The text in this column, '' when the row does not have it or has null there."""
        value = self.values.get(column)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise DataError(f"{self.location}: column '{column}' must be text, it is {json_type(value)}.")
        return self._check_unicode(column, value)

    def texts(self, column: str) -> list[str]:
        """The list of texts in this column."""
        value = self.items(column)
        for item in value:
            if not isinstance(item, str):
                raise DataError(
                    f"{self.location}: column '{column}' must be a list of texts, it has {json_type(item)} in it."
                )
        return [self._check_unicode(column, item) for item in value]

    def items(self, column: str) -> list[Any]:
        """The list in this column, whatever it holds."""
        value = self.values[self._require_column((column,))]
        if not isinstance(value, list):
            raise DataError(f"{self.location}: column '{column}' must be a list, it is {json_type(value)}.")
        return value

    def number(self, column: str) -> int:
        """The whole number in this column."""
        value = self.values[self._require_column((column,))]
        if not isinstance(value, int) or isinstance(value, bool):
            raise DataError(f"{self.location}: column '{column}' must be a whole number, it is {json_type(value)}.")
        return value

    def row_id(self, default: str) -> str:
        """The row's own id (column id, or question_id as on the Hub), or `default` when it has none."""
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
        there = ", ".join(str(name) for name in self.values) or "none"
        wanted = " or ".join(f"'{column}'" for column in columns)
        raise DataError(f"{self.location}: column {wanted} is missing; the columns there are {there}.")

    def _check_unicode(self, column: str, value: str) -> str:
        # JSON can spell half of a surrogate pair, which no file, hash or tokenizer takes afterwards.
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise DataError(f"{self.location}: column '{column}' has half a character (a lone surrogate).") from None
        return value


def read_rows(path: Path, expected: str) -> list[DatasetRow]:
    """All rows of a JSON Lines file (UTF-8, with or without BOM; blank lines skipped).

    `holds` says what the file should hold, for the error when it is not there. Raises DataError with the line.
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
    """The value in a JSON file; DataError in one sentence when it cannot be read."""
    try:
        return parse_json(path.read_bytes().decode("utf-8-sig"), str(path))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 (byte {error.start + 1} of the file).") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}).") from error


def parse_json(text: str, location: str, **options: Any) -> Any:
    """The JSON value that `text` spells; DataError naming `where` otherwise. `options` go to json.loads."""
    try:
        return json.loads(text, **options)
    except json.JSONDecodeError as error:
        raise DataError(f"{location}: not JSON ({error.msg} at character {error.pos + 1}).") from error
    except (ValueError, RecursionError) as error:  # a number too long for Python, or nesting without end
        raise DataError(f"{location}: not JSON that Python can read ({error}).") from error


def json_type(value: object) -> str:
    """What a JSON value is, in words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    names: dict[type, str] = {str: "text", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)


def _iter_rows(path: Path) -> Iterator[DatasetRow]:
    # Read as bytes: only b"\n" ends a line of JSON Lines, while text mode and str.splitlines know many more ends.
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            where = f"{path}, line {number}"
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                raise DataError(f"{where}: not UTF-8 (byte {error.start + 1} of the line).") from error
            if not line:
                continue
            value = parse_json(line, where)
            if not isinstance(value, dict):
                raise DataError(f"{where}: must be a JSON object with named columns, it is {json_type(value)}.")
            yield DatasetRow(where, value)
