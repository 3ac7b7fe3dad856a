"""Choice of test problems, and sampling parameters from the fields."""

from __future__ import annotations

from pathlib import Path

import pytest

from errors import PromptOrTuneError
from serve.types import SamplingParams
from ui.compare.decoding_form import read_sampling_params
from ui.problem_picker import data_choices, load_split_problems, starter_problems


def test_three_short_starter_problems_are_offered() -> None:
    problems = starter_problems(None)
    assert len({problem.id for problem in problems}) == 3
    assert all(problem.reference and len(problem.intent) < 100 for problem in problems)


def test_data_choices_are_labelled_with_the_hub(tmp_path: Path) -> None:
    assert ("starter", "starter") in data_choices(tmp_path)
    assert ("conala (from the Hub)", "conala") in data_choices(None)


def test_missing_data_set_raises_an_error(tmp_path: Path) -> None:
    with pytest.raises(PromptOrTuneError):
        load_split_problems("conala", tmp_path)


def test_sampling_params_are_read_from_the_fields() -> None:
    assert read_sampling_params("greedy", 5, 128, 0.9, 0.5, 3) == SamplingParams("greedy", 128)
    assert read_sampling_params("beam", 5, 128, 0.9, 0.5, 3) == SamplingParams("beam", 128, 5)
    assert read_sampling_params("sample", 2, 128, 0.9, 0.5, None) == SamplingParams("sample", 128, 2, 0.9, 0.5, 0)
