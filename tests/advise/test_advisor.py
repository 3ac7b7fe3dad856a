"""A whole advice with the real trainer and sandbox, on few rows and layers of the base: interrupted, then continued."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from adapters.manifest import Manifest
from advise import advisor as advisor_module
from advise import training
from advise.advisor import run_advice
from advise.answering import Answerer
from advise.folder import AdviceFolder, AdviseOptions, Fold, Folds
from errors import DataError
from models.source import resolve
from serve.options import ModelOptions
from tasks.datasets.registry import load_problems
from tasks.problem import Problem
from tests.serve.tiny import first_layers

pytestmark = [pytest.mark.model, pytest.mark.slow]
OPTIONS = AdviseOptions("house", "house-advised", 30)


def few_rows(*_: object) -> Folds:
    train, test = load_problems("house", "train"), load_problems("house", "test")
    return Folds("house", [Fold(0, train[:16], train[16:20], test[:4])], "few rows")


def other_rows(*_: object) -> Folds:
    rows = load_problems("house", "train")
    return Folds("house", [Fold(0, rows[30:46], rows[46:50], rows[50:54])], "other rows")


@pytest.fixture
def small(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set few rows and methods, short trainings, and a home whose embedded base has only its first layers."""
    base = resolve("embedded", lambda _: None).folder
    first_layers(base, 3, tmp_path / "home" / "bases" / base.name)
    monkeypatch.setenv("PROMPT_OR_TUNE_HOME", str(tmp_path / "home"))
    settings = {"technique": "qlora-4bit", "lora_r": 8, "learning_rate": 1e-3, "num_train_epochs": 1}
    monkeypatch.setattr(advisor_module, "make_folds", few_rows)
    monkeypatch.setattr(advisor_module, "MAX_TRIALS", 1)
    monkeypatch.setattr(advisor_module, "CURVE_SHARES", (0.5,))
    monkeypatch.setattr(advisor_module, "ICL_METHODS", ("icl-2",))
    monkeypatch.setattr(advisor_module, "RAG_METHODS", ("rag-2",))
    monkeypatch.setattr(training, "default_settings", lambda *_: [settings])
    monkeypatch.setattr(advisor_module, "with_examples", lambda given: {**given, "train_examples": "nearest:0,2"})
    # All answers of the cut base are wrong, so none is better; the learning curve of an adapter is also trained.
    monkeypatch.setattr(advisor_module, "chosen_family", lambda *given: given[-1][-1])
    monkeypatch.setattr(training, "RETENTION_ROWS", 2)


def test_interrupted_advice_continues_and_gives_the_whole_result(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, lines = AdviceFolder(tmp_path / "advice"), list[str]()
    folder.path.mkdir()
    answer = Answerer.answer
    asked: list[str] = []

    def interrupted(
        self: Answerer, name: str, pool: str, problems: Sequence[Problem], methods: Sequence[str], tokens: int
    ) -> Any:
        asked.append(name)
        if name == "fold-0-test" and asked.count(name) == 1:
            raise KeyboardInterrupt
        return answer(self, name, pool, problems, methods, tokens)

    monkeypatch.setattr(Answerer, "answer", interrupted)

    def run() -> dict[str, Any]:
        return run_advice(OPTIONS, ModelOptions("embedded"), folder, tmp_path, lines.append)

    with pytest.raises(KeyboardInterrupt):
        run()
    partial = folder.read_result()
    assert partial is not None
    assert not partial["finished"]
    assert partial["recommendation"]["method"] is None
    assert partial["families"][3]["validation"] is not None
    assert partial["families"][3]["value"] is None
    before = len([line for line in lines if line.startswith("Training ")])

    result = run()
    assert result["finished"]
    assert asked.count("fold-0-validation") == asked.count("fold-0-adapters") == 1
    trainings = [line for line in lines if line.startswith("Training ")]
    assert len(trainings) == before + 1, "after the interrupt only the learning curve is trained"
    assert [row["n"] for row in result["families"]] == [4] * 5
    assert result["metric"] == "pass@1"
    assert len(result["answers"]) == 4
    assert [point["rows"] for point in result["curve"]["points"]] == [8, 16]
    assert result["retention"]["n"] == 2
    assert result["retention"]["perplexity_before"] > 1
    assert "4 rows can show no difference" in result["power"]["text"]
    assert result["recommendation"]["method"] is None, "four rows cannot show anything"
    assert Manifest.read(tmp_path / "adapters" / "house-advised").name == "house-advised"
    assert folder.report_path.read_text(encoding="utf-8").startswith("<!doctype html>")
    states = {step.id: step.state for step in folder.read_progress().steps}
    assert states["test"] == states["curve"] == states["retention"] == "done"
    assert [curve.state for curve in folder.read_progress().curves] == ["done"] * 3

    monkeypatch.setattr(advisor_module, "make_folds", other_rows)
    with pytest.raises(DataError, match="The rows of house were replaced since this advice began"):
        run()
