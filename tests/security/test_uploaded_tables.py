"""Uploaded tables: what they unpack to, how wide they are, and what is sent and remembered of them is bounded first."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest

from errors import DataError
from tasks.datasets import tables
from tasks.datasets.upload import read_upload
from tests import messages
from tests.conftest import ROOT
from ui.train import preview as client_module
from ui.train.preview import PreviewClient
from ui.train.preview_process import preview

MANY = 1_000  # columns


def _parquet(columns: dict[str, Any], **options: Any) -> Callable[[Path], None]:
    return lambda path: pq.write_table(pa.table(columns), path, **options)


def _text(content: str) -> Callable[[Path], None]:
    return lambda path: _write(path, content)


def _write(path: Path, content: str) -> None:
    path.write_text(content, encoding="utf-8")


WIDE_FILES = {
    "header.csv": _text(",".join(f"c{at}" for at in range(MANY)) + "\n1,2\n"),
    "semicolons.csv": _text(";".join(f"c{at}" for at in range(MANY)) + "\n1;2\n"),
    "header.tsv": _text("\t".join(f"c{at}" for at in range(MANY)) + "\n1\t2\n"),
    "long header.csv": _text("c" * 200_000 + ",intent\n1,2\n"),
    "row.jsonl": _text(json.dumps({f"c{at}": 1 for at in range(MANY)})),
    "rows.jsonl": _text("".join(json.dumps({f"c{at}": 1}) + "\n" for at in range(MANY))),
    "list.json": _text(json.dumps([{f"c{at}": 1 for at in range(MANY)}])),
    "data.json": _text(json.dumps({"data": [{f"c{at}": 1 for at in range(MANY)}]})),
    "wide.parquet": _parquet({f"c{at}": [1] for at in range(MANY)}),
    "name.jsonl": _text(json.dumps({"intent" * 10_000: 1, "code": 2})),
    "name.csv": _text("intent" * 100 + ",code\n1,2\n"),
    "name.parquet": _parquet({"intent" * 100: [1], "code": [2]}),
}


@pytest.mark.parametrize("name", WIDE_FILES)
def test_wide_tables_are_one_sentence(name: str, tmp_path: Path) -> None:
    WIDE_FILES[name](tmp_path / name)
    with pytest.raises(DataError, match=messages.TOO_WIDE):
        read_upload(tmp_path / name)
    (event,) = preview({"dataset_name": str(tmp_path / name), "adapter_name": "x"}, lambda line: None)
    assert len(json.dumps(event)) < 500


CELLS = ["a" * 1_000_000] * 4
LARGE = pa.array(CELLS, pa.large_string())
UNPACKING_FILES = {
    "four columns": {"intent": LARGE, "code": LARGE, "id": LARGE, "question_id": LARGE},
    "plain texts": {"intent": ["a"] * 4, "code": CELLS},
    "bytes": {"intent": ["a"] * 4, "code": [cell.encode() for cell in CELLS]},
    "lists": {"messages": pa.array([[cell] for cell in CELLS])},
    "a name with a dot": {"intent": ["a"] * 4, "code": ["b"] * 4, "id": LARGE},
}


@pytest.mark.parametrize("kind", UNPACKING_FILES)
@pytest.mark.parametrize("dictionary", [False, True])
def test_parquet_is_refused_by_its_metadata(
    kind: str, dictionary: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cells.parquet"
    _parquet(UNPACKING_FILES[kind], compression="zstd", use_dictionary=dictionary)(path)
    assert path.stat().st_size < 20_000
    monkeypatch.setattr(tables, "MAX_UNPACKED_BYTES", 900_000)
    monkeypatch.setattr(tables, "_open_dictionary_encoded", lambda *_: pytest.fail("rows were unpacked"))
    with pytest.raises(DataError, match=messages.UNPACKS_TO_TOO_MUCH):
        read_upload(path, *(["messages", "messages"] if kind == "lists" else ["intent", "code"]))


def test_repeated_texts_of_a_dictionary_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 256, pa.int32()), pa.array(["b" * 90_000], pa.large_string()))
    _parquet({"intent": ["a"] * 256, "code": texts})(tmp_path / "a.parquet")
    monkeypatch.setattr(tables, "MAX_UNPACKED_BYTES", 9_000_000)
    with pytest.raises(DataError, match=messages.UNPACKS_TO_TOO_MUCH):
        read_upload(tmp_path / "a.parquet")


def test_memory_of_the_process_is_limited(tmp_path: Path) -> None:
    _write(tmp_path / "a.json", '[{"intent": "a", "code": [' + "{}," * 4_000_000 + "{}]}]")
    program = (
        "from ui.train import preview_process as p\n"
        "p.MAX_MEMORY_BYTES = 250 << 20\n"
        "p.main()\n"
    )  # fmt: skip
    request = json.dumps({"dataset_name": str(tmp_path / "a.json"), "adapter_name": "x"})
    ran = subprocess.run(
        [sys.executable, "-c", program], input=request + "\n", capture_output=True, text=True, cwd=ROOT, check=False
    )
    events = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [event["error"] for event in events if "error" in event] == [messages.ROWS_TAKE_TOO_MUCH_MEMORY]
    assert events[-1] == {"done": True}, "the process answers the next request"


def test_what_is_remembered_is_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = PreviewClient(tmp_path)
    monkeypatch.setattr(client_module, "_MAX_CACHED_CHARS", 10_000)

    def stream(_request: Any, _line: str, _ticket: Any) -> Iterator[dict[str, Any]]:
        yield {"facts": "x" * 4_000}

    monkeypatch.setattr(client, "_stream_events", stream)
    for number in range(10):
        list(client.preview(client.new_request("s"), {"number": number}))
    assert len(json.dumps(list(client._cache.values()))) < 12_000
    assert len(client._cache) == 2
