"""Command line of advice: a file becomes a data set once and replaces none, results are written, bad input refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from advise import advisor
from advise.__main__ import main
from advise.folder import AdviceFolder, AdviseOptions
from models import embedder
from tasks.datasets.own import list_own_datasets
from tests.advise.results import result_of, right
from train.run import TrainingStoppedError


class FakeEmbedder:
    def embed(self, texts: Sequence[str]) -> np.ndarray[Any, Any]:
        return np.eye(len(texts), dtype=np.float32)


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[AdviseOptions, Path]]:
    """Use a home of the test's own, and record what would be run."""
    calls: list[tuple[AdviseOptions, Path]] = []

    def run(options: AdviseOptions, model: Any, folder: AdviceFolder, home: Path, report: Any) -> dict[str, Any]:
        calls.append((options, folder.path))
        result = result_of(right(adapter=30))
        folder.write_result(result, "<!doctype html>")
        return result

    monkeypatch.setenv("PROMPT_OR_TUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(advisor, "run_advice", run)
    monkeypatch.setattr(embedder, "Embedder", FakeEmbedder)
    return calls


def rows_file(path: Path, word: str = "add") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"intent": f"{word} {n}", "code": f"{word}(x, {n})"}) for n in range(30)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def test_file_becomes_a_data_set_once(asked: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = rows_file(tmp_path / "My Rows.jsonl")
    assert main([file]) == main([file, "--minutes", "30"]) == 0
    assert [(options.data, options.adapter, options.minutes) for options, _ in asked] == [
        ("my-rows", "my-rows-advised", 15.0),
        ("my-rows", "my-rows-advised", 30.0),
    ]
    assert asked[0][1] != asked[1][1], "another budget is another advice"
    assert "Fine-tune: adapter is right on 75.0 % of 40 rows" in capsys.readouterr().out


def test_other_file_of_the_same_name_replaces_no_data_set(asked: list[Any], tmp_path: Path) -> None:
    main([rows_file(tmp_path / "a" / "rows.jsonl")])
    main([rows_file(tmp_path / "b" / "rows.jsonl", "remove")])
    assert [options.data for options, _ in asked] == ["rows", "rows-2"]
    assert [info.name for info in list_own_datasets()] == ["rows", "rows-2"]


def test_same_command_continues_in_the_same_folder_and_overwrite_begins_anew(asked: list[Any]) -> None:
    main(["house"])
    (asked[0][1] / "mark").touch()
    main(["house"])
    assert asked[0][1] == asked[1][1]
    assert (asked[1][1] / "mark").exists()
    main(["house", "--overwrite"])
    assert not (asked[2][1] / "mark").exists()


def test_output_is_the_result_with_its_page_beside_it(asked: list[Any], tmp_path: Path) -> None:
    assert main(["house", "--output", str(tmp_path / "out.json")]) == 0
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["recommendation"]["family"] == "adapter"
    assert (tmp_path / "out.html").read_text(encoding="utf-8") == "<!doctype html>"


def test_advice_that_is_stopped_during_a_training_names_its_own_command(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: object) -> None:
        raise TrainingStoppedError("Stopped at step 3: continue with --resume.")

    monkeypatch.setattr(advisor, "run_advice", stopped)
    assert main(["house"]) == 130
    assert capsys.readouterr().err.strip() == "Stopped; the same command continues."


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.csv"], "There is no data set and no file 'nothing.csv'"),
        (["house", "--minutes", "1"], "1 minutes are no budget: give 2 to 1440."),
        (["house", "--quantization", "nf5"], "nf5"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    asked: list[Any], arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1
    assert not asked
