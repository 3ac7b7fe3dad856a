"""The reader of JSON Lines files: accepted variants, and errors with their location."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest

from common.parsing import parse_json
from errors import DataError
from tasks.datasets.base import DatasetRow, read_json, read_rows
from tests import messages

ROWS = [
    {"id": "a", "nl": "add 1 to `x`", "cmd": "x += 1"},
    {"id": "b", "nl": "größer als 2 – ‘ja’\u2028über zwei Zeilen", "cmd": "if x > 2:\n    print('ja')\r\n"},
    {"id": "c", "nl": 'a tab\tand a quote "', "cmd": "\\n"},
]


def write(path: Path, *lines: str | bytes) -> Path:
    path.write_bytes(b"\n".join(line.encode() if isinstance(line, str) else line for line in lines))
    return path


def test_rows_equal_those_of_the_datasets_library(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", *(json.dumps(row, ensure_ascii=False) for row in ROWS))
    oracle = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert [row.values for row in read_rows(path, "rows")] == oracle.to_list() == ROWS


def test_bom_blank_lines_and_windows_newlines_are_accepted(tmp_path: Path) -> None:
    lines = [json.dumps(row).encode() for row in ROWS]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n\r\n  \r\n".join(lines) + b"\r\n\r\n")
    rows = read_rows(path, "rows")
    assert [row.values for row in rows] == ROWS
    assert [row.location for row in rows] == [f"{path}, line {number}" for number in (1, 4, 7)]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{'nl': 1}", "line 2: not JSON (Expecting property name"),
        ('{"nl": "a", "cmd": "b"', "line 2: not JSON"),
        ("[1, 2]", "line 2: must be a JSON object with named columns, it is a list."),
        ('"text"', "line 2: must be a JSON object with named columns, it is text."),
        ("null", "line 2: must be a JSON object with named columns, it is null."),
        ('{"nl": ' + "1" * 5000 + "}", "line 2: not JSON that Python can read"),
        ("[" * 100_000, "line 2: not JSON that Python can read"),
        (b'{"nl": "gr\xfc\xdfe"}', "line 2: not UTF-8 (byte 11 of the line)."),
    ],
)
def test_invalid_line_is_reported_with_its_number(tmp_path: Path, line: str | bytes, expected: str) -> None:
    path = write(tmp_path / "rows.jsonl", json.dumps(ROWS[0]), line)
    with pytest.raises(DataError) as caught:
        read_rows(path, "rows")
    assert str(caught.value).startswith(f"{path}, {expected}")
    assert "\n" not in str(caught.value)


def test_utf16_is_reported_at_its_first_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROWS[0]), encoding="utf-16")
    with pytest.raises(DataError, match=messages.LINE_NOT_UTF8):
        read_rows(path, "rows")


def test_missing_empty_and_unreadable_files_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=messages.ROWS_FILE_MISSING):
        read_rows(tmp_path / "gone.jsonl", "the rows")
    with pytest.raises(DataError, match=messages.NO_SUCH_FILE):
        read_rows(tmp_path, "the rows")
    with pytest.raises(DataError, match=messages.ROWS_FILE_EMPTY):
        read_rows(write(tmp_path / "empty.jsonl", "", "  "), "the rows")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"id": 1, "text": "x"}, "here: column 'nl' is missing; the columns there are id, text."),
        ({}, "here: column 'nl' is missing; the columns there are none."),
        ({"nl": 3}, "here: column 'nl' must be text, it is a number."),
        ({"nl": True}, "here: column 'nl' must be text, it is true or false."),
        ({"nl": None}, "here: column 'nl' must be text, it is null."),
        ({"nl": ["x"]}, "here: column 'nl' must be text, it is a list."),
        ({"nl": " \n"}, "here: column 'nl' is empty."),
        ({"nl": "\ud800"}, "here: column 'nl' has half a character (a lone surrogate)."),
    ],
)
def test_value_that_is_not_a_text_is_an_error(values: dict[str, object], expected: str) -> None:
    with pytest.raises(DataError) as caught:
        DatasetRow("here", values).text("nl")
    assert str(caught.value) == expected


def test_columns_of_other_types_are_checked() -> None:
    row = DatasetRow("here", {"n": 3, "tests": ["a", "b"], "mixed": ["a", 1], "none": None, "question_id": "q-1"})
    assert (row.number("n"), row.texts("tests"), row.optional_text("none"), row.optional_text("gone")) == (
        3,
        ["a", "b"],
        "",
        "",
    )
    assert row.row_id("default") == "q-1"
    assert DatasetRow("here", {"id": 7}).row_id("default") == "7"
    assert DatasetRow("here", {"id": ""}).row_id("default") == "default"
    with pytest.raises(DataError, match=messages.MUST_BE_WHOLE_NUMBER):
        row.number("tests")
    with pytest.raises(DataError, match=messages.MUST_BE_LIST):
        row.texts("n")
    with pytest.raises(DataError, match=messages.MUST_BE_LIST_OF_TEXTS):
        row.texts("mixed")
    with pytest.raises(DataError, match=messages.MUST_BE_TEXT):
        row.optional_text("n")


def test_json_files_are_read_or_an_error(tmp_path: Path) -> None:
    assert read_json(write(tmp_path / "a.json", '\ufeff{"a": 1}')) == {"a": 1}
    with pytest.raises(DataError, match=messages.FILE_NOT_JSON):
        read_json(write(tmp_path / "b.json", "{"))
    with pytest.raises(DataError, match=messages.FILE_NOT_UTF8):
        read_json(write(tmp_path / "c.json", b"\xff"))
    with pytest.raises(DataError, match=messages.TEXT_NOT_JSON):
        parse_json("nope", "there")
