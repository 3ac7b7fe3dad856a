"""The starter data set: its rows, its splits, and its tests, which only the references pass."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "tasks" / "starter"
MIN_ROWS = {"train": 240, "validation": 40, "test": 80}
TESTED = ("validation", "test")
TOPICS = {
    *("strings", "lists", "dicts", "files", "regex", "dates", "numbers"),
    *("csv-json", "itertools", "classes", "sorting", "comprehension", "numpy", "pandas"),
}
KEYS = ["id", "topic", "intent", "code"]

# Program that reads [id, code, setup, tests] rows and prints {id: error}.
RUNNER = """
import json, sys
failed = {}
for row_id, code, setup, tests in json.load(sys.stdin):
    space = {"__name__": "__main__"}
    for part in (code, setup, *tests):
        try:
            exec(part, space)
        except Exception as error:
            failed[row_id] = f"{part!r}: {error!r}"
            break
json.dump(failed, sys.stdout)
"""


def rows(split: str) -> list[dict[str, Any]]:
    text = (FOLDER / f"{split}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def fold(text: str) -> str:
    return " ".join(text.casefold().split())


def definitions(code: str) -> dict[str, ast.stmt]:
    kinds = (ast.FunctionDef, ast.ClassDef)
    return {node.name: node for node in ast.parse(code).body if isinstance(node, kinds)}


def entry(row: dict[str, Any]) -> str:
    match = re.search(r"`(\w+)\(", row["intent"])
    return match[1] if match else ""


def failures(problems: list[list[Any]]) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-I", "-c", RUNNER],
        input=json.dumps(problems),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("split", MIN_ROWS)
def test_rows_have_the_expected_keys_and_unique_ids(split: str) -> None:
    found = rows(split)
    keys = [*KEYS, "setup", "tests"] if split in TESTED else KEYS
    assert len(found) >= MIN_ROWS[split]
    assert [row["id"] for row in found if list(row) != keys] == []
    assert len({row["id"] for row in found}) == len(found)
    assert {row["topic"] for row in found} == TOPICS


def test_splits_have_no_common_intents_and_names() -> None:
    intents = {split: {fold(row["intent"]) for row in rows(split)} for split in MIN_ROWS}
    names = {split: {name.casefold() for row in rows(split) for name in definitions(row["code"])} for split in MIN_ROWS}
    for one, other in combinations(MIN_ROWS, 2):
        assert intents[one] & intents[other] == set(), (one, other)
        assert names[one] & names[other] == set(), (one, other)


@pytest.mark.parametrize("split", MIN_ROWS)
def test_code_defines_the_name_in_the_intent(split: str) -> None:
    wrong = [row["id"] for row in rows(split) if entry(row) not in definitions(row["code"])]
    assert wrong == []


@pytest.mark.parametrize("split", TESTED)
def test_references_pass_their_tests(split: str) -> None:
    found = rows(split)
    for row in found:
        assert len(row["tests"]) >= 3, row["id"]
        statements = [ast.parse(test).body for test in row["tests"]]
        assert all(len(s) == 1 and isinstance(s[0], ast.Assert) for s in statements), row["id"]
    failed = failures([[r["id"], r["code"], r["setup"], r["tests"]] for r in found])
    assert failed == {}


@pytest.mark.parametrize("split", TESTED)
def test_empty_answers_fail_the_tests(split: str) -> None:
    problems = []
    for row in rows(split):
        name = entry(row)
        stub = f"def {name}(*args, **kwargs):\n    return None"
        if isinstance(definitions(row["code"])[name], ast.ClassDef):
            stub = f"class {name}:\n    def __init__(self, *args, **kwargs):\n        pass"
        problems.append([row["id"], stub, row["setup"], row["tests"]])
    passed = {problem[0] for problem in problems} - failures(problems).keys()
    assert sorted(passed) == []
