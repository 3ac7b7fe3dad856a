"""Uploaded files: all formats and usual column names give the same examples."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest

from errors import DataError
from tasks.datasets.upload import FENCE_REMOVED, SYSTEM_REMOVED, read_upload
from tests import messages

ROWS = [
    {"intent": "add 1 to `x`", "snippet": "x += 1"},
    {"intent": 'print "a, b"; twice', "snippet": "for _ in range(2):\n    print('a, b')"},
]
PAIRS = [(row["intent"], row["snippet"]) for row in ROWS]


def jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def pairs(path: Path, **mapping: str) -> list[tuple[str, str]]:
    upload = read_upload(path, **mapping)
    assert upload.errors == []
    return [(example.intent, example.code) for example in upload.examples]


def write_csv(path: Path, delimiter: str = ",", bom: str = "", end: str = "\r\n") -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(bom)
        writer = csv.DictWriter(file, list(ROWS[0]), delimiter=delimiter, lineterminator=end)
        writer.writeheader()
        writer.writerows(ROWS)
    return path


def test_json_lines_with_a_bom_and_blank_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + "\n\n".join(json.dumps(row) for row in ROWS).encode())
    assert pairs(path) == PAIRS
    assert list(read_upload(path).locations.values()) == ["line 1", "line 3"]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize(
    ("name", "value"),
    [("a.json", ROWS), ("a.jsonl", ROWS), ("a.json", {"version": [1], "data": ROWS}), ("a.json", {"train": ROWS})],
)
def test_json_list_is_read_with_either_file_ending(tmp_path: Path, name: str, value: Any, indent: int | None) -> None:
    (tmp_path / name).write_text(json.dumps(value, indent=indent))
    assert pairs(tmp_path / name) == PAIRS


def test_rows_of_a_json_list_have_line_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(ROWS, indent=1))
    assert list(read_upload(path).locations.values()) == ["line 2", "line 6"]


def test_json_lines_with_the_file_ending_json_are_read(tmp_path: Path) -> None:
    assert pairs(jsonl(tmp_path / "a.json", *ROWS)) == PAIRS


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_csv_with_line_ends_inside_quotes_is_read(tmp_path: Path, delimiter: str, bom: str, end: str) -> None:
    path = write_csv(tmp_path / "a.csv", delimiter, bom, end)
    assert pairs(path) == PAIRS
    assert list(read_upload(path).locations.values()) == ["line 2", "line 3"]


def test_csv_lines_are_counted_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('intent,snippet\na,"x\n\ny"\n\nb,z\n')
    upload = read_upload(path)
    assert [example.code for example in upload.examples] == ["x\n\ny", "z"]
    assert list(upload.locations.values()) == ["line 2", "line 6"]


def test_parquet_is_read(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([row | {"embedding": [0.5] * 9} for row in ROWS]), tmp_path / "a.parquet")
    upload = read_upload(tmp_path / "a.parquet")
    assert [(example.intent, example.code) for example in upload.examples] == PAIRS
    assert list(upload.locations.values()) == ["row 1", "row 2"]
    assert upload.columns == ("intent", "snippet", "embedding")


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    ("row", "mapping"),
    [
        ({"instruction": "do it", "output": "it()"}, "instruction -> output"),
        ({"Instruction": "do it", " OUTPUT ": "it()", "input": ""}, "Instruction + input ->  OUTPUT "),
        ({"instruction": "do it", "response": "it()", "context": None}, "instruction + context -> response"),
        ({"prompt": "do it", "completion": "it()", "text": "do it it()"}, "prompt -> completion"),
        ({"prompt": [user("do it")], "completion": [assistant("it()")]}, "prompt -> completion"),
        ({"messages": [user("do it"), assistant("it()")]}, "messages (user to assistant)"),
        ({"messages": [user("do it"), assistant("it()")], "prompt": "do it"}, "messages (user to assistant)"),
        (
            {"conversations": [{"from": "human", "value": "do it"}, {"from": "gpt", "value": "it()"}]},
            "conversations (user to assistant)",
        ),
        ({"intent": "do it", "snippet": "it()", "question_id": 3}, "intent -> snippet"),
        ({"nl": "do it", "cmd": "it()"}, "nl -> cmd"),
        ({"text": "do it", "code": "it()"}, "text -> code"),
        ({"question": "do it", "answer": "it()"}, "question -> answer"),
    ],
)
def test_usual_columns_are_recognised(tmp_path: Path, row: dict[str, Any], mapping: str) -> None:
    path = jsonl(tmp_path / "a.jsonl", row)
    assert pairs(path) == [("do it", "it()")]
    assert str(read_upload(path).mapping) == mapping


def test_input_is_appended_to_its_instruction(tmp_path: Path) -> None:
    rows = [{"instruction": "sum up", "input": text, "output": "s()"} for text in ("[1, 2]\n", "  ", "<noinput>")]
    # The columns are detected in the first rows; the input can be in a later row.
    path = jsonl(tmp_path / "a.jsonl", {"instruction": "sum up", "output": "s()"}, *rows)
    joined = [intent for intent, _ in pairs(path)]
    assert joined == ["sum up", "sum up\n[1, 2]", "sum up", "sum up"]


def test_chats_in_parquet_and_content_in_parts_are_read(tmp_path: Path) -> None:
    chat = {"messages": [{"role": "system", "content": "Be brief."}, user("do it"), assistant("it()")]}
    pq.write_table(pa.Table.from_pylist([chat]), tmp_path / "a.parquet")
    upload = read_upload(tmp_path / "a.parquet")
    assert (upload.examples[0].intent, upload.examples[0].code) == ("do it", "it()")
    assert upload.changes == {SYSTEM_REMOVED: 1}
    parts = {"messages": [{"role": "user", "content": [{"type": "text", "text": "do it"}]}, assistant("it()")]}
    assert pairs(jsonl(tmp_path / "b.jsonl", parts)) == [("do it", "it()")]


def test_mapping_overrides_the_detection(tmp_path: Path) -> None:
    row = {"intent": "do it", "rewritten_intent": "do `it`", "snippet": "it()", "tested": "it(1)"}
    path = jsonl(tmp_path / "a.jsonl", row)
    assert pairs(path, intent_column="rewritten_intent") == [("do `it`", "it()")]
    assert pairs(path, code_column="tested") == [("do it", "it(1)")]
    assert pairs(path, intent_column="rewritten_intent", code_column="tested") == [("do `it`", "it(1)")]


def test_chat_column_of_another_name_is_mapped_as_both_columns(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"dialogue": [user("do it"), assistant("it()")]})
    assert pairs(path, intent_column="dialogue", code_column="dialogue") == [("do it", "it()")]


def test_unknown_columns_are_listed_with_the_options_to_map_them(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"ask": "do it", "reply": "it()"})
    with pytest.raises(DataError, match=messages.COLUMNS_UNKNOWN):
        read_upload(path)
    with pytest.raises(DataError, match=messages.CODE_COLUMN_UNKNOWN):
        read_upload(path, intent_column="ask")
    with pytest.raises(DataError, match=messages.UNKNOWN_COLUMN_SUGGESTS_REPLY):
        read_upload(path, intent_column="ask", code_column="replies")
    assert pairs(path, intent_column="ask", code_column="reply") == [("do it", "it()")]


@pytest.mark.parametrize(
    ("code", "expected", "removed"),
    [
        ("```python\nx = 1\n```", "x = 1", 1),
        ("\n```\nx = 1\ny = 2\n```\n", "x = 1\ny = 2", 1),
        ("Here it is:\n```python\nx = 1\n```", "Here it is:\n```python\nx = 1\n```", 0),
        ("```\nx\n```\nor\n```\ny\n```", "```\nx\n```\nor\n```\ny\n```", 0),
    ],
)
def test_fence_around_the_code_is_removed_and_counted(tmp_path: Path, code: str, expected: str, removed: int) -> None:
    upload = read_upload(jsonl(tmp_path / "a.jsonl", {"intent": "a", "code": code}))
    assert upload.examples[0].code == expected
    assert upload.changes.get(FENCE_REMOVED, 0) == removed


def test_only_line_ends_and_surrounding_spaces_are_changed(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"intent": " a \r\n b\n", "code": "\n  \n    if x:\r\n\n        y  \n\n"})
    assert pairs(path) == [("a \n b", "    if x:\n\n        y")]


def test_ids_of_rows_are_used_and_made_unique(tmp_path: Path) -> None:
    rows = [{"intent": "a", "code": "b", "id": id} for id in ("q-1", 7, "q-1", "x" * 300, None, "a-00005")]
    ids = [example.id for example in read_upload(jsonl(tmp_path / "a.jsonl", *rows)).examples]
    assert ids[:3] == ["q-1", "7", "a-00003"]
    assert len(set(ids)) == 6
    assert max(map(len, ids)) < 20
