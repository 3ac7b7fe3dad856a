"""Tests of train/data.py: the source of a run's rows, and the rows that are held out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from errors import DataError, TrainingError, UnknownNameError
from tasks.datasets.registry import load_examples, load_problems
from tasks.datasets.split import normalize_code, normalize_intent, train_validation_split
from tasks.problem import Example
from tests import messages
from tests.tasks.dataset_hub import dataset_hub
from train.config import TrainConfig
from train.data import load_training_data


def config(dataset: str | Path, **changes: Any) -> TrainConfig:
    return TrainConfig(adapter_name="tiny", dataset_name=str(dataset), **changes)


def write(path: Path, count: int, **changes: str) -> Path:
    rows = [{"intent": f"print {number}", "code": f"print({number})"} | changes for number in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_built_in_data_set_has_validation_rows_and_a_licence() -> None:
    data = load_training_data(config("starter"))
    assert data.train == load_examples("starter")
    assert [example.id for example in data.validation] == [row.id for row in load_problems("starter", "validation")]
    assert (data.name, data.licence) == ("starter", "apache-2.0")
    assert data.source_note == "starter, validated on its own validation rows."


def test_max_samples_selects_the_first_rows() -> None:
    data = load_training_data(config("starter", max_train_samples=5, max_eval_samples=3))
    assert data.train == load_examples("starter")[:5]
    assert len(data.validation) == 3


def test_share_of_a_file_is_held_out(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", 50)
    data = load_training_data(config(path, validation_split=0.2))
    assert (len(data.train), len(data.validation)) == (40, 10)
    assert data.train_split.num_rows == 50
    assert data.train_split.locate(data.train[-1]).startswith("mine.jsonl, line ")
    assert (data.name, data.licence) == ("mine.jsonl", "other")
    assert data.source_note == (
        "mine.jsonl, validated on 10 of its rows (validation_split 0.2), drawn with seed 42 so that rows with the same "
        "intent stay on one side."
    )
    assert load_training_data(config(path, validation_split=0.2)) == data
    assert load_training_data(config(path, validation_split=0.2, seed=1)).validation != data.validation


def test_all_rows_of_a_validation_file_are_used(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", 20)
    other = write(tmp_path / "held.jsonl", 3, code="x")
    data = load_training_data(config(path, validation_file=other))
    assert (len(data.train), len(data.validation)) == (20, 3)
    assert data.source_note == "mine.jsonl, validated on held.jsonl."
    ours = load_training_data(config("starter", validation_file=other))
    assert [example.code for example in ours.validation] == ["x"] * 3


def test_row_errors_of_both_files_name_file_and_line(tmp_path: Path) -> None:
    path, other = write(tmp_path / "mine.jsonl", 20), write(tmp_path / "held.jsonl", 3)
    for jsonl in (path, other):
        with jsonl.open("a") as file:
            file.write('{"intent": "a"}\n')
    data = load_training_data(config(path, validation_file=other))
    assert [error.message.partition(":")[0] for error in data.row_errors] == [
        "mine.jsonl, line 21",
        "held.jsonl, line 4",
    ]


def test_hub_data_set_is_read_from_shards_with_its_licence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    for name in ("train-0000.jsonl", "train-0001.jsonl", "validation-0000.jsonl"):
        path = write(folder / name, 4, id="q-1")
        with path.open("a") as file:
            file.write("[]\n")
    with dataset_hub(tmp_path / "cache", monkeypatch) as hub:
        hub.repositories["someone/rows"] = folder
        data = load_training_data(config("someone/rows"))
        assert (len(data.train), len(data.validation)) == (8, 4)
        assert len({example.id for example in data.train}) == 8
        assert (data.name, data.licence) == (f"someone/rows@{hub.commit('someone/rows')}", "mit")
    assert data.train_split.locate(data.train[7]) == "train-0001.jsonl, line 4"
    assert [error.message.partition(":")[0] for error in data.row_errors] == [
        "train-0000.jsonl, line 5",
        "train-0001.jsonl, line 5",
        "validation-0000.jsonl, line 5",
    ]


def test_unknown_data_set_error_names_the_nearest_and_the_alternatives() -> None:
    with pytest.raises(UnknownNameError, match=messages.UNKNOWN_ROWS_SUGGEST_CONALA):
        load_training_data(config("conla"))


def test_missing_file_is_not_requested_from_the_hub(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=messages.TRAINING_FILE_MISSING):
        load_training_data(config("data/mine.jsonl"))
    with pytest.raises(DataError, match=messages.PATH_IS_FOLDER_OF_FILES):
        load_training_data(config(tmp_path))


def test_column_names_for_a_built_in_data_set_are_an_error() -> None:
    with pytest.raises(DataError, match=messages.STARTER_HAS_COLUMNS):
        load_training_data(config("starter", intent_column="nl"))


def test_rows_with_a_single_intent_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=messages.NO_VALIDATION_ROW):
        load_training_data(config(write(tmp_path / "mine.jsonl", 20, intent="the same")))


def test_rows_with_the_same_intent_or_code_are_in_the_same_split() -> None:
    examples = [Example(str(n), f"Intent {n // 3}" + " " * (n % 3), f"code({n // 2})") for n in range(300)]
    for seed in range(5):
        train, validation = train_validation_split(examples, 0.1, seed)
        assert {normalize_intent(row.intent) for row in train}.isdisjoint(
            normalize_intent(row.intent) for row in validation
        )
        assert {normalize_code(row.code) for row in train}.isdisjoint(normalize_code(row.code) for row in validation)
        assert 24 <= len(validation) <= 30
        assert sorted(train + validation, key=lambda row: int(row.id)) == examples
        assert [int(row.id) for row in train] == sorted(int(row.id) for row in train)


def test_equal_answers_are_split_by_intent() -> None:
    examples = [Example(str(n), f"is {n} even?", str(n % 2 == 0)) for n in range(100)]
    train, validation = train_validation_split(examples, 0.1, 0)
    assert (len(train), len(validation)) == (90, 10)
