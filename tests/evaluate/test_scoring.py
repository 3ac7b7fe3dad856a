from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluate.scoring import NO_DATA_FLOW, NO_REFERENCE, score_candidates, score_code
from tests.evaluate.hostile import HOSTILE

METRICS = [
    "em",
    "em_tree",
    "codebleu",
    "codebleu.ngram",
    "codebleu.weighted_ngram",
    "codebleu.syntax",
    "codebleu.dataflow",
    "parses",
]


def test_a_right_answer_has_full_scores() -> None:
    scores = {score.metric: score for score in score_code("x = y\n", "x = y")}
    assert list(scores) == METRICS
    assert all(score.value == 1 and not score.reason for score in scores.values())


def test_without_a_reference_every_score_but_parses_says_why_it_is_missing() -> None:
    for reference in (None, "", "  \n"):
        scores = score_code("x = y", reference)
        assert [score.metric for score in scores] == METRICS
        assert [(score.value, score.reason) for score in scores[:-1]] == [(None, NO_REFERENCE)] * 7
        assert scores[-1].value == 1


def test_undefined_data_flow_says_so() -> None:
    scores = {score.metric: score for score in score_code("print(max(x))", "print(sum(x))")}
    assert scores["codebleu.dataflow"].value is None
    assert scores["codebleu.dataflow"].reason == NO_DATA_FLOW
    assert scores["em"].value == 0


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_answers_are_scored(text: str) -> None:
    assert all(score.value is None or 0 <= score.value <= 1 for score in score_code(text, "x = y"))


@given(st.lists(st.sampled_from(["x = y", "x=y", "x = 1", ""]), max_size=10))
def test_matches_grow_with_k_and_trees_match_at_least_as_often(codes: list[str]) -> None:
    scores = score_candidates(codes, "x = y", 10)
    raw = [scores[f"em@{k}"] or 0.0 for k in range(1, 11)]
    tree = [scores[f"em_tree@{k}"] or 0.0 for k in range(1, 11)]
    assert raw == sorted(raw)
    assert tree == sorted(tree)
    assert all(one <= other for one, other in zip(raw, tree, strict=True))
    assert raw[-1] == float("x = y" in codes)


def test_a_failure_scores_zero_and_not_none() -> None:
    scores = score_candidates([], "x = y", 2)
    assert scores == {
        "em@1": 0, "em@2": 0, "em_tree@1": 0, "em_tree@2": 0, "codebleu": 0, "codebleu.ngram": 0,
        "codebleu.weighted_ngram": 0, "codebleu.syntax": 0, "codebleu.dataflow": 0, "parses": 0,
        "codebleu-pypi": 0,
    }  # fmt: skip


def test_nothing_to_compare_with_scores_none() -> None:
    scores = score_candidates(["x = y"], None, 1)
    assert scores.pop("parses") == 1
    assert set(scores.values()) == {None}


def test_scoring_loads_no_model_library() -> None:
    program = (
        "import sys, evaluate.__main__, evaluate.prompt_style_search\n"
        "from evaluate.scoring import score_code\n"
        "score_code('x = y', 'x = z')\n"
        "print([name for name in ('torch', 'transformers', 'peft', 'gradio') if name in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"
    assert found.stderr == ""
