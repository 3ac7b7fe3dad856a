"""Real problems to ask about, and how the fields become a decoding."""

from __future__ import annotations

from pathlib import Path

import pytest

from errors import PromptOrTuneError
from serve.types import SamplingParams
from ui.compare.decoding_form import make_sampling_params
from ui.problem_picker import data_choices, load_split_problems, starter_problems


def test_three_short_problems_to_begin_with() -> None:
    problems = starter_problems(None)
    assert len({problem.id for problem in problems}) == 3
    assert all(problem.reference and len(problem.intent) < 100 for problem in problems)


def test_data_sets_say_where_they_come_from(tmp_path: Path) -> None:
    assert ("starter", "starter") in data_choices(tmp_path)
    assert ("conala (from the Hub)", "conala") in data_choices(None)


def test_a_missing_data_set_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(PromptOrTuneError):
        load_split_problems("conala", tmp_path)


def test_fields_become_a_decoding() -> None:
    assert make_sampling_params("greedy", 5, 128, 0.9, 0.5, 3) == SamplingParams("greedy", 128)
    assert make_sampling_params("beam", 5, 128, 0.9, 0.5, 3) == SamplingParams("beam", 128, 5)
    assert make_sampling_params("sample", 2, 128, 0.9, 0.5, None) == SamplingParams("sample", 128, 2, 0.9, 0.5, 0)
