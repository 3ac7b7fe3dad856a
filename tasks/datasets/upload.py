"""Uploaded tables: a person's file becomes examples, with an error and its line for every bad row.

Intents and code are unchanged except for what a model should not learn: Windows line ends, blank lines around them,
white space at their end, and a Markdown fence around the code. Chats must have one question and one answer, in OpenAI's
or ShareGPT's format. No content of a file is run.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from common.format import quote_untrusted
from common.parsing import json_type
from errors import DataError
from tasks.datasets.base import Columns, DatasetRow, detect_columns, quote_names
from tasks.datasets.tables import MAX_CELL_CHARS, CellError, RowError, TableRow, open_table
from tasks.problem import Example

_ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "system": "system",
    "developer": "system",
}


@dataclass(frozen=True)
class ChatPair:
    """The text of each side, "" without a turn, and whether there was a system turn."""

    user: str
    assistant: str
    system: bool


def split_chat(value: Any, location: str, column: str) -> ChatPair:
    """Return the question and the answer of the chat in a cell.

    Raises CellError where it is no chat, and for several turns of a side, since an answer depends on the turns before.
    """
    if not isinstance(value, list):
        raise CellError(f"{location}: column '{column}' must be a list of messages, it is {json_type(value)}.", column)
    turns: dict[str, list[str]] = {"user": [], "assistant": [], "system": []}
    for message in value:
        role, text = _parse_message(message, location, column)
        turns[role].append(text)
    for role in ("user", "assistant"):
        if len(turns[role]) > 1:
            raise CellError(
                f"{location}: column '{column}' has {len(turns[role])} {role} turns: a row is one question and one "
                "answer, so give each pair its own row.",
                column,
            )
    return ChatPair("".join(turns["user"]), "".join(turns["assistant"]), bool(turns["system"]))


def _parse_message(message: Any, location: str, column: str) -> tuple[str, str]:
    if not isinstance(message, dict):
        raise CellError(
            f"{location}: column '{column}' must be a list of messages, it has {json_type(message)} in it.", column
        )
    role = message.get("role", message.get("from"))
    text = message.get("content", message.get("value"))
    if isinstance(text, list):  # content in parts, as for models that read images
        text = "\n".join(str(part.get("text")) for part in text if isinstance(part, dict) and part.get("text"))
    if not isinstance(role, str) or _ROLES.get(role.casefold()) is None:
        raise CellError(
            f"{location}: column '{column}' has a message of role {quote_untrusted(repr(role), 40)}: only user and "
            "assistant are supported.",
            column,
        )
    if text is not None and not isinstance(text, str):
        raise CellError(
            f"{location}: column '{column}' has a message whose content is {json_type(text)}, not text.", column
        )
    return _ROLES[role.casefold()], text or ""


# Changes made to rows, the keys of `UploadResult.changes`.
FENCE_REMOVED = "a code fence taken off"
SYSTEM_REMOVED = "a system turn left out"
_FENCED_CODE = re.compile(r"\s*```[ \t]*[\w+-]*[ \t]*\n(.*?)\n?[ \t]*```\s*", re.DOTALL)
_BLANK_LINES = re.compile(r"\A(?:[ \t]*\n)+")
# How the readers decode a byte that is not UTF-8, and other characters that no file or tokenizer accepts.
_BAD_BYTE = re.compile("[\udc80-\udcff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
# Values of an empty input in Alpaca's data.
_NO_CONTEXT = ("", "<noinput>")
_MAX_ID_LENGTH = 200


@dataclass(frozen=True)
class UploadResult:
    """The content of a file: examples, and errors for the rows that were skipped.

    `rows` counts all rows, `changes` the changes made to examples. `locations` maps the id of each example to its
    location ("line 12"), `extras` to the cells of the further columns that were asked for.
    """

    examples: list[Example]
    errors: list[RowError]
    columns: tuple[str, ...]
    mapping: Columns
    rows: int
    locations: Mapping[str, str] = field(default_factory=dict)
    changes: Mapping[str, int] = field(default_factory=dict)
    extras: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def read_upload(
    path: str | Path,
    intent_column: str | None = None,
    code_column: str | None = None,
    extra_columns: Sequence[str | None] = (),
) -> UploadResult:
    """Read a .jsonl, .json, .csv, .tsv or .parquet file; columns are detected (columns.KNOWN_COLUMNS) or mapped.

    The cells of `extra_columns` are returned as they are, where the table has them; None names none. Raises DataError
    for a file that cannot be read as a whole, unknown columns, and a file without a valid row.
    """
    path = Path(path).expanduser()
    table = open_table(path)
    mapping = detect_columns(path, table.columns, intent_column, code_column)
    further = tuple(name for name in dict.fromkeys(extra_columns) if name in table.columns and name)
    reader = _UploadReader(path.stem, mapping, table.unit, further)
    for record in table.rows((*mapping.names, "id", "question_id", *further)):
        reader.add(record)
    if not reader.examples:
        first = f": {reader.errors[0].message}" if reader.errors else "."
        raise DataError(f"{path} has {reader.rows} rows and none can be used{first}")
    return UploadResult(
        reader.examples,
        reader.errors,
        table.columns,
        mapping,
        reader.rows,
        reader.locations,
        dict(reader.changes),
        reader.extras,
    )


def read_uploads(
    paths: Sequence[Path],
    intent_column: str | None = None,
    code_column: str | None = None,
    extra_columns: Sequence[str | None] = (),
) -> UploadResult:
    """Read one or several files, the shards of one table, as `read_upload` does; ids are unique over all of them.

    With several files each location names its file.
    """
    uploads = [read_upload(path, intent_column, code_column, extra_columns) for path in paths]
    if len(uploads) == 1:
        return uploads[0]
    merged = UploadResult([], [], uploads[0].columns, uploads[0].mapping, sum(upload.rows for upload in uploads))
    locations, extras = dict(merged.locations), dict(merged.extras)
    for path, upload in zip(paths, uploads, strict=True):
        merged.errors.extend(replace(error, message=f"{path.name}, {error.message}") for error in upload.errors)
        for example in upload.examples:
            id = example.id if example.id not in locations else f"{path.name}#{len(locations)}"
            merged.examples.append(replace(example, id=id))
            locations[id] = f"{path.name}, {upload.locations[example.id]}"
            extras[id] = upload.extras[example.id]
    return replace(merged, locations=locations, extras=extras)


class _UploadReader:
    """Collects examples and errors, row by row."""

    def __init__(self, stem: str, mapping: Columns, unit: str, further: Sequence[str] = ()) -> None:
        self.examples: list[Example] = []
        self.errors: list[RowError] = []
        self.locations: dict[str, str] = {}
        self.changes: Counter[str] = Counter()
        self.rows = 0
        self.extras: dict[str, dict[str, Any]] = {}
        self._stem, self._mapping, self._unit, self._further = stem, mapping, unit, further

    def add(self, record: TableRow | RowError) -> None:
        self.rows += 1
        if isinstance(record, RowError):
            self.errors.append(record)
            return
        row = DatasetRow(f"{self._unit} {record.line}", record.values)
        changes: set[str] = set()
        try:
            intent, code = _row_texts(row, self._mapping, changes)
        except CellError as error:
            self.errors.append(RowError(record.line, error.column, str(error), error.empty))
            return
        id = self._id(row, record.line)
        self.examples.append(Example(id, intent, code))
        self.locations[id] = row.location
        self.extras[id] = {name: row.values.get(name) for name in self._further}
        self.changes.update(changes)

    def _id(self, row: DatasetRow, line: int) -> str:
        """Return the row's own id if it is unique, or else a generated one."""
        default = f"{self._stem}-{line:05d}"
        try:
            id = row.row_id(default)
        except DataError:
            id = default
        id = id if id not in self.locations and len(id) <= _MAX_ID_LENGTH else default
        return id if id not in self.locations else f"{default}#{len(self.locations)}"


def _row_texts(row: DatasetRow, mapping: Columns, changes: set[str]) -> tuple[str, str]:
    """Return the row's intent and code; raises CellError for an invalid cell."""
    if mapping.turns:
        chat = split_chat(_cell(row, mapping.turns), row.location, mapping.turns)
        intent = _clean_text(row, mapping.turns, chat.user, "has no text of the user")
        code = _clean_text(row, mapping.turns, chat.assistant, "has no text of the assistant")
        changes |= {SYSTEM_REMOVED} if chat.system else set()
    else:
        intent = _clean_text(row, mapping.intent, _role_text(row, mapping.intent, "user", changes))
        code = _clean_text(row, mapping.code, _role_text(row, mapping.code, "assistant", changes))
        context = row.values.get(mapping.context)
        if context is not None and str(context).strip() not in _NO_CONTEXT:
            intent = f"{intent}\n{_clean_text(row, mapping.context, context).strip()}"
    fenced = _FENCED_CODE.fullmatch(code)
    if fenced and "```" not in fenced[1]:
        changes.add(FENCE_REMOVED)
        code = _clean_text(row, mapping.code or mapping.turns, fenced[1])
    return intent.strip(), code


def _cell(row: DatasetRow, column: str) -> Any:
    if column not in row.values:
        raise CellError(f"{row.location}: column '{column}' is missing; the row has {quote_names(row.values)}.", column)
    return row.values[column]


def _role_text(row: DatasetRow, column: str, role: str, changes: set[str]) -> Any:
    """Return the cell, or this role's text where it is a chat, as in TRL's conversational prompt and completion."""
    value = _cell(row, column)
    if not isinstance(value, list):
        return value
    chat = split_chat(value, row.location, column)
    changes |= {SYSTEM_REMOVED} if chat.system else set()
    return chat.user if role == "user" else chat.assistant


def _clean_text(row: DatasetRow, column: str, value: Any, blank: str = "is empty") -> str:
    """Return the text without Windows line ends, blank lines around it and white space at its end."""
    cell = f"{row.location}: column '{column}'"
    if value is None:
        raise CellError(f"{cell} {blank}.", column, empty=True)
    if not isinstance(value, str):
        raise CellError(f"{cell} must be text, it is {json_type(value)}.", column)
    if len(value) > MAX_CELL_CHARS:
        raise CellError(f"{cell} has {len(value):,} characters and {MAX_CELL_CHARS:,} are read at most.", column)
    if "\0" in value:
        raise CellError(f"{cell} has a NUL character in it.", column)
    if _BAD_BYTE.search(value):
        raise CellError(f"{cell} is not UTF-8: save the file as UTF-8.", column)
    if _SURROGATE.search(value):
        raise CellError(f"{cell} has half a character (a lone surrogate).", column)
    text = _BLANK_LINES.sub("", value.replace("\r\n", "\n").replace("\r", "\n")).rstrip()
    if not text:
        raise CellError(f"{cell} {blank}.", column, empty=True)
    return text
