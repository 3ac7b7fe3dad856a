"""Folds of an advice: own splits, cross-fitting of small sets, shares of the training rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from advise.folder import Fold, make_folds
from errors import DataError
from tasks.datasets.own import add_own_dataset
from tasks.problem import Problem


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PROMPT_OR_TUNE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def embed() -> object:
    def vectors(texts: Sequence[str]) -> np.ndarray:
        return np.eye(len(texts), dtype=np.float32)

    return vectors


def own(tmp_path: Path, own_home: Path, rows: int, **columns: object) -> str:
    path = tmp_path / "mine.jsonl"
    lines = [{"intent": f"add {n}", "code": f"x + {n}", **{k: v(n) for k, v in columns.items()}} for n in range(rows)]  # type: ignore[operator]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    add_own_dataset(path, "mine")
    return "mine"


def test_small_set_holds_every_row_out_once(tmp_path: Path, own_home: Path) -> None:
    found = make_folds(own(tmp_path, own_home, 60), None, 42, embed)  # type: ignore[arg-type]
    assert len(found) == 5
    assert sorted(row.id for fold in found for row in fold.test) == sorted({row.id for f in found for row in f.test})
    assert found.test_rows == 60
    for fold in found:
        sides = [{row.id for row in side} for side in (fold.train, fold.validation, fold.test)]
        assert not sides[0] & sides[1]
        assert not (sides[0] | sides[1]) & sides[2]
        assert all(sides)


def test_rows_of_one_group_are_in_one_fold(tmp_path: Path, own_home: Path) -> None:
    found = make_folds(own(tmp_path, own_home, 60, group=lambda n: f"g{n // 6}"), None, 42, embed)  # type: ignore[arg-type]
    for fold in found:
        sides = [
            {int(row.intent.split()[1]) // 6 for row in side} for side in ((*fold.train, *fold.validation), fold.test)
        ]
        assert not sides[0] & sides[1]


def test_set_with_enough_test_rows_keeps_its_splits(own_home: Path) -> None:
    found = make_folds("starter", None, 42, embed)  # type: ignore[arg-type]
    assert len(found) == 1
    assert found.test_rows == 111
    assert found.has_tests


def test_too_few_rows_are_refused(tmp_path: Path, own_home: Path) -> None:
    with pytest.raises(DataError, match="needs 20 or more"):
        make_folds(own(tmp_path, own_home, 12), None, 42, embed)  # type: ignore[arg-type]


def test_larger_share_contains_a_smaller_one() -> None:
    fold = Fold(0, [Problem(str(number), "x", "y") for number in range(100)], (), ())
    quarter, half = ({row.id for row in fold.share_of_train(share, 7)} for share in (0.25, 0.5))
    assert len(quarter) == 25
    assert len(half) == 50
    assert quarter < half


def test_rows_beyond_a_limit_are_drawn(own_home: Path) -> None:
    found = make_folds("starter", None, 42, embed).limited(10, 30, 42)  # type: ignore[arg-type]
    assert found.test_rows == 30
    assert len(found.folds[0].validation) == 10
    assert len(found.folds[0].train) == 270
