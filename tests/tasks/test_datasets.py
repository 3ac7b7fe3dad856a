"""Data sets read from folders, and their errors."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from errors import DataError, UnknownNameError
from tasks.datasets.base import SPLITS
from tasks.datasets.published import find_entry_point
from tasks.datasets.registry import BUNDLED, DATASETS, available_datasets, dataset_digest, load_examples, load_problems
from tasks.problem import AssertTest, Example, Problem
from tests import messages
from tests.tasks.sets import MBPP_ROW, PAIR, REAL, needs_real_data, run, write_rows


def test_errors_of_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=messages.UNKNOWN_DATA_SET_SUGGESTS_CONALA):
        load_problems("conola", "test")
    with pytest.raises(UnknownNameError, match=messages.UNKNOWN_SPLIT_SUGGESTS_VALIDATION):
        load_problems("starter", "valid")


@pytest.mark.parametrize("limit", [0, -1])
def test_limit_below_one_is_an_error(limit: int) -> None:
    with pytest.raises(DataError, match=messages.PROBLEM_LIMIT_TOO_SMALL.format(limit=limit)):
        load_problems("starter", "test", limit=limit)


def test_missing_and_wrong_folders_are_errors(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    with pytest.raises(DataError) as caught:
        load_problems("conala", "test", gone)
    assert str(caught.value) == (
        f"No such data folder: {gone} (--data-dir) should hold conala/train.jsonl, validation.jsonl and test.jsonl "
        "(columns nl and cmd), or these three files."
    )
    with pytest.raises(DataError, match=messages.MBPP_NOT_IN_DATA_DIR):
        load_problems("mbpp", "test", tmp_path)
    write_rows(tmp_path / "conala" / "train.jsonl", PAIR)
    with pytest.raises(DataError, match=messages.CONALA_TEST_FILE_MISSING):
        load_problems("conala", "test", tmp_path)
    with pytest.raises(
        DataError, match=messages.CODEALPACAPY_NOT_IN_FOLDER
    ):  # a folder named conala is not used for it
        load_problems("codealpacapy", "train", tmp_path / "conala")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"id": "1", "nl": "x"}, "line 2: column 'cmd' or 'output' is missing; the columns there are id, nl."),
        ({"nl": "x", "cmd": 3}, "line 2: column 'cmd' must be text, it is a number."),
        ({"nl": "  ", "cmd": "x"}, "line 2: column 'nl' is empty."),
        ({"nl": "x", "cmd": ""}, "line 2: column 'cmd' is empty."),
    ],
)
def test_invalid_row_of_pairs_is_an_error(tmp_path: Path, row: dict[str, Any], expected: str) -> None:
    path = write_rows(tmp_path / "conala" / "train.jsonl", PAIR, row)
    with pytest.raises(DataError) as caught:
        load_problems("conala", "train", tmp_path)
    assert str(caught.value) == f"{path}, {expected}"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"task_id": "602"}, "column 'task_id' must be a whole number, it is text."),
        ({"test_list": []}, "column 'test_list' is empty."),
        ({"test_list": "assert 1"}, "column 'test_list' must be a list, it is text."),
        ({"code": " "}, "column 'code' is empty."),
    ],
)
def test_invalid_row_of_mbpp_is_an_error(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    path = write_rows(tmp_path / "mbpp.jsonl", {**MBPP_ROW, **change})
    with pytest.raises(DataError) as caught:
        load_problems("mbpp", "train", tmp_path)
    assert str(caught.value) == f"{path}, line 1: {expected}"


@pytest.mark.parametrize("name", ["conala", "codealpacapy"])
def test_pairs_are_read_from_both_folder_layouts(tmp_path: Path, name: str) -> None:
    write_rows(tmp_path / name / "train.jsonl", PAIR, {"nl": "b", "cmd": "c"}, PAIR)
    expected = [
        Problem("q-1", "add 1 to `x`", "x += 1"),
        Problem(f"{name}-train-0001", "b", "c"),
        Problem("q-1#2", "add 1 to `x`", "x += 1"),  # ids must be unique, as they are keys of results
    ]
    assert load_problems(name, "train", tmp_path) == expected
    assert load_problems(name, "train", str(tmp_path / name), limit=2) == expected[:2]
    assert load_examples(name, tmp_path)[0] == Example("q-1", "add 1 to `x`", "x += 1")


def test_mbpp_intent_contains_the_first_assert_and_the_function_name(tmp_path: Path) -> None:
    write_rows(tmp_path / "mbpp" / "mbpp.jsonl", MBPP_ROW, {**MBPP_ROW, "task_id": 11}, {**MBPP_ROW, "task_id": 1})
    (problem,) = load_problems("mbpp", "train", tmp_path)
    assert problem.id == "mbpp-602"
    assert problem.intent == (
        "Write a function to double.\nYour code should pass this test: assert (double(root)) == 2"
    )
    assert problem.reference is not None
    assert "\r" not in problem.reference
    assert problem.entry_point == "double"
    assert problem.tests == (
        AssertTest("assert (double(root)) == 2", "root = 1\n"),
        AssertTest("assert double(2) == 4", "root = 1\n"),
    )
    run(problem, problem.reference)
    with pytest.raises(DataError, match=messages.VALIDATION_SPLIT_EMPTY):
        load_problems("mbpp", "validation", tmp_path)


@pytest.mark.parametrize("name", BUNDLED)
@pytest.mark.parametrize("split", SPLITS)
def test_bundled_sets_are_read_without_a_folder(name: str, split: str, tmp_path: Path) -> None:
    problems = load_problems(name, split)
    assert problems == load_problems(name, split, tmp_path)
    assert len(load_problems(name, split, limit=3)) == 3
    assert len({problem.id for problem in problems}) == len(problems)
    for problem in problems:
        ast.parse(problem.reference or "")


def test_available_data_sets_depend_on_the_folder(tmp_path: Path) -> None:
    assert available_datasets() == available_datasets(tmp_path) == available_datasets(tmp_path / "gone") == [*BUNDLED]
    write_rows(tmp_path / "conala" / "test.jsonl", PAIR)
    write_rows(tmp_path / "mbpp" / "mbpp.jsonl", MBPP_ROW)
    (tmp_path / "apps" / "0001").mkdir(parents=True)
    (tmp_path / "apps" / "0001" / "question.txt").write_text("?")
    assert available_datasets(tmp_path) == [*BUNDLED, "conala", "mbpp", "apps"]
    assert available_datasets(str(tmp_path / "conala")) == [*BUNDLED, "conala"]


def test_digest_changes_with_every_text() -> None:
    example = Example("1", "a", "b")
    problem = Problem("1", "a", "b", tests=(AssertTest("assert b"),))
    assert dataset_digest([example]) == dataset_digest([problem])
    assert dataset_digest([example]).startswith("sha256:")
    assert len(dataset_digest([example])) == len("sha256:") + 16
    others = [Example("2", "a", "b"), Example("1", "ab", ""), Example("1", "a", "b2")]
    digests = {dataset_digest(items) for items in ([example], [], [example, example], *([other] for other in others))}
    assert len(digests) == 6


def test_entry_point_is_the_function_that_the_tests_call() -> None:
    code = "def helper(x): return x\ndef target(x): return helper(x)\nclass Stack: pass"
    assert find_entry_point(code, ["assert set(target(helper(1))) == {1}"]) == "target"
    assert find_entry_point(code, ["assert len([]) == 0", "s = Stack()\nassert s"]) == "Stack"
    assert find_entry_point(code, ["assert 1"]) is None
    assert find_entry_point("def broken(", ["assert broken()"]) is None
    assert find_entry_point(code, ["assert ("]) is None


@needs_real_data
@pytest.mark.parametrize(
    ("name", "counts"),
    [("conala", (2135, 201, 543)), ("codealpacapy", (2188, 314, 628)), ("mbpp", (374, 90, 500))],
)
def test_real_data_sets_have_the_published_counts(name: str, counts: tuple[int, int, int]) -> None:
    splits = [load_problems(name, split, REAL) for split in ("train", "validation", "test")]
    assert tuple(len(problems) for problems in splits) == counts
    assert splits[2] == load_problems(name, "test", REAL / name)
    ids = [problem.id for problems in splits for problem in problems]
    assert len(set(ids)) == len(ids)
    assert len(load_examples(name, REAL)) == counts[0]


@needs_real_data
def test_real_mbpp_excludes_its_prompt_rows() -> None:
    rows = len((REAL / "mbpp" / "mbpp.jsonl").read_bytes().splitlines())
    problems = [p for split in ("train", "validation", "test") for p in load_problems("mbpp", split, REAL)]
    assert len(problems) == rows - 10
    assert all(problem.entry_point and problem.entry_point in problem.intent for problem in problems)
    assert not any("\r" in f"{p.intent}{p.reference}{p.tests}" for p in problems)
    for problem in problems[:100]:
        run(problem, problem.reference or "")


@needs_real_data
def test_real_folders_are_found() -> None:
    found = available_datasets(REAL)
    assert found[:6] == list(DATASETS[:6])
    assert set(found) <= set(DATASETS)


def test_missing_folder_is_an_error_even_if_none_is_needed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=messages.NO_SUCH_DATA_FOLDER):
        load_problems("starter", "test", tmp_path / "none")
    assert load_problems("starter", "test", tmp_path)
