"""HumanEval (Chen et al., arXiv 2107.03374): reader of 164 functions to complete, with the tests of their authors.

The only split is test. The prompt is a signature with a docstring, in a few problems after imports and helper
functions; the intent is that prompt below one line that asks to complete the function. An answer may be the body or a
program that repeats the signature (tasks.completion). The reference is prompt and canonical solution.

The tests are the row's `check(candidate)`, read as pasted tests are (tasks.pasted_tests), and compared as Python does.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from errors import DataError
from tasks.datasets import hub
from tasks.datasets.base import DatasetRow, DatasetSource, read_rows
from tasks.datasets.hub import HubFile
from tasks.pasted_tests import parse_pasted_tests
from tasks.problem import Problem, Test

REPO, REVISION = "openai/openai_humaneval", "7dce6050a7d6d172f3cc5c32aa97f52fa1a2e544"
FILES = ("HumanEval.jsonl", "HumanEval.jsonl.gz")
REQUEST = "Complete this function:"


def completion_intent(prompt: str) -> str:
    """Return the intent that asks for the function whose beginning the prompt is."""
    return f"{REQUEST}\n{prompt.strip()}"


def problem_id(row: DatasetRow) -> str:
    """Return `humaneval-7` for the task_id `HumanEval/7`."""
    return row.text("task_id").strip().lower().replace("/", "-")


def read_humaneval(path: Path, _split: str) -> list[Problem]:
    """Read the problems in HumanEval's file, or in the folder that has it."""
    file = path if path.is_file() else next((path / name for name in FILES if (path / name).is_file()), path / FILES[0])
    return _make_problems(read_rows(file, "HumanEval, one JSON object a line with prompt, entry_point and test"))


def fetch_humaneval(_split: str) -> list[Problem]:
    """Load the problems from the Hub."""
    file = HubFile(REPO, REVISION, "openai_humaneval/test-00000-of-00001.parquet", "parquet")
    return _make_problems(hub.load_rows(file, "HumanEval"))


def _make_problems(rows: Iterable[DatasetRow]) -> list[Problem]:
    return [_make_problem(row) for row in rows]


def _make_problem(row: DatasetRow) -> Problem:
    prompt, entry_point = row.text("prompt"), row.text("entry_point").strip()
    return Problem(
        id=problem_id(row),
        intent=completion_intent(prompt),
        reference=prompt + row.text("canonical_solution"),
        tests=_parse_check(row, entry_point),
        entry_point=entry_point,
        prompt=prompt,
    )


def _parse_check(row: DatasetRow, entry_point: str) -> tuple[Test, ...]:
    """Return the tests in the row's function `check`; raises DataError with the row's location."""
    if not entry_point.isidentifier():
        raise DataError(f"{row.location}: column 'entry_point' must be the name of a function.")
    try:
        return parse_pasted_tests(f"{row.text('test').rstrip()}\ncheck({entry_point})\n")
    except DataError as error:
        if str(error).startswith(row.location):
            raise
        raise DataError(f"{row.location}: column 'test' cannot be read as tests ({str(error).rstrip('.')}).") from error


HUMANEVAL = DatasetSource(
    name="humaneval",
    title="HumanEval",
    patterns=FILES,
    layout=f"humaneval/{FILES[0]} (or .jsonl.gz), or that file itself",
    read=read_humaneval,
    fetch=fetch_humaneval,
    splits=("test",),
    is_file=True,
)
