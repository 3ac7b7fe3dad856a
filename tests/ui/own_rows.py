"""A data set of one's own in a temporary home, for tests of the pages."""

from __future__ import annotations

import json
from pathlib import Path

from tasks.datasets.own import OwnDataset, RowOptions, add_own_dataset
from tasks.datasets.registry import DATASETS

NAME = "secret-rows"
# No two codes share so many tokens that they are near-twins, and each row has a test.
ROWS = [
    {
        "intent": f"return the number {n}",
        "code": f"def number_{n}():\n    return {n}",
        "tests": f"assert number_{n}() == {n}",
    }
    for n in range(30)
]


def write_rows(path: Path, word: str = "number") -> Path:
    """Write the rows as JSON lines, with another word in the intents if one is given."""
    rows = [{**row, "intent": row["intent"].replace("number", word)} for row in ROWS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def add_rows(folder: Path, word: str = "number", name: str = NAME, seed: int = 42) -> OwnDataset:
    """Add the rows, or replace those of this name."""
    path = write_rows(folder / "rows.jsonl", word)
    return add_own_dataset(path, name, RowOptions(seed=seed), reserved=DATASETS, overwrite=True)[0]
