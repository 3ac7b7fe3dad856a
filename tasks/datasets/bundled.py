"""Bundled data sets, starter and house: our own rows, which are part of this repository and need no network.

Each is a folder of train.jsonl, validation.jsonl and test.jsonl. A row is an intent that names a function, its code,
and asserts that call it; rows of starter's train have no asserts.

Starter is plain Python. House is in the style of a team with a library of its own, `kit` (tasks/house/kit.py): its rows
call `kit.where(...)` without an import, and the test runner defines `kit` before such code.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from tasks.datasets.base import DatasetRow, read_rows
from tasks.datasets.mbpp import find_entry_point
from tasks.problem import AssertTest, Problem

STARTER, HOUSE = "starter", "house"
_TASKS = Path(__file__).parents[1]
BUNDLED: Mapping[str, Path] = {name: _TASKS / name for name in (STARTER, HOUSE)}
LIBRARY = "kit"  # the name of house's library


def read_bundled(name: str, split: str) -> list[Problem]:
    """Read the problems of a split of the bundled data set `name`. Rows of train may have no tests."""
    expected = f"the {split} split of {name}, which comes with this program"
    return [_make_problem(row) for row in read_rows(BUNDLED[name] / f"{split}.jsonl", expected)]


@cache
def library_prelude() -> str:
    """Return lines that define the module `kit`, so that the code after them may use it with or without an import."""
    source = (BUNDLED[HOUSE] / f"{LIBRARY}.py").read_text(encoding="utf-8")
    return (
        "import sys, types\n"
        f"{LIBRARY} = sys.modules['{LIBRARY}'] = types.ModuleType('{LIBRARY}')\n"
        f"exec(compile({source!r}, '{LIBRARY}.py', 'exec', dont_inherit=True), {LIBRARY}.__dict__)\n"
        "del sys, types\n"
    )


def _make_problem(row: DatasetRow) -> Problem:
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
