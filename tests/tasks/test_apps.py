"""APPS: both folder layouts, both kinds of tests, and the study's split of the Hub's rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from errors import DataError
from tasks.datasets.apps import first_per_difficulty
from tasks.datasets.registry import load_examples, load_problems
from tasks.problem import Problem, StdioTest, parse_tests
from tests import messages
from tests.tasks.sets import APPS_ROW, REAL, FakeHub, needs_real_data, run, write_rows


def test_apps_folders_have_no_training_split(tmp_path: Path) -> None:
    write_rows(tmp_path / "apps" / "apps_unique128.jsonl", APPS_ROW)
    with pytest.raises(DataError, match=messages.ONLY_TEST_SPLIT):
        load_examples("apps", tmp_path)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"question.txt": ""}, r"question\.txt: column 'text' is empty"),
        ({"solutions.json": "{"}, r"solutions\.json: not JSON"),
        ({"solutions.json": "{}"}, "solutions must be a list, it is an object"),
        ({"input_output.json": "[]"}, r"input_output\.json: must be a JSON object with inputs and outputs"),
        ({"input_output.json": '{"inputs": ["1"], "outputs": []}'}, "must be lists of the same length"),
        ({"input_output.json": '{"inputs": [], "outputs": [], "fn_name": "a b"}'}, "fn_name must be the name"),
        ({"metadata.json": "3"}, r"metadata\.json: must be a JSON object"),
    ],
)
def test_invalid_folder_of_apps_is_an_error(tmp_path: Path, files: dict[str, str], expected: str) -> None:
    folder = tmp_path / "0001"
    folder.mkdir()
    for name, text in {"question.txt": "Double it.", **files}.items():
        (folder / name).write_text(text)
    with pytest.raises(DataError, match=expected):
        load_problems("apps", "test", tmp_path)


def test_apps_unique128_layout_has_program_runs(tmp_path: Path) -> None:
    call = {**APPS_ROW, "id": 8, "starter_code": "def double(x):", "test_list": [{"input": "1", "output": [[2, 5]]}]}
    write_rows(tmp_path / "apps_unique128.jsonl", APPS_ROW, call)
    plain, rewritten = load_problems("apps", "test", tmp_path)
    assert plain == Problem(
        "apps-train-0007",
        "Double it.\nUse Standard Input format",
        tests=(StdioTest("2\n", "4\n"), StdioTest("3", "6")),
        difficulty="interview",
    )
    assert "one of its own" not in plain.intent
    assert "a line of its own" in rewritten.intent
    assert "def double" not in rewritten.intent
    assert rewritten.tests == (StdioTest("1", "[2, 5]"),)


def test_apps_original_layout_is_read(tmp_path: Path) -> None:
    call = tmp_path / "0042"
    call.mkdir()
    (call / "question.txt").write_text("Double it.\r\n")
    (call / "starter_code.py").write_text("class Solution:\n    def double(self, x):\n        ")
    (call / "input_output.json").write_text('{"fn_name": "double", "inputs": [[[1, 2]]], "outputs": [[[2, 4]]]}')
    (call / "solutions.json").write_text(json.dumps(["", "class Solution:\r\n    pass"]))
    (call / "metadata.json").write_text('{"difficulty": "introductory", "url": "http://x"}')
    bare = tmp_path / "0007"
    bare.mkdir()
    (bare / "question.txt").write_text("Print it.")
    first, second = load_problems("apps", "test", tmp_path)
    assert first == Problem("apps-train-0007", "Print it.\nUse Standard Input format")
    assert second.intent == "Double it.\nclass Solution:\n    def double(self, x):\nUse Call-Based format"
    assert (second.reference, second.entry_point, second.difficulty) == (
        "class Solution:\n    pass",
        "double",
        "introductory",
    )
    run(second, "class Solution:\n    def double(self, x):\n        return [2 * each for each in x]")
    with pytest.raises(AssertionError):
        run(second, "class Solution:\n    def double(self, x):\n        return x")


@pytest.mark.parametrize(
    ("output", "code", "passes"),
    [
        ("9", "def f(x): return 9", True),
        ("[9]", "def f(x): return 9", True),
        ("[9]", "def f(x): return [9]", True),
        ("[[1, 2]]", "def f(x): return (1, 2)", True),
        ("[false]", "def f(x): return False", True),
        ("[1, 2]", "def f(x): return 1", False),
        ("[null]", "def f(x): return None", True),
        ("1" * 5000, f"def f(x): return int('{'1' * 5000}')", True),
    ],
)
def test_apps_calls_are_compared_as_in_its_own_checker(output: str, code: str, passes: bool) -> None:
    tests = parse_tests(f'{{"fn_name": "f", "inputs": [[1]], "outputs": [{output}]}}', "here")
    problem = Problem("x", "x", tests=tests.tests)
    if passes:
        run(problem, code if len(output) < 4000 else f"import sys\nsys.set_int_max_str_digits(0)\n{code}")
    else:
        with pytest.raises(AssertionError):
            run(problem, code)


def test_apps_inputs_can_be_lists_of_lines() -> None:
    tests = parse_tests('{"inputs": [["1 2", "3"], "4"], "outputs": [["a"], "b\\n"]}', "here")
    assert tests.tests == (StdioTest("1 2\n3", "a"), StdioTest("4", "b\n"))
    assert tests.function is None


@needs_real_data
def test_real_apps_is_read_in_both_layouts() -> None:
    problems = load_problems("apps", "test", REAL)
    assert len(problems) == 128
    assert sum(len(problem.tests) for problem in problems) == 1602
    assert {problem.difficulty for problem in problems} == {"introductory", "interview", "competition"}
    original = load_problems("apps", "test", REAL / "apps" / "original_layout")
    assert [problem.id[-4:] for problem in original] == ["0001", "0111", "2287", "2404", "4184"]
    assert all(problem.reference and problem.tests for problem in original)
    for problem in original:
        if problem.entry_point:
            run(problem, f"from typing import *\n{problem.reference}")


def apps_rows(count: int) -> list[dict[str, Any]]:
    levels = ("introductory", "interview", "competition")
    return [
        {
            "id": number,
            "question": f"question {number}",
            "solutions": json.dumps([f"print({number})"]) if number % 2 else "",
            "input_output": json.dumps({"inputs": ["1\n"], "outputs": ["1\n"]}) if number % 2 else "",
            "difficulty": levels[number % 3],
            "url": "",
            "starter_code": "",
        }
        for number in range(count)
    ]


def test_apps_from_the_hub_has_the_splits_of_the_study(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = apps_rows(900)
    hub = FakeHub(monkeypatch, rows)
    train, validation = load_problems("apps", "train"), load_problems("apps", "validation")
    shuffled = datasets.Dataset.from_list(rows).shuffle(seed=42)["id"]
    assert [problem.id for problem in validation] == [f"apps-train-{number:04d}" for number in shuffled[:500]]
    assert [problem.id for problem in train] == [f"apps-train-{number:04d}" for number in shuffled[500:]]
    test = load_problems("apps", "test")
    assert [problem.id for problem in test] == [f"apps-test-{number:04d}" for number in range(750)]
    assert (test[0].reference, test[1].reference) == (None, "print(1)")
    assert (test[0].tests, test[1].tests) == ((), (StdioTest("1\n", "1\n"),))
    assert len(load_examples("apps")) == sum(problem.reference is not None for problem in train) < len(train)
    assert [address.rpartition("/")[2] for _, address in hub.requests[:3]] == [
        "train.jsonl",
        "train.jsonl",
        "test.jsonl",
    ]


def test_limit_selects_the_first_rows_of_each_difficulty() -> None:
    assert first_per_difficulty("aabbba", 2) == [0, 1, 2, 3]
