"""MBPP (Austin et al., arXiv 2108.07732): reader of 974 short tasks with asserts, in one file.

The splits are the authors': task_id 11-510 test, 511-600 validation, 601-974 train; 1-10 are their few-shot prompt and
in none of the three. A task's text never names the function that the asserts call, so, as is usual with MBPP, the
intent ends with the first of them ("Your code should pass this test: ..."). That assert is among those that score the
answer. Windows newlines, which nearly every row has, are replaced.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path

from common.parsing import parse_python
from errors import DataError
from tasks.datasets import hub
from tasks.datasets.base import DatasetRow, DatasetSource, read_rows
from tasks.datasets.hub import HubFile
from tasks.problem import AssertTest, Problem


def find_entry_point(code: str, tests: Iterable[str]) -> str | None:
    """Return the top-level function or class of `code` that the tests call first; None if they call none."""
    try:
        defined = {
            node.name
            for node in parse_python(code).body
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        }
        trees = [parse_python(test.strip()) for test in tests]
    except (SyntaxError, ValueError):  # ValueError: a null byte, on Python before 3.12
        return None
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in defined:
                return node.func.id
    return None


REPO, REVISION = "google-research-datasets/mbpp", "4bb6404fdc6cacfda99d4ac4205087b89d32030c"
FILE = "mbpp.jsonl"
SPLIT_IDS = {"train": range(601, 975), "validation": range(511, 601), "test": range(11, 511)}


def read_mbpp(folder: Path, split: str) -> list[Problem]:
    """Read the problems of the split in `<folder>/mbpp.jsonl`."""
    rows = read_rows(folder / FILE, "MBPP, one JSON object a line with the columns task_id, text, code and test_list")
    problems = _make_problems(row for row in rows if row.number("task_id") in SPLIT_IDS[split])
    if not problems:
        ids = SPLIT_IDS[split]
        raise DataError(f"{folder / FILE} has no row of the {split} split (task_id {ids.start} to {ids.stop - 1}).")
    return problems


def fetch_mbpp(split: str) -> list[Problem]:
    """Load the problems of the split from the Hub."""
    return _make_problems(
        hub.load_rows(HubFile(REPO, REVISION, f"full/{split}-00000-of-00001.parquet", "parquet"), "MBPP")
    )


def _make_problems(rows: Iterable[DatasetRow]) -> list[Problem]:
    return [_make_problem(row) for row in rows]


def _make_problem(row: DatasetRow) -> Problem:
    code = _normalize_newlines(row.text("code"))
    tests = [_normalize_newlines(test).strip() for test in row.texts("test_list")]
    if not tests:
        raise DataError(f"{row.location}: column 'test_list' is empty.")
    setup = _normalize_newlines(row.optional_text("test_setup_code"))
    return Problem(
        id=f"mbpp-{row.number('task_id')}",
        intent=f"{_normalize_newlines(row.text('text')).strip()}\nYour code should pass this test: {tests[0]}",
        reference=code,
        tests=tuple(AssertTest(test, setup) for test in tests),
        entry_point=find_entry_point(code, tests),
    )


def _normalize_newlines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


MBPP = DatasetSource("mbpp", "MBPP", (FILE,), f"mbpp/{FILE}, or {FILE} itself", read_mbpp, fetch_mbpp)
