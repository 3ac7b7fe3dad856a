"""Folds: the training, validation and test rows of an advice. Each test row is asked once, and no choice has seen it.

A data set with enough test rows has one fold, its own splits. A smaller one is divided into FOLDS parts, each of which
is the test side of one fold (cross-fitting): all choices are made anew in every fold, on its other rows.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from errors import DataError
from tasks.datasets.own import is_own_dataset, read_own_groups
from tasks.datasets.registry import DATASETS, load_problems, require_training
from tasks.datasets.split import EmbedFn, cross_fit_folds, train_validation_split
from tasks.problem import Example, Problem

FOLDS = 5
MIN_ROWS = 20
# With fewer test rows than this every row is held out once, unless that would be more rows than a budget allows.
MIN_TEST_ROWS, MAX_CROSS_FIT_ROWS = 60, 400
_VALIDATION_SHARE = 0.2


@dataclass(frozen=True)
class Fold:
    """One division of the rows. Training rows are learned from and are the examples of prompts."""

    number: int
    train: Sequence[Problem]
    validation: Sequence[Problem]
    test: Sequence[Problem]

    def write_rows(self, folder: Path, share: float = 1.0, seed: int = 0) -> tuple[Path, Path]:
        """Write the training rows, or a share of them, and the validation rows as JSONL; return both paths."""
        name = f"fold-{self.number}" + (f"-{share:g}" if share < 1 else "")
        paths = folder / f"{name}-train.jsonl", folder / f"{name}-validation.jsonl"
        for path, rows in zip(paths, (self.share_of_train(share, seed), self.validation), strict=True):
            lines = [json.dumps({"id": row.id, "intent": row.intent, "code": row.reference}) for row in rows]
            path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return paths

    def share_of_train(self, share: float, seed: int) -> Sequence[Problem]:
        """Return a random share of the training rows, in their order; a larger share contains a smaller one."""
        order = random.Random(seed).sample(range(len(self.train)), len(self.train))
        return [self.train[index] for index in sorted(order[: max(1, round(share * len(self.train)))])]


@dataclass(frozen=True)
class Folds:
    """All folds, and a sentence on how the rows were divided."""

    data: str
    folds: Sequence[Fold]
    note: str

    def __iter__(self) -> Iterator[Fold]:
        return iter(self.folds)

    def __len__(self) -> int:
        return len(self.folds)

    def limited(self, validation: int, test: int, seed: int) -> Folds:
        """Return the folds with at most so many validation and test rows each, which are drawn."""
        folds = [
            replace(fold, validation=_sample(fold.validation, validation, seed), test=_sample(fold.test, test, seed))
            for fold in self.folds
        ]
        return replace(self, folds=folds)

    @property
    def test_rows(self) -> int:
        """The number of rows that are asked in the end, over all folds."""
        return sum(len(fold.test) for fold in self.folds)

    @property
    def has_tests(self) -> bool:
        """Whether every test row brings tests, so that Pass@1 can be measured."""
        return all(problem.tests for fold in self.folds for problem in fold.test)


def make_folds(data: str, data_dir: Path | None, seed: int, embed: Callable[[], EmbedFn]) -> Folds:
    """Read a data set and divide its rows. `embed` loads the embedding model, for near-twins of one's own rows.

    Raises DataError for a data set without training rows or with fewer than MIN_ROWS in all, and what reading it
    raises.
    """
    require_training(data)
    train, validation, test = (_rows(data, split, data_dir) for split in ("train", "validation", "test"))
    rows = [*train, *validation, *test]
    if len(rows) < MIN_ROWS:
        raise DataError(f"{data} has {len(rows)} rows with code: an advice needs {MIN_ROWS} or more.")
    if is_own_dataset(data) and len(test) < MIN_TEST_ROWS and len(rows) <= MAX_CROSS_FIT_ROWS:
        return _cross_fit(data, rows, seed, embed())
    if not validation:
        train, validation = _hold_out(train, seed)
    if not test:
        train, test = _hold_out(train, seed + 1)
    if not (train and validation and test):
        raise DataError(f"{data} leaves no row to learn from, to choose on or to test on: add rows that differ.")
    fold = Fold(0, train, validation, test)
    return Folds(
        data,
        [fold],
        f"{len(train)} rows to learn from and as examples, {len(validation)} to choose on, {len(test)} to test "
        f"on; no choice sees a test row.",
    )


def _rows(data: str, split: str, data_dir: Path | None) -> list[Problem]:
    try:
        problems = load_problems(data, split, data_dir)
    except DataError:
        if split == "train" or data not in DATASETS:
            raise
        return []  # a data set without validation rows, or without test rows
    return [problem for problem in problems if problem.reference and problem.reference.strip()]


def _cross_fit(data: str, rows: Sequence[Problem], seed: int, embed: EmbedFn) -> Folds:
    groups = read_own_groups(data)
    examples = [Example(row.id, row.intent, row.reference or "") for row in rows]
    parts = cross_fit_folds(examples, FOLDS, seed, [groups.get(row.id) for row in rows], embed)
    if len(parts) < 2:
        raise DataError(f"{data}: no row can be held out, as all of them belong together: add rows that differ.")
    folds = []
    for number, part in enumerate(parts):
        others = [rows[index] for other in parts if other is not part for index in other]
        train, validation = _hold_out(others, seed + number, _VALIDATION_SHARE)
        if not validation:
            raise DataError(f"{data}: no row can be held out for choices: add rows that differ.")
        folds.append(Fold(number, train, validation, [rows[index] for index in part]))
    return Folds(
        data,
        folds,
        f"{len(rows)} rows are few, so each is held out once: {len(folds)} times, choices and training are made anew "
        f"on about {len(folds[0].train)} rows, with about {len(folds[0].validation)} to choose on.",
    )


def _hold_out(
    rows: Sequence[Problem], seed: int, share: float = _VALIDATION_SHARE
) -> tuple[list[Problem], list[Problem]]:
    examples = [Example(row.id, row.intent, row.reference or "") for row in rows]
    rest, held_out = train_validation_split(examples, share, seed)
    by_id = {row.id: row for row in rows}
    return [by_id[example.id] for example in rest], [by_id[example.id] for example in held_out]


def _sample(rows: Sequence[Problem], count: int, seed: int) -> list[Problem]:
    if len(rows) <= count:
        return list(rows)
    return [rows[index] for index in sorted(random.Random(seed).sample(range(len(rows)), count))]
