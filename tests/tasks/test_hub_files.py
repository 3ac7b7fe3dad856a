"""Data sets of the Hub that nobody prepared for us: their files, revision and licence, through the real client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from errors import DataError
from tasks.datasets import hub as hub_files
from tasks.datasets.hub import fetch_tables, is_hub_id, select_files
from tests.tasks.dataset_hub import DatasetHub, dataset_hub

ROW = json.dumps({"intent": "a", "code": "b"}) + "\n"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DatasetHub]:
    folder = tmp_path / "repository"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "train.jsonl").write_text(ROW)
    (folder / "data" / "dev.jsonl").write_text(ROW)
    (folder / "data" / "test.jsonl").write_text(ROW)
    (folder / "script.py").write_text("raise SystemExit('a script of a data set was run')")
    (folder / "README.md").write_text("---\npretty_name: x\nlicense:\n- cc-by-4.0\n---\n# Rows\nlicense: mit\n")
    with dataset_hub(tmp_path / "cache", monkeypatch) as standin:
        standin.repositories["someone/rows"] = folder
        yield standin


def test_the_rows_that_train_and_those_that_validate_are_downloaded_once(hub: DatasetHub) -> None:
    tables = fetch_tables("someone/rows")
    assert [path.name for path in tables.train] == ["train.jsonl"]
    assert [path.name for path in tables.validation] == ["dev.jsonl"]
    assert tables.train[0].read_text() == ROW
    assert (tables.revision, tables.licence) == (hub.commit("someone/rows"), "cc-by-4.0")
    asked = [request for request in hub.requests if request.startswith("GET /datasets/")]
    assert not [request for request in asked if request.endswith(("test.jsonl", "script.py"))]
    assert fetch_tables(f"someone/rows@{tables.revision}") == tables
    assert [request for request in hub.requests if request.startswith("GET /datasets/")] == asked


def test_a_cached_data_set_needs_no_hub(hub: DatasetHub, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = f"someone/rows@{hub.commit('someone/rows')}"
    tables = fetch_tables(pinned)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert fetch_tables(pinned) == tables
    with pytest.raises(DataError, match=r"could not be reached for the data set 'someone/else' .* or give a file\.$"):
        fetch_tables("someone/else")


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("someone/else", "There is no data set 'someone/else' on the Hub that you may read"),
        ("someone/rows@v9", "has no revision 'v9': check the part after '@'"),
        ("someone/rows:other", r"has no \.jsonl, \.json, \.csv, \.tsv, \.parquet file under 'other'"),
    ],
)
def test_what_the_hub_does_not_have(hub: DatasetHub, spec: str, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        fetch_tables(spec)


def test_a_gated_data_set(hub: DatasetHub) -> None:
    hub.gated.add("someone/rows")
    with pytest.raises(DataError, match="is gated: accept its terms on its Hub page, then run `hf auth login`"):
        fetch_tables("someone/rows")


def test_a_data_set_that_is_too_large_is_not_downloaded(hub: DatasetHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_files, "MAX_BYTES", 10)
    with pytest.raises(DataError, match=r"name one of them, as someone/rows:data/train\.jsonl"):
        fetch_tables("someone/rows")
    assert not [request for request in hub.requests if "/resolve/" in request]


@pytest.mark.parametrize(
    ("files", "within", "train", "validation"),
    [
        (["alpaca_data.json", "README.md", "dataset_infos.json"], "", ["alpaca_data.json"], []),
        (["a-train.jsonl", "a-dev.jsonl", "a-test.jsonl"], "", ["a-train.jsonl"], ["a-dev.jsonl"]),
        (
            ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000.parquet"],
            "",
            ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"],
            [],
        ),
        (
            ["default/train/0000.parquet", "default/valid/0000.parquet"],
            "",
            ["default/train/0000.parquet"],
            ["default/valid/0000.parquet"],
        ),
        (["full/train.csv", "full/val.csv", "small/train.csv"], "full", ["full/train.csv"], ["full/val.csv"]),
        (["full/train.csv", "full/val.csv"], "full/val.csv", ["full/val.csv"], []),
        (["rows.csv", "test.csv"], "", ["rows.csv"], []),
    ],
)
def test_files_are_chosen_by_their_names(
    files: list[str], within: str, train: list[str], validation: list[str]
) -> None:
    assert select_files("someone/rows", files, within) == (train, validation)


@pytest.mark.parametrize("files", [["full/train.csv", "small/train.csv"], ["a.json", "b.json"], ["test.csv"]])
def test_a_choice_that_is_not_clear_is_left_to_the_person(files: list[str]) -> None:
    with pytest.raises(DataError, match=rf"several files .* name one, as someone/rows:{files[0]}\.$"):
        select_files("someone/rows", files)


def test_what_can_be_a_name_on_the_hub() -> None:
    assert is_hub_id("user/name@v1:data/a.csv")
    assert not any(map(is_hub_id, ("name", "/user/name", "user/name/more", "user/na me", "../user/name")))
