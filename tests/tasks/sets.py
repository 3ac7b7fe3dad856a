"""Rows of each data set, helpers to write them, and the folder of the real data sets."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest

from tasks.problem import AssertTest, Problem

ROOT = Path(__file__).resolve().parents[2]
REAL = Path(os.environ.get("PROMPT_OR_TUNE_TEST_DATA") or ROOT.parent / "shared" / "data")
# The fixture skips the test if there is no data.
needs_real_data = pytest.mark.usefixtures("data_dir")

PAIR = {"id": "q-1", "nl": "add 1 to `x`", "cmd": "x += 1"}
MBPP_ROW = {
    "task_id": 602,
    "text": "Write a function to double.",
    "code": "import math\r\ndef helper(x):\r\n  return x\r\ndef double(x):\r\n  return helper(x) * 2",
    "test_setup_code": "root = 1\r\n",
    "test_list": ["assert (double(root)) == 2", "assert double(2) == 4 "],
    "challenge_test_list": [],
}
APPS_ROW = {
    "id": 7,
    "description": "Double it.",
    "difficulty": "interview",
    "starter_code": "",
    "test_list": [{"input": "2\n", "output": ["4\n"]}, {"input": "3", "output": [6]}],
}


def write_rows(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run(problem: Problem, code: str) -> None:
    """Run the problem's asserts in the order of the sandbox: code, set-up, assert."""
    limit = sys.get_int_max_str_digits()
    try:
        for test in problem.tests:
            assert isinstance(test, AssertTest)
            exec(f"{code}\n{test.setup}\n{test.code}", {"__name__": "candidate"})
    finally:
        sys.set_int_max_str_digits(limit)


class FakeHub:
    """Replaces `datasets.load_dataset` with tables of the given rows."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, Any]]) -> None:
        self.requests: list[tuple[str, str]] = []
        self._rows = rows
        monkeypatch.setattr(datasets, "load_dataset", self._load)

    def _load(self, format: str, *, data_files: str, split: str) -> Any:
        self.requests.append((format, data_files))
        assert split == "train"  # the only split of a single data file
        return datasets.Dataset.from_list(self._rows)
