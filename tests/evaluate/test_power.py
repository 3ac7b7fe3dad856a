"""What a number of problems can show, against the tests of evaluate/stats.py and simulated comparisons."""

from __future__ import annotations

import numpy as np
import pytest

from evaluate.stats import (
    detectable_difference,
    holm_correction,
    mcnemar_test,
    needed_problems,
    power_text,
    smallest_significant_wins,
)


def p_of(wins: int, n: int) -> float:
    ids = [str(number) for number in range(n)]
    return mcnemar_test({id: int(id) < wins for id in ids}, dict.fromkeys(ids, False)).p


@pytest.mark.parametrize("comparisons", [1, 2, 4, 10])
def test_smallest_number_of_wins_is_that_of_the_test(comparisons: int) -> None:
    wins = smallest_significant_wins(comparisons)
    others = [1.0] * (comparisons - 1)
    assert holm_correction([p_of(wins, 40), *others])[0] <= 0.05
    assert holm_correction([p_of(wins - 1, 40), *others])[0] > 0.05


@pytest.mark.parametrize(("n", "comparisons"), [(14, 1), (14, 4), (60, 4), (120, 6), (543, 1)])
def test_difference_is_found_in_four_of_five_simulated_repeats(n: int, comparisons: int) -> None:
    difference = detectable_difference(n, comparisons)
    assert difference is not None
    wins = np.random.default_rng(1).binomial(n, difference, size=4_000)
    p_values = {int(won): p_of(int(won), n) for won in np.unique(wins)}
    found = np.mean([p_values[int(won)] <= 0.05 / comparisons for won in wins])
    assert found == pytest.approx(0.8, abs=0.025)


def test_rows_that_are_needed_are_the_inverse() -> None:
    for difference in (0.02, 0.1, 0.35, 0.9, 1.0):
        n = needed_problems(difference, 4)
        at_n, before = detectable_difference(n, 4), detectable_difference(n - 1, 4)
        assert at_n is not None
        assert at_n <= difference
        assert before is None or before > difference
    for wrong in (0.0, -0.1, 1.1):
        with pytest.raises(ValueError, match="difference"):
            needed_problems(wrong)


def test_few_rows_can_show_nothing() -> None:
    assert detectable_difference(5) is None
    assert detectable_difference(6) == pytest.approx(0.8 ** (1 / 6))
    assert "can show no difference" in power_text(5)
    assert power_text(14, 4) == (
        "14 rows can show no difference below 8 wins (57 points); a true difference of 64 points is shown in four of "
        "five repeats, if nothing is lost."
    )
