"""The recommendation of a run: which method, with which reasons, and how often it is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from evaluate.results import Result, Run
from evaluate.stats import detectable_difference
from evaluate.table import Recommendation, choose, family, recommend
from tasks.methods import parse_method

NAMES = ("zero-shot", "icl-8", "rag-2", "rag-8", "lora-mine", "lora-mine+rag-8")
METHODS = {name: parse_method(name, ["lora-mine"]) for name in NAMES}
Solved = Mapping[str, NDArray[np.bool_]]


def decide(solved: Solved) -> Recommendation:
    scores = {name: {str(index): float(value) for index, value in enumerate(array)} for name, array in solved.items()}
    return choose({name: METHODS[name] for name in solved}, scores, "em@1", seed=1)


def rows(n: int, **right: int) -> dict[str, NDArray[np.bool_]]:
    """Return n rows of each method, of which the first ones are right."""
    names = {name: name.replace("_", "-").replace("-and-", "+") for name in right}
    return {names[name]: np.arange(n) < count for name, count in right.items()}


def test_families_are_in_the_order_of_their_cost() -> None:
    assert [family(METHODS[name]) for name in NAMES] == [
        "zero-shot", "icl", "rag", "rag", "adapter", "adapter with examples",
    ]  # fmt: skip


def test_the_method_that_no_other_beats_is_recommended() -> None:
    found = decide(rows(80, zero_shot=0, icl_8=1, rag_8=11, lora_mine=64, lora_mine_and_rag_8=16))
    assert (found.method, found.family, found.adapter) == ("lora-mine", "adapter", "lora-mine")
    assert found.sentence == (
        "Fine-tune: lora-mine is right on 80.0 % of 80 rows (EM@1), zero-shot on 0.0 % (p < 0.001), icl-8 on 1.2 % "
        "(p < 0.001), rag-8 on 13.8 % (p < 0.001), lora-mine+rag-8 on 20.0 % (p < 0.001)."
    )
    assert len(found.comparisons) == 10


def test_of_equal_methods_the_one_that_costs_least_is_recommended() -> None:
    found = decide(rows(100, zero_shot=10, rag_2=60, rag_8=62, lora_mine=64))
    assert found.method == "rag-2"
    assert "No difference is shown to rag-8, lora-mine" in found.sentence


def test_zero_shot_is_recommended_where_all_others_are_worse() -> None:
    found = decide(rows(100, zero_shot=90, icl_8=40, lora_mine=50))
    assert (found.method, found.family) == ("zero-shot", "zero-shot")


def test_nothing_is_recommended_without_a_significant_difference() -> None:
    found = decide(rows(14, zero_shot=2, rag_8=4, lora_mine=5))
    assert (found.method, found.family, found.adapter) == (None, None, None)
    assert found.sentence.startswith(
        "Nothing is recommended: no method is shown to be better than zero-shot. 14 rows can show no difference below "
    )
    assert "The largest difference seen, 21.4 points of lora-mine, would take about" in found.sentence
    worse = decide(rows(14, zero_shot=4, lora_mine=3))
    assert "None was right more often than zero-shot." in worse.sentence
    few = decide(rows(4, zero_shot=0, lora_mine=4))
    assert few.method is None
    assert few.detectable_difference is None


def test_without_a_difference_nothing_is_recommended_in_95_of_100_repeats() -> None:
    """Six methods that are equally good; half of what one solves the others solve, too."""
    random = np.random.default_rng(3)
    wrong = 0
    for _ in range(400):
        hard = random.random(60)
        solved = {name: hard + random.normal(0, 0.5, 60) < 0.4 for name in NAMES}
        wrong += decide(solved).method is not None
    assert wrong <= 0.05 * 400


def test_a_difference_of_the_promised_size_is_found_in_about_80_of_100_repeats() -> None:
    """An adapter that solves what zero-shot solves, and as many more as the number of rows promises to show."""
    random = np.random.default_rng(4)
    promised = detectable_difference(60, comparisons=1)
    assert promised is not None
    found = 0
    for _ in range(400):
        base = random.random(60) < 0.2
        won = ~base & (random.random(60) < promised / 0.8)
        found += decide({"zero-shot": base, "lora-mine": base | won}).method == "lora-mine"
    assert 0.75 <= found / 400 <= 0.86


SETTINGS = {"seed": 1, "n": 40, "decoding": {"candidates": 1}}


def run_of(metric: str, **right: int) -> Run:
    run = Run(Path("run.jsonl"), SETTINGS, [{"id": f"p{index}"} for index in range(40)])
    for name, count in right.items():
        method = name.replace("_", "-")
        run.set_method(method, {"adapter": method if method.startswith("lora") else None})
        for index in range(40):
            scores = {metric: float(index < count), "codebleu": 0.5}
            run.add([Result(method, f"p{index}", scores | ({"tests": 1.0} if metric == "pass@1" else {}))])
    return run


@pytest.mark.parametrize("metric", ["em@1", "pass@1"])
def test_a_run_is_judged_by_tests_or_exact_match(metric: str) -> None:
    found = recommend(run_of(metric, zero_shot=2, rag_8=3, lora_mine=30))
    assert found is not None
    assert (found.method, found.metric, found.n) == ("lora-mine", metric, 40)
    assert found.values == {"zero-shot": 0.05, "rag-8": 0.075, "lora-mine": 0.75}


def test_a_run_without_zero_shot_or_with_missing_answers_has_no_recommendation() -> None:
    assert recommend(run_of("em@1", rag_8=3, lora_mine=30)) is None
    assert recommend(run_of("em@1", zero_shot=3)) is None
    incomplete = run_of("em@1", zero_shot=2, lora_mine=30)
    incomplete.set_method("rag-8", {"adapter": None})
    incomplete.add([replace(incomplete.results("zero-shot")[0], method="rag-8")])
    found = recommend(incomplete)
    assert found is not None
    assert set(found.values) == {"zero-shot", "lora-mine"}
