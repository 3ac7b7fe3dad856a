"""Scores of results: text metrics, and tests in the real sandbox."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluate.generate import ProgressBar
from evaluate.journal import read_records
from evaluate.results import Result, Run, problem_record, read_run, scores_path
from evaluate.results import tests_of as stored_tests
from evaluate.sandbox.sandbox import Sandbox
from evaluate.scoring import (
    NO_DATA_FLOW,
    NO_REFERENCE,
    count_unscored,
    score_candidates,
    score_code,
    score_run,
    score_tests,
)
from tasks.problem import AssertTest, Problem, StdioTest
from tests.evaluate.hostile import HOSTILE

pytestmark = pytest.mark.slow

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


def test_correct_answer_scores_one() -> None:
    scores = {score.metric: score for score in score_code("x = y\n", "x = y")}
    assert list(scores) == METRICS
    assert all(score.value == 1 and not score.reason for score in scores.values())


def test_without_a_reference_all_scores_except_parses_have_a_reason() -> None:
    for reference in (None, "", "  \n"):
        scores = score_code("x = y", reference)
        assert [score.metric for score in scores] == METRICS
        assert [(score.value, score.reason) for score in scores[:-1]] == [(None, NO_REFERENCE)] * 7
        assert scores[-1].value == 1


def test_undefined_data_flow_has_a_reason() -> None:
    scores = {score.metric: score for score in score_code("print(max(x))", "print(sum(x))")}
    assert scores["codebleu.dataflow"].value is None
    assert scores["codebleu.dataflow"].reason == NO_DATA_FLOW
    assert scores["em"].value == 0


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_answers_are_scored(text: str) -> None:
    assert all(score.value is None or 0 <= score.value <= 1 for score in score_code(text, "x = y"))


@given(st.lists(st.sampled_from(["x = y", "x=y", "x = 1", ""]), max_size=10))
def test_matches_are_monotonic_in_k_and_at_least_as_many_by_tree(codes: list[str]) -> None:
    scores = score_candidates(codes, "x = y", 10)
    raw = [scores[f"em@{k}"] or 0.0 for k in range(1, 11)]
    tree = [scores[f"em_tree@{k}"] or 0.0 for k in range(1, 11)]
    assert raw == sorted(raw)
    assert tree == sorted(tree)
    assert all(one <= other for one, other in zip(raw, tree, strict=True))
    assert raw[-1] == float("x = y" in codes)


def test_failed_answer_has_text_scores_of_zero() -> None:
    scores = score_candidates([], "x = y", 2)
    assert scores == {
        "em@1": 0, "em@2": 0, "em_tree@1": 0, "em_tree@2": 0, "codebleu": 0, "codebleu.ngram": 0,
        "codebleu.weighted_ngram": 0, "codebleu.syntax": 0, "codebleu.dataflow": 0, "parses": 0,
        "codebleu-pypi": 0,
    }  # fmt: skip


def test_without_a_reference_scores_are_none() -> None:
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


RIGHT, HALF, WRONG = "def f(x): return x + 1", "def f(x): return 2", "def f(x): return None"
TESTS = (AssertTest("assert f(1) == 2"), AssertTest("assert f(2) == 3"))
SAMPLE = {"mode": "sample", "candidates": 5, "max_new_tokens": 64}


def candidate(code: str, times: int = 1) -> dict[str, Any]:
    return {"text": code, "code": code, "logprob": -1.0, "tokens": 5, "times": times}


def result(*candidates: Mapping[str, Any], error: str | None = None) -> Result:
    return Result("zero-shot", "p0", candidates=candidates, error=error)


def scored(sandbox: Sandbox, made: Result, decoding: Mapping[str, Any] = SAMPLE) -> dict[str, float | None]:
    [(_, scores, _)] = score_tests([(made, TESTS)], decoding, sandbox)
    return scores


def made_run(path: Path, results: list[Result], decoding: Mapping[str, Any] = SAMPLE) -> Run:
    settings = {"decoding": dict(decoding), "seed": 42}
    described = [problem_record(Problem("p0", "add one", RIGHT, TESTS)), problem_record(Problem("p1", "say", "x = y"))]
    run = Run(path, settings, described, {"versions": {}})
    run.update_method("zero-shot", {"adapter": None})
    run.add(results)
    run.save()
    run.close()
    return read_run(path)


def score_and_count(run: Run, sandbox: Sandbox | None) -> int:
    """Score the run; return the number of scorings."""
    totals: list[int] = []

    def begin(total: int) -> ProgressBar:
        totals.append(total)
        return ProgressBar(total, io.StringIO())

    score_run(run, begin, sandbox)
    return sum(totals)


def test_equal_samples_are_counted_separately(sandbox: Sandbox) -> None:
    scores = scored(sandbox, result(candidate(RIGHT, 2), candidate(HALF, 2), candidate(WRONG)))
    assert scores["tests"] == pytest.approx((2 * 1 + 2 * 0.5 + 0) / 5)
    assert scores["pass@1"] == pytest.approx(2 / 5)
    assert scores["pass@2"] == pytest.approx(1 - (3 * 2) / (5 * 4))
    assert scores["pass@5"] == 1


def test_pass_at_k_is_none_above_the_number_of_samples(sandbox: Sandbox) -> None:
    scores = scored(sandbox, result(candidate(RIGHT), candidate(WRONG)))
    assert [scores[f"pass@{k}"] for k in (1, 2, 3, 5)] == [0.5, 1, None, None]


def test_failed_answer_has_test_scores_of_zero(sandbox: Sandbox) -> None:
    scores = scored(sandbox, result(error="Too long."))
    assert scores == {"tests": 0, **{f"pass@{k}": 0 for k in range(1, 6)}}


def test_only_the_first_beam_is_run_and_pass_at_k_is_undefined(sandbox: Sandbox) -> None:
    made = result(candidate(HALF, 3), candidate(RIGHT))
    [(_, scores, checks)] = score_tests([(made, TESTS)], {"mode": "beam", "candidates": 10}, sandbox)
    assert scores == {"tests": 0.5}
    assert [[check["passed"] for check in each] for each in checks] == [[True, False]]
    assert checks[0][1]["reason"] == "f(2) gave 2, expected 3"


def test_hostile_candidates_do_not_affect_others(sandbox: Sandbox) -> None:
    codes = ["import os\nos._exit(0)", "raise SystemExit", "f = lambda x: " + "(" * 500, RIGHT]
    made = [(replace(result(candidate(code)), problem=f"p{index}"), TESTS) for index, code in enumerate(codes)]
    greedy = {"mode": "greedy", "candidates": 1}
    found = {each.problem: scores for each, scores, _ in score_tests(made, greedy, sandbox)}
    assert {problem: scores["pass@1"] for problem, scores in found.items()} == {"p0": 0, "p1": 0, "p2": 0, "p3": 1}


def test_text_and_test_scores_are_stored_and_computed_once(tmp_path: Path, sandbox: Sandbox) -> None:
    path = tmp_path / "run.jsonl"
    run = made_run(path, [result(candidate(RIGHT, 5)), replace(result(candidate("x = y", 5)), problem="p1")])
    assert score_and_count(run, sandbox) == 3  # two texts, and the tests of the only problem with tests
    first, second = read_run(path).results("zero-shot")
    assert (first.scores["pass@5"], first.scores["em@1"], second.scores["em@1"]) == (1, 1, 1)
    assert "tests" not in second.scores
    assert [check["passed"] for check in first.checks[0]] == [True, True]
    assert read_run(path).scored_with["tests"]["layer"] == sandbox.layer
    assert score_and_count(read_run(path), sandbox) == 0


def test_scoring_without_a_sandbox_runs_no_code_and_preserves_test_scores(tmp_path: Path, sandbox: Sandbox) -> None:
    path = tmp_path / "run.jsonl"
    run = made_run(path, [result(candidate(RIGHT, 5))])
    assert score_and_count(run, None) == 1
    assert "tests" not in read_run(path).results("zero-shot")[0].scores
    assert score_and_count(read_run(path), sandbox) == 1
    assert score_and_count(read_run(path), None) == 0
    assert read_run(path).results("zero-shot")[0].scores["tests"] == 1
    path.unlink()
    other = made_run(path, [result(candidate(WRONG, 5))])
    assert score_and_count(other, None) == 1
    assert list(read_run(path).scored_with) == ["text"], "test scores of other candidates are not used"
    assert count_unscored(read_run(path)) == 0


def test_changed_layer_metric_or_candidate_is_scored_again(
    tmp_path: Path, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.jsonl"
    run = made_run(path, [result(candidate(RIGHT, 5))])
    assert score_and_count(run, sandbox) == 2
    with monkeypatch.context() as patch:
        patch.setattr("evaluate.scoring.METRICS_VERSION", 99)
        assert score_and_count(read_run(path), sandbox) == 1  # only the texts
    monkeypatch.setattr(sandbox, "layer", "another")
    assert score_and_count(read_run(path), sandbox) == 2  # the tests, and the texts again by the current metrics
    kinds = [record["kind"] for record in read_records(scores_path(path))[0]]
    assert sorted(kinds) == ["key", "key", "scores", "scores"], "stale scores are removed"
    monkeypatch.undo()
    path.unlink()
    other = made_run(path, [result(candidate(WRONG, 5))])
    assert other.results("zero-shot")[0].scores == {}, "scores of other candidates are not used"
    assert score_and_count(other, sandbox) == 2
    assert read_run(path).results("zero-shot")[0].scores["pass@1"] == 0


def test_tests_of_a_problem_are_restored_from_its_record() -> None:
    problem = Problem("p", "do", None, (*TESTS, StdioTest("1\n", "2\n")), "f", "interview")
    record = problem_record(problem)
    assert stored_tests(record) == problem.tests
    assert (record["entry_point"], record["difficulty"]) == ("f", "interview")
    assert stored_tests({"id": "p"}) == ()
