"""Data set files on the Hub: built-in data sets, other repositories with the real client, and an unreachable Hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
from huggingface_hub import constants

from errors import DataError
from tasks.datasets import hub as hub_files
from tasks.datasets.hub import fetch_tables, is_hub_id, select_files
from tasks.datasets.registry import load_problems
from tasks.problem import Problem
from tests import messages
from tests.tasks.dataset_hub import DatasetHub, dataset_hub
from tests.tasks.sets import MBPP_ROW, PAIR, ROOT, FakeHub, write_rows


@pytest.mark.parametrize(
    ("name", "split", "source"),
    [
        ("conala", "train", ("json", "neulab/docprompting-conala", "conala-train.jsonl")),
        ("conala", "validation", ("json", "neulab/docprompting-conala", "conala-dev.jsonl")),
        ("codealpacapy", "validation", ("parquet", "antolin/codealpaca-filtered", "default/valid/0000.parquet")),
    ],
)
def test_pairs_are_read_from_the_hub(
    monkeypatch: pytest.MonkeyPatch, name: str, split: str, source: tuple[str, str, str]
) -> None:
    hub = FakeHub(monkeypatch, [{"nl": "a", "cmd": "b", "question_id": "5-1", "oracle_man": ["x"]}])
    assert load_problems(name, split) == [Problem("5-1", "a", "b")]
    ((format, address),) = hub.requests
    assert format == source[0]
    assert address.startswith(f"hf://datasets/{source[1]}@")
    assert address.endswith(f"/{source[2]}")
    assert len(address.split("@")[1].split("/")[0]) == 40  # a pinned revision


def test_mbpp_is_read_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub(monkeypatch, [MBPP_ROW])
    (problem,) = load_problems("mbpp", "train")
    assert (problem.id, problem.entry_point) == ("mbpp-602", "double")
    assert hub.requests[0][1].endswith("/full/train-00000-of-00001.parquet")


def test_invalid_row_of_the_hub_is_reported_with_its_location(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeHub(monkeypatch, [{"nl": "a", "cmd": "b"}, {"nl": None, "cmd": "b"}])
    with pytest.raises(DataError, match=messages.CONALA_ROW_NOT_TEXT):
        load_problems("conala", "test")


def test_cached_file_is_read_without_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    cached = write_rows(tmp_path / "conala-test.jsonl", PAIR)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: str(cached))
    load = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: load(*a, **k, cache_dir=str(tmp_path / "cache")))
    assert load_problems("conala", "test") == [Problem("q-1", PAIR["nl"], PAIR["cmd"])]


@pytest.mark.parametrize("environment", [{"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}])
def test_unreachable_hub_is_reported_quickly_without_other_output(tmp_path: Path, environment: dict[str, str]) -> None:
    script = """
import sys, time
from errors import DataError
from tasks.datasets.registry import DATASETS, load_problems
assert "datasets" not in sys.modules and "torch" not in sys.modules and "pandas" not in sys.modules
for name in DATASETS[1:]:
    started_at = time.monotonic()
    try:
        load_problems(name, "test")
    except DataError as error:
        print(f"{time.monotonic() - started_at:.1f} {error}")
assert "torch" not in sys.modules
"""
    variables = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    started_at = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**variables, "HF_HOME": str(tmp_path), **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert (
        time.monotonic() - started_at < 60
    )  # most of it is the import of `datasets`; with retries it would be 23 s per name
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert len(lines) == 8
    titles = ("CoNaLa", "CodeAlpacaPy", "MBPP", "APPS", "HumanEval", "HumanEval+", "MBPP+", "LeetCodeDataset")
    for title, line in zip(titles, lines, strict=True):
        seconds, _, message = line.partition(" ")
        assert float(seconds) < 15
        assert message.startswith(f"{title} (")
        assert "could not be loaded from the Hugging Face Hub" in message
        assert "--data-dir FOLDER (JSONL)" in message


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


def test_training_and_validation_files_are_downloaded_once(hub: DatasetHub) -> None:
    tables = fetch_tables("someone/rows")
    assert [path.name for path in tables.train] == ["train.jsonl"]
    assert [path.name for path in tables.validation] == ["dev.jsonl"]
    assert tables.train[0].read_text() == ROW
    assert (tables.revision, tables.licence) == (hub.commit("someone/rows"), "cc-by-4.0")
    downloads = [request for request in hub.requests if request.startswith("GET /datasets/")]
    assert not [request for request in downloads if request.endswith(("test.jsonl", "script.py"))]
    assert fetch_tables(f"someone/rows@{tables.revision}") == tables
    assert [request for request in hub.requests if request.startswith("GET /datasets/")] == downloads


def test_cached_data_set_is_read_without_the_hub(hub: DatasetHub, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = f"someone/rows@{hub.commit('someone/rows')}"
    tables = fetch_tables(pinned)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert fetch_tables(pinned) == tables
    with pytest.raises(DataError, match=messages.DATA_SET_UNREACHABLE):
        fetch_tables("someone/else")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("someone/else", "There is no data set 'someone/else' on the Hub that you may read"),
        ("someone/rows@v9", "has no revision 'v9' on the Hub: check the part after '@'"),
        ("someone/rows:other", r"has no \.jsonl, \.json, \.csv, \.tsv, \.parquet file under 'other'"),
    ],
)
def test_unknown_name_revision_or_path_is_an_error(hub: DatasetHub, spec: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        fetch_tables(spec)


def test_gated_data_set_is_an_error(hub: DatasetHub) -> None:
    hub.gated.add("someone/rows")
    with pytest.raises(DataError, match=messages.DATA_SET_GATED):
        fetch_tables("someone/rows")


def test_data_set_that_is_too_large_is_not_downloaded(hub: DatasetHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_files, "MAX_BYTES", 10)
    with pytest.raises(DataError, match=messages.DATA_SET_TOO_LARGE):
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
def test_ambiguous_choice_of_files_is_an_error(files: list[str]) -> None:
    with pytest.raises(DataError, match=messages.SEVERAL_FILES.format(file=files[0])):
        select_files("someone/rows", files)


def test_hub_ids_are_recognised() -> None:
    assert is_hub_id("user/name@v1:data/a.csv")
    assert not any(map(is_hub_id, ("name", "/user/name", "user/name/more", "user/na me", "../user/name")))
