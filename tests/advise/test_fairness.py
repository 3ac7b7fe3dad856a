"""Fairness of an advice, simulated: it seldom recommends anything without a difference, and finds the one it promises.

The rows differ in how hard they are, which the families share. Choices on validation rows cannot change either rate,
because the test rows take no part in them.
"""

from __future__ import annotations

import random

from advise.result import FAMILY_LABELS
from evaluate.stats import detectable_difference
from evaluate.table import choose
from tasks.methods import parse_method
from tests.advise.results import FINALISTS, TRIAL

REPEATS, ROWS = 400, 120
METHODS = {
    label: parse_method(FINALISTS[family], [TRIAL.name]) for family, label in FAMILY_LABELS.items()
}  # fmt: skip


def scores(rng: random.Random, *, copies: bool) -> dict[str, dict[str, float]]:
    """Return scores of equal families: independent answers to rows of mixed difficulty, or copies of one family."""
    hardness = [rng.random() ** 2 for _ in range(ROWS)]
    first = {str(row): float(rng.random() < hardness[row]) for row in range(ROWS)}
    return {
        label: first if copies else {str(row): float(rng.random() < hardness[row]) for row in range(ROWS)}
        for label in METHODS
    }


def recommended(found: dict[str, dict[str, float]]) -> str | None:
    return choose(METHODS, found, "pass@1", 42).family


def test_without_a_difference_nothing_is_recommended_in_95_of_100_repeats() -> None:
    rng = random.Random(1)
    wrong = sum(recommended(scores(rng, copies=False)) is not None for _ in range(REPEATS))
    assert wrong <= 0.05 * REPEATS


def test_labels_shuffled_within_each_row_give_no_recommendation() -> None:
    """Rows of a real difference, whose answers are dealt out to the families at random."""
    rng = random.Random(2)
    wrong = 0
    for _ in range(REPEATS):
        found: dict[str, dict[str, float]] = {label: {} for label in METHODS}
        for row in range(ROWS):
            answers = [float(rng.random() < share) for share in (0.0, 0.02, 0.1, 0.7, 0.6)]
            rng.shuffle(answers)
            for label, value in zip(METHODS, answers, strict=True):
                found[label][str(row)] = value
        wrong += recommended(found) is not None
    assert wrong <= 0.05 * REPEATS


def test_copies_of_one_method_give_no_recommendation() -> None:
    rng = random.Random(3)
    assert all(recommended(scores(rng, copies=True)) is None for _ in range(50))


def test_difference_of_the_promised_size_is_found_in_about_four_of_five_repeats() -> None:
    rng = random.Random(4)
    promised = detectable_difference(ROWS, len(METHODS) * (len(METHODS) - 1) // 2)
    assert promised is not None
    hits = 0
    for _ in range(REPEATS):
        found = {label: {str(row): 0.0 for row in range(ROWS)} for label in METHODS}
        found["adapter"] = {str(row): float(rng.random() < promised) for row in range(ROWS)}
        hits += recommended(found) == "adapter"
    assert 0.74 * REPEATS <= hits <= 0.9 * REPEATS
