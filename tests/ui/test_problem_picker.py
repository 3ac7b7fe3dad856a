"""Choice of test problems, and sampling parameters from the fields."""

from __future__ import annotations

from pathlib import Path

import pytest

from errors import PromptOrTuneError
from serve.types import SamplingParams
from tests.tasks.sets import HUMANEVALPLUS_ROW, LEETCODE_ROW, write_rows
from ui.access.guard import data_choices, load_split_problems, pool_choices
from ui.compare.comparison import QuestionFields, build_problem
from ui.compare.decoding_form import read_sampling_params
from ui.compare.view import load_first_example
from ui.form_fields import _field_values, suggested_problems


def test_three_validation_rows_of_house_are_suggested() -> None:
    example = load_first_example()
    assert example is not None
    problems = suggested_problems(example.suggestions)
    assert len({problem.id for problem in problems}) == 3
    assert problems[0].intent == example.records[0]["intent"]
    assert suggested_problems(["house-test-0001", "nonsense"]) == []


def test_data_choices_are_labelled_with_the_hub(tmp_path: Path) -> None:
    assert data_choices(tmp_path)[:2] == [("starter", "starter"), ("house", "house")]
    assert ("conala (from the Hub)", "conala") in data_choices(None)


def test_missing_data_set_raises_an_error(tmp_path: Path) -> None:
    with pytest.raises(PromptOrTuneError):
        load_split_problems("conala", tmp_path)


def test_sampling_params_are_read_from_the_fields() -> None:
    assert read_sampling_params("greedy", 5, 128, 0.9, 0.5, 3) == SamplingParams("greedy", 128)
    assert read_sampling_params("beam", 5, 128, 0.9, 0.5, 3) == SamplingParams("beam", 128, 5)
    assert read_sampling_params("sample", 2, 128, 0.9, 0.5, None) == SamplingParams("sample", 128, 2, 0.9, 0.5, 0)


def test_sets_of_large_files_are_listed_where_the_data_folder_has_them(tmp_path: Path) -> None:
    assert not {"humaneval", "humanevalplus", "mbppplus", "leetcode"} & {name for _, name in data_choices(None)}
    write_rows(tmp_path / "humanevalplus" / "HumanEvalPlus.jsonl", HUMANEVALPLUS_ROW)
    write_rows(tmp_path / "leetcode" / "LeetCodeDataset-test.jsonl", LEETCODE_ROW)
    assert {("humanevalplus", "humanevalplus"), ("leetcode", "leetcode")} <= set(data_choices(tmp_path))
    pools = {name for _, name in pool_choices(tmp_path)}
    assert "leetcode" in pools
    assert "humanevalplus" not in pools


def test_a_problem_without_examples_of_its_kind_takes_those_of_starter(tmp_path: Path) -> None:
    write_rows(tmp_path / "HumanEvalPlus.jsonl", HUMANEVALPLUS_ROW)
    (problem,) = load_split_problems("humanevalplus", tmp_path)
    *_, tests, pool = _field_values(problem, "humanevalplus")
    assert pool == "starter"
    assert tests == (
        "# HumanEval/7 base: 2 calls of total must return what the reference returns\n"
        "# HumanEval/7 plus: 2 calls of total must return what the reference returns"
    )
    fields = QuestionFields(problem.intent, problem.reference, str(tests), problem)
    assert build_problem(fields) == problem
