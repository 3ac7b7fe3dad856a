"""Metrics over results, and the cost of methods."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluate.metrics.basic import parses_score
from evaluate.results import Result
from evaluate.scoring import score_candidates
from evaluate.stats import (
    available_metrics,
    bootstrap_mean,
    count_generated_tokens,
    metric_title,
    metric_values,
    summarize,
    summarize_cost,
    wilson_interval,
)
from tests.evaluate.hostile import HOSTILE


def results(scores: list[Mapping[str, float | None]]) -> list[Result]:
    return [Result("m", f"p{index}", each) for index, each in enumerate(scores)]


def test_shares_have_wilson_intervals_and_means_bootstrap_intervals() -> None:
    made = results([{"em@1": 1.0, "codebleu": 0.3}, {"em@1": 0.0, "codebleu": 0.9}, {"em@1": 1.0, "codebleu": None}])
    share, mean = summarize(made, "em@1", 7), summarize(made, "codebleu", 7)
    assert share is not None
    assert (share.kind, share.n, share.interval) == ("wilson", 3, wilson_interval(2, 3))
    assert mean is not None
    assert (mean.kind, mean.n, mean.interval) == ("bootstrap", 2, bootstrap_mean([0.3, 0.9], 7))
    alike = summarize(results([{"codebleu": 0.3}] * 40), "codebleu", 7)
    assert alike is not None
    assert alike.kind == "wilson"
    assert alike.interval.value == pytest.approx(0.3)
    assert alike.interval.low < 0.2
    assert metric_values(made, "codebleu") == {"p0": 0.3, "p1": 0.9}
    assert summarize(made, "tests", 7) is None


def test_pass_at_k_is_a_share_only_if_every_score_is_zero_or_one() -> None:
    one = summarize(results([{"pass@1": 0.0}, {"pass@1": 1.0}]), "pass@1", 1)
    assert one is not None
    assert one.kind == "wilson"
    five = summarize(results([{"pass@1": 0.2}, {"pass@1": 1.0}]), "pass@1", 1)
    assert five is not None
    assert five.kind == "bootstrap"
    assert five.interval.value == pytest.approx(0.6)


@given(st.lists(st.dictionaries(st.sampled_from(["em@1", "tests", "parses"]), st.sampled_from([0.0, 1.0, None]))))
def test_every_metric_is_within_its_interval_and_bounds(scores: list[dict[str, float | None]]) -> None:
    made = results(list(scores))
    for metric in available_metrics(made):
        found = summarize(made, metric, 3)
        assert found is not None
        assert 0 <= found.interval.low <= found.interval.value <= found.interval.high <= 1
        assert found.n <= len(made)


def test_metrics_are_sorted_with_k_as_a_number() -> None:
    names = ["parses", "em@10", "em@2", "em@1", "codebleu", "pass@1", "tests", "em_tree@1", "other"]
    ordered = ["tests", "pass@1", "em@1", "em@2", "em@10", "em_tree@1", "codebleu", "parses", "other"]
    assert available_metrics(results([dict.fromkeys(names, 1.0)])) == ordered
    assert [metric_title(name) for name in ("em@10", "pass@5", "em_tree@1", "codebleu.dataflow", "other")] == [
        "EM@10", "Pass@5", "tree@1", "data flow", "other",
    ]  # fmt: skip


def test_every_score_has_a_display_order_and_a_title() -> None:
    scored = available_metrics(results([score_candidates(["x = y"], "x = y", 2), {"tests": 1.0, "pass@1": 1.0}]))
    assert scored[:2] == ["tests", "pass@1"]
    assert [metric_title(metric) for metric in scored[-2:]] == ["codebleu-pypi", "parses"]


def test_cost_covers_answered_problems_and_all_samples() -> None:
    candidates = ({"tokens": 5, "times": 3}, {"tokens": 10})
    made = [
        Result("m", "p0", candidates=candidates, seconds=2.0, prompt_tokens=30, tokens=5),
        Result("m", "p1", candidates=({"tokens": 15},), seconds=3.0, prompt_tokens=50, tokens=15),
        Result("m", "p2", error="Too long."),
    ]
    cost = summarize_cost(made, {"peak_memory_bytes": 7})
    assert [count_generated_tokens(each) for each in made] == [25, 15, 0]
    assert (cost.seconds, cost.prompt_tokens, cost.tokens, cost.generated) == (2.5, 40, 10, 20)
    assert cost.tokens_per_second == pytest.approx(40 / 5)
    assert cost.peak_memory_bytes == 7


def test_cost_without_answers_is_zero() -> None:
    cost = summarize_cost([Result("m", "p0", error="Too long.")], {})
    assert (cost.seconds, cost.tokens_per_second, cost.peak_memory_bytes) == (0, 0, None)
    assert summarize_cost([], {}).generated == 0


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_parse_rate_accepts_any_text(text: str) -> None:
    assert parses_score(text) in (0.0, 1.0)


@pytest.mark.parametrize(("code", "expected"), [("x = 1", 1), ("  x = 1", 1), ("", 0), ("# no", 0), ("x = (", 0)])
def test_text_parses_if_it_is_a_program_with_a_statement(code: str, expected: float) -> None:
    assert parses_score(code) == expected
