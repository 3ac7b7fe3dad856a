"""Data sets of one's own: added from a file, split, kept, and used by their name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from errors import DataError, UnknownNameError
from evaluate.__main__ import main as evaluate_main
from tasks.__main__ import main
from tasks.datasets import own
from tasks.datasets.hub import HubTables
from tasks.datasets.own import (
    OwnDataset,
    RowOptions,
    add_own_dataset,
    datasets_dir,
    list_own_datasets,
    read_own_dataset,
    read_own_rows,
    remove_own_dataset,
    suggest_dataset_name,
)
from tasks.datasets.registry import DATASETS, dataset_names, dataset_version, load_examples, load_problems
from tasks.methods import ExamplePools, IndexRetriever, parse_method
from tasks.problem import Problem, ScriptTest
from train.data import load_training_data
from train.settings import make_config
from ui.access.guard import load_split_problems
from ui.compare.comparison import make_comparison

ROWS = [{"intent": f"return the number {n}", "code": f"def f():\n    return {n}", "tests": f"assert f() == {n}"}
        for n in range(40)]  # fmt: skip


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPT_OR_TUNE_HOME", str(tmp_path / "home"))


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def add(tmp_path: Path, rows: list[dict[str, Any]], name: str = "mine", **options: Any) -> OwnDataset:
    return add_own_dataset(write(tmp_path / "rows.jsonl", rows), name, RowOptions(**options), reserved=DATASETS)[0]


def test_rows_are_stored_with_their_splits_and_tests(tmp_path: Path) -> None:
    info = add(tmp_path, ROWS)
    assert (dict(info.rows), info.with_tests, info.left_out) == ({"train": 28, "validation": 4, "test": 8}, 40, 0)
    (tmp_path / "rows.jsonl").unlink()
    assert read_own_dataset("mine") == info
    assert list_own_datasets() == [info]
    assert "mine" in dataset_names()
    problems = {split: load_problems("mine", split) for split in ("train", "validation", "test")}
    assert {split: len(found) for split, found in problems.items()} == dict(info.rows)
    test = problems["test"][0]
    assert isinstance(test.tests[0], ScriptTest)
    assert test.tests[0].code == f"assert f() == {test.intent.rpartition(' ')[2]}"
    assert len(load_examples("mine")) == 28
    intents = [{problem.intent for problem in found} for found in problems.values()]
    assert not intents[0] & intents[2]
    remove_own_dataset("mine")
    assert list_own_datasets() == []


def test_files_are_private(tmp_path: Path) -> None:
    add(tmp_path, ROWS)
    assert datasets_dir().stat().st_mode & 0o077 == 0
    assert (datasets_dir() / "mine" / "train.jsonl").stat().st_mode & 0o077 == 0


def test_rows_of_a_group_stay_together(tmp_path: Path) -> None:
    rows = [{**row, "team": f"team {index // 4}"} for index, row in enumerate(ROWS)]
    info = add(tmp_path, rows, group_column="team")
    assert info.group == "team"
    sides = [{int(p.intent.rpartition(" ")[2]) // 4 for p in load_problems("mine", s)} for s in ("train", "test")]
    assert not sides[0] & sides[1]


def test_rows_with_tests_that_cannot_be_read_are_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, Any]] = [
        *ROWS,
        {**ROWS[0], "intent": "other", "tests": "x = 1"},
        {**ROWS[0], "intent": "more", "tests": 7},
    ]
    assert main(["add", str(write(tmp_path / "rows.jsonl", rows)), "--name", "mine"]) == 0
    printed = capsys.readouterr().out
    assert "2 rows could not be read" in printed
    assert "line 41: column 'tests'" in printed
    assert "line 42: column 'tests': tests must be a text or a list of texts." in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--name", "conala"], "everybody has"),
        (["--name", "../x"], "cannot name"),
        (["--name", "Mine"], "cannot name"),
        (["--name", "mine", "--test-share", "0"], "above 0"),
        (["--name", "mine", "--test-share", "0.9"], "a fifth"),
        (["--name", "mine", "--group-column", "nope"], "no column 'nope'"),
        (["--name", "mine", "--tests-column", "nope"], "no column 'nope'"),
    ],
)
def test_bad_options_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["add", str(write(tmp_path / "rows.jsonl", ROWS)), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_name_is_replaced_on_request_alone(tmp_path: Path) -> None:
    add(tmp_path, ROWS)
    path = write(tmp_path / "other.jsonl", ROWS[:20])
    with pytest.raises(DataError, match="--overwrite"):
        add_own_dataset(path, "mine")
    assert read_own_dataset("mine").source == "rows.jsonl"
    add_own_dataset(path, "mine", overwrite=True)
    assert read_own_dataset("mine").source == "other.jsonl"
    assert [entry.name for entry in datasets_dir().iterdir()] == ["mine"]


def test_few_rows_and_damaged_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="10 or more"):
        add(tmp_path, ROWS[:9])
    add(tmp_path, ROWS)
    (datasets_dir() / "mine" / "dataset.json").write_text("{")
    with pytest.raises(DataError, match="add the data set again"):
        read_own_dataset("mine")
    assert list_own_datasets() == []
    with pytest.raises(UnknownNameError, match="data set 'other'"):
        load_problems("other", "test")


def test_training_takes_its_splits(tmp_path: Path) -> None:
    add(tmp_path, ROWS)
    data = load_training_data(make_config(adapter_name="x", dataset_name="mine"))
    assert (len(data.train), len(data.validation), data.name) == (28, 4, "mine")
    add(tmp_path, ROWS, "without-validation", validation_share=0.0)
    data = load_training_data(make_config(adapter_name="x", dataset_name="without-validation"))
    assert len(data.train) + len(data.validation) == 32


def test_pages_do_not_take_examples_or_problems_of_it(tmp_path: Path) -> None:
    add(tmp_path, ROWS)
    with pytest.raises(UnknownNameError, match="'mine'"):
        make_comparison(Problem("p", "add two numbers"), ["rag-2"], pool="mine")
    with pytest.raises(UnknownNameError, match="'mine'"):
        load_split_problems("mine", None)


def test_commands_list_and_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    assert "You have no data set" in capsys.readouterr().out
    add(tmp_path, ROWS)
    for command in (["list"], ["show", "mine"]):
        assert main(command) == 0
        assert capsys.readouterr().out.startswith("mine: 28 train, 4 validation, 8 test rows of rows.jsonl")
    assert main(["show", "nine"]) == 2
    assert "did you mean 'mine'?" in capsys.readouterr().err
    assert main(["remove", "mine"]) == 0
    assert not (datasets_dir() / "mine").exists()


def test_unknown_names_of_evaluate_name_the_own_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add(tmp_path, ROWS)
    assert evaluate_main(["--data", "mime", "--methods", "zero-shot", "--output", str(tmp_path / "run.jsonl")]) == 2
    assert "did you mean 'mine'?" in capsys.readouterr().err


def test_rows_of_the_hub_are_added_with_their_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"train-00000.jsonl": ROWS[:20], "train-00001.jsonl": ROWS[20:], "test.jsonl": ROWS[:1]}
    tables = [write(tmp_path / name, rows) for name, rows in files.items()][:2]
    found = HubTables("team/rows", "abc123", "mit", tuple(tables), ())
    monkeypatch.setattr(own, "fetch_tables", lambda spec: found if spec == "team/rows@main" else pytest.fail(spec))
    assert main(["add", "team/rows@main", "--name", "mine"]) == 0
    info = read_own_dataset("mine")
    assert (info.source, sum(info.rows.values()), info.with_tests) == ("team/rows@abc123", 40, 40)
    ids = [row["id"] for split in info.rows for row in read_own_rows("mine", split)]
    assert len(set(ids)) == 40


def test_errors_of_several_files_name_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = {"intent": "x", "code": "y", "tests": 7}
    tables = tuple(write(tmp_path / f"train-{n}.jsonl", [*ROWS[:12], bad, {"intent": "", "code": "z"}]) for n in (0, 1))
    monkeypatch.setattr(own, "fetch_tables", lambda spec: HubTables(spec, "abc123", "", tables, ()))
    _, errors = add_own_dataset("team/rows", "mine")
    assert [error.message.split(":")[0] for error in errors] == [
        "train-0.jsonl, line 14", "train-1.jsonl, line 14", "train-0.jsonl, line 13", "train-1.jsonl, line 13",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("source", "name"),
    [("My Rows (2).CSV", "my-rows-2"), ("team/My_Rows@main", "my_rows"), ("mine.jsonl", "mine-2"),
     ("starter.csv", "starter-2"), ("...", "my-rows")],
)  # fmt: skip
def test_names_are_suggested_by_the_source(tmp_path: Path, source: str, name: str) -> None:
    add(tmp_path, ROWS)
    assert suggest_dataset_name(source, DATASETS) == name


def test_replaced_rows_are_never_examples_again(tmp_path: Path) -> None:
    indexed: list[int] = []

    class Index:
        def search(self, text: str, k: int) -> list[int]:
            return list(range(k))

    def index(name: str, examples: Any) -> IndexRetriever:
        indexed.append(len(examples))
        return IndexRetriever(examples, Index())

    pools = ExamplePools(load_examples, index, dataset_version)
    question = Problem("asked", "anything")
    add(tmp_path, ROWS)
    before = {name: pools.select(parse_method(name, ()), question, "mine") for name in ("rag-2", "icl-2")}
    assert pools.select(parse_method("rag-2", ()), question, "mine") == before["rag-2"]
    assert indexed == [28]
    other = [{**row, "intent": f"other {row['intent']}"} for row in ROWS]
    write(tmp_path / "rows.jsonl", other)
    add_own_dataset(tmp_path / "rows.jsonl", "mine", overwrite=True)
    for name in before:
        assert all(
            example.intent.startswith("other ") for example in pools.select(parse_method(name, ()), question, "mine")
        )
    assert indexed == [28, 28]
    add_own_dataset(tmp_path / "rows.jsonl", "mine", RowOptions(seed=1), overwrite=True)
    assert pools.examples("mine") == load_examples("mine")
    remove_own_dataset("mine")
    with pytest.raises(UnknownNameError):
        pools.examples("mine")
