"""Starter: our own short intents with code and asserts, in the repository: neither a folder nor the Hub is needed."""

from __future__ import annotations

from pathlib import Path

from tasks.datasets.asserts import find_entry_point
from tasks.datasets.jsonl import DatasetRow, read_rows
from tasks.problem import AssertTest, Problem

STARTER_DIR = Path(__file__).parent.parent / "starter"


def read_starter(split: str, folder: Path = STARTER_DIR) -> list[Problem]:
    """The problems of a split. Train rows may come without tests."""
    holds = f"the {split} split of starter, which comes with this program"
    return [_starter_problem(row) for row in read_rows(folder / f"{split}.jsonl", holds)]


def _starter_problem(row: DatasetRow) -> Problem:
    code = row.text("code")
    setup = row.optional_text("setup")
    tests = row.texts("tests") if row.values.get("tests") is not None else []
    return Problem(
        id=row.text("id"),
        intent=row.text("intent"),
        reference=code,
        tests=tuple(AssertTest(test, setup) for test in tests),
        entry_point=find_entry_point(code, tests),
    )
