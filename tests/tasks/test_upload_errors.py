"""Uploaded files with bad rows, which are skipped with an error, and files that cannot be read at all."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest

from errors import DataError
from tasks.datasets import tables
from tasks.datasets.upload import UploadResult, read_upload
from tests import messages

GOOD = b'{"intent": "a", "code": "b"}\n'


def read(path: Path, content: bytes | str) -> UploadResult:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_upload(path)


@pytest.mark.parametrize(
    ("line", "message", "column"),
    [
        (b'{"intent": "a"}', "line 2: column 'code' is missing; the row has 'intent'.", "code"),
        (b'{"intent": "a", "code": " "}', "line 2: column 'code' is empty.", "code"),
        (b'{"intent": null, "code": "b"}', "line 2: column 'intent' is empty.", "intent"),
        (b'{"intent": 5, "code": "b"}', "line 2: column 'intent' must be text, it is a number.", "intent"),
        (b'{"intent": "a", "code": {"x": 1}}', "line 2: column 'code' must be text, it is an object.", "code"),
        (b'{"intent": "a", "code": "b\\u0000"}', "line 2: column 'code' has a NUL character in it.", "code"),
        (b'{"intent": "a\\ud83d", "code": "b"}', "line 2: column 'intent' has half a character", "intent"),
        (b'["a", "b"]', "line 2: must be a JSON object with named columns, it is a list.", ""),
        (b'{"intent": "a", "code": "b"', "line 2: not JSON (Expecting ',' delimiter at character 28).", ""),
        (b'{"intent": "\xe4", "code": "b"}', "line 2: not UTF-8 (byte 13 of the line).", ""),
        (b"[" * 100_000, "line 2: not JSON that Python can read (maximum recursion depth", ""),
        (b'{"intent": ' + b"9" * 5000 + b"}", "line 2: not JSON that Python can read (Exceeds the limit", ""),
        (
            b'{"intent": "a", "code": "' + b"x" * 100_001 + b'"}',
            "line 2: column 'code' has 100,001 characters and 100,000 are read at most.",
            "code",
        ),
    ],
)
def test_invalid_line_is_an_error_and_other_lines_are_read(
    tmp_path: Path, line: bytes, message: str, column: str
) -> None:
    upload = read(tmp_path / "a.jsonl", GOOD + line + b"\n" + GOOD)
    assert len(upload.examples) == 2
    assert upload.rows == 3
    (error,) = upload.errors
    assert error.message.startswith(message)
    assert (error.line, error.column) == (2, column)
    assert error.empty == ("is empty" in message)


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")], "has 2 user turns"),
        ([("assistant", "b")], "has no text of the user"),
        ([("user", "a")], "has no text of the assistant"),
        ([("user", "a"), ("tool", "b")], "has a message of role 'tool'"),
        ("user: a", "must be a list of messages, it is text"),
        ([("user", 3), ("assistant", "b")], "whose content is a number"),
    ],
)
def test_chat_that_is_not_one_question_and_one_answer_is_an_error(tmp_path: Path, turns: object, message: str) -> None:
    def row(chat: object) -> str:
        value = chat if isinstance(chat, str) else [{"role": role, "content": text} for role, text in chat]  # type: ignore[attr-defined]
        return json.dumps({"messages": value})

    upload = read(tmp_path / "a.jsonl", row([("user", "a"), ("assistant", "b")]) + "\n" + row(turns))
    assert len(upload.examples) == 1
    assert upload.errors[0].message.startswith("line 2: column 'messages' ")
    assert message in upload.errors[0].message


@pytest.mark.parametrize(
    ("ending", "content", "message"),
    [
        ("jsonl", b"", "is empty"),
        ("jsonl", b"\n \n", "has no row with named columns"),
        ("jsonl", b"hello\nyou\n", "has no row with named columns: line 1: not JSON"),
        ("jsonl", b'{"intent": "a", "code": ""}\n', "has 1 rows and none can be used: line 1: column 'code' is empty"),
        ("json", b'[{"intent": "a", "code": "b"},\n {"intent"', r"not JSON \(Expecting ':' delimiter at line 2"),
        ("json", b'[{"intent": "a", "code": "b"}] [1]', "Extra data after the list"),
        ("json", b'{\n"train_set": 1, "meta": {}}', r"holds one object \('train_set', 'meta'\)"),
        ("json", b'{"intent": "a"', r"not JSON"),
        ("json", b"[" * 100_000, "not JSON that Python can read"),
        ("json", b'{"data": ' * 100_000, "not JSON"),
        ("json", b'[\n{"intent": "\xe4"}]', r"line 2: not UTF-8 \(byte 15 of the file\)"),
        ("json", b"{\n}", "not JSON"),
        ("json", b'"text"', "has no row"),
        ("csv", b"a,b\n1\x002,3\n" + bytes(range(256)), "not a text file, it has NUL bytes"),
        ("csv", "intent,code\na,b\n".encode("utf-16"), "is UTF-16: save it as UTF-8"),
        ("csv", b"PK\x03\x04\x14\x00\x06\x00", "not a text file"),
        ("csv", b"\n\n", "is empty"),
        ("csv", b"intent,code\n", "has 0 rows"),
        ("csv", b"x" * 200_000, "line 1: this header has 200,000 characters: name 500 columns at most"),
        ("csv", b"code,intent,code\na,b,c\n", "line 1: two columns are named 'code'"),
        ("csv", b"add 1 to x,x += 1\nb,c\n", "has the columns 'add 1 to x', 'x \\+= 1'"),
        ("parquet", b"PAR1 is not all that it takes PAR1", "cannot be read as Parquet"),
        ("parquet", b"PAR1", "cannot be read as Parquet"),
        ("txt", b"a", "is of no known format: give a file that ends in .jsonl, .json, .csv, .tsv, .parquet"),
    ],
)
def test_file_that_cannot_be_read_is_an_error(tmp_path: Path, ending: str, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path / f"a.{ending}", content)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_column_names_are_shortened_and_printable(tmp_path: Path) -> None:
    row = {"x\n\x1b" * 60: "a"} | {f"c{number}": "b" for number in range(30)}
    with pytest.raises(DataError, match=messages.MANY_COLUMNS_UNKNOWN) as caught:
        read(tmp_path / "a.jsonl", json.dumps(row))
    assert str(caught.value).isprintable()


def test_pickle_is_refused_without_reading_it(tmp_path: Path) -> None:
    class Exploit:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "executed",))  # type: ignore[return-value]

    for name in ("a.pt", "a.pkl", "a.bin"):
        with pytest.raises(DataError, match=messages.FORMAT_UNKNOWN):
            read(tmp_path / name, pickle.dumps(Exploit()))
    for name in ("a.json", "a.csv", "a.parquet"):
        with pytest.raises(DataError):
            read(tmp_path / name, pickle.dumps(Exploit()))
    assert not (tmp_path / "executed").exists()


def test_missing_file_and_folder_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=messages.NO_FILE):
        read_upload(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").mkdir()
    with pytest.raises(DataError, match=messages.PATH_IS_FOLDER_OF_FILES):
        read_upload(tmp_path / "b.jsonl")


def test_too_large_files_and_too_many_rows_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_ROWS", 3)
    for ending, content in (("jsonl", GOOD * 4), ("csv", b"intent,code\n" + b"a,b\n" * 4)):
        with pytest.raises(DataError, match=messages.TOO_MANY_ROWS):
            read(tmp_path / f"a.{ending}", content)
    monkeypatch.setattr(tables, "MAX_BYTES", 100)
    with pytest.raises(DataError, match=messages.FILE_TOO_LARGE):
        read(tmp_path / "a.jsonl", GOOD * 4)


def codes(upload: UploadResult) -> list[str]:
    return [example.code for example in upload.examples]


def test_csv_rows_with_too_many_or_too_few_cells_are_errors(tmp_path: Path) -> None:
    upload = read(tmp_path / "a.csv", "intent,code\na,f(1, 2)\nb\nc,d,,\ne,f\n")
    assert codes(upload) == ["d", "f"]
    assert [error.message for error in upload.errors] == [
        "line 2: has 3 cells and the header 2: put quotes around a cell that has commas in it.",
        "line 3: column 'code' is missing; the row has 'intent'.",
    ]


def test_csv_bytes_that_are_not_utf_8_affect_only_their_row(tmp_path: Path) -> None:
    upload = read(tmp_path / "a.csv", b"intent,code\na,b\nf\xfcr,c\nd,e\n")
    assert codes(upload) == ["b", "e"]
    assert upload.errors[0].message == "line 3: column 'intent' is not UTF-8: save the file as UTF-8."


def test_broken_quote_affects_only_its_row(tmp_path: Path) -> None:
    upload = read(tmp_path / "a.csv", 'intent,code\na,b\nc,"print("d")"\ne,"f(1, ""2"")"\ng,h\n')
    assert codes(upload) == ["b", 'f(1, "2")', "h"]
    assert [error.message for error in upload.errors] == [
        "line 3: text follows a quote that closes a cell: double the quotes inside a cell."
    ]


def test_quote_that_never_closes_affects_only_its_row(tmp_path: Path) -> None:
    upload = read(tmp_path / "a.csv", 'intent,code\na,b\nc,"print(d)\n' + "e,f\n" * 3000)
    assert codes(upload) == ["b"] + ["f"] * 3000
    assert [error.line for error in upload.errors] == [3]
    assert "a quote opens here and never closes" in upload.errors[0].message


def test_parts_of_a_broken_cell_are_not_read_as_rows(tmp_path: Path) -> None:
    """`foo(a, b)` has the form of a row of two cells; the quote after it shows that it is code."""
    broken = 'c,"print("hello")\nfoo(a, b)\nbar"\n'
    upload = read(tmp_path / "a.csv", "intent,code\na,b\n" + broken + "e,f\ng,h\n")
    assert codes(upload) == ["b", "f", "h"]
    assert [error.line for error in upload.errors] == [3, 4, 5]
    assert upload.errors[2].message == "line 5: is part of the broken quote in line 3, or has its own."


def test_file_of_broken_quotes_is_rejected_quickly(tmp_path: Path) -> None:
    upload = read(tmp_path / "a.csv", "intent,code\na,b\n" + 'c,"d"e\n' * 500)
    assert codes(upload) == ["b"]
    assert len(upload.errors) == 102
    assert upload.errors[-1].message.endswith("the rest of the file is not read.")


def test_too_long_cell_is_an_error(tmp_path: Path) -> None:
    upload = read(tmp_path / "a.csv", "intent,code\na,b\nc," + "x" * 200_000 + "\nd,e\n")
    assert codes(upload) == ["b", "e"]
    assert [error.line for error in upload.errors] == [3]


def test_parquet_values_of_other_types_and_nulls_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = {"intent": pa.array(["a", None, "c"]), "code": pa.array([b"x", b"y", b"z"], pa.binary())}
    pq.write_table(pa.table(table), path)
    with pytest.raises(DataError, match=messages.NO_USABLE_ROW):
        read_upload(path)
    pq.write_table(pa.table(table | {"code": pa.array(["x", "y", "z"]).dictionary_encode()}), path)
    upload = read_upload(path)
    assert codes(upload) == ["x", "z"]
    assert upload.errors[0].message == "row 2: column 'intent' is empty."


@pytest.mark.parametrize("nested", [False, True])
def test_parquet_that_unpacks_to_too_much_data_is_refused(tmp_path: Path, nested: bool) -> None:
    """In this small file a page refers 5,000 times to one long text: 5 GB unpacked."""
    count, path = 5_000, tmp_path / "a.parquet"
    text = pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array(["x" * 1_000_000]))
    role = pa.array(["user"] * count).dictionary_encode()
    chats = pa.ListArray.from_arrays(
        pa.array(range(count + 1), pa.int32()), pa.StructArray.from_arrays([role, text], ["role", "content"])
    )
    columns = {"messages": chats} if nested else {"intent": role, "code": text}
    pq.write_table(pa.table(columns), path, store_schema=False)
    assert path.stat().st_size < 200_000
    with pytest.raises(DataError, match=messages.PARQUET_UNPACKS_TO_TOO_MUCH):
        read_upload(path)


def test_truncated_parquet_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"intent": ["a"] * 2000, "code": [f"f({i})" for i in range(2000)]}), path)
    content = bytearray(path.read_bytes())
    content[20:2000] = b"\xff" * 1980  # the footer is intact, the pages are not
    with pytest.raises(DataError, match=messages.FILE_NOT_PARQUET):
        read(path, bytes(content))
