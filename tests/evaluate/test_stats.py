"""Confidence intervals and paired tests, compared with scipy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as oracle

from errors import PromptOrTuneError
from evaluate.stats import bootstrap_mean, holm_correction, mcnemar_test, paired_bootstrap, wilson_interval
from tests import messages

PS = st.lists(st.floats(0, 1), max_size=12)


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_equals_that_of_scipy(case: tuple[int, int]) -> None:
    successes, n = case
    expected = oracle.binomtest(successes, n).proportion_ci(method="wilson")
    found = wilson_interval(successes, n)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert 0 <= found.low <= found.value <= found.high <= 1


@given(st.lists(st.floats(0, 1), min_size=1, max_size=80))
def test_wilson_interval_of_scores_contains_their_mean(scores: list[float]) -> None:
    found = wilson_interval(min(sum(scores), len(scores)), len(scores))
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.value == pytest.approx(sum(scores) / len(scores))


def test_wilson_half_width_for_543_problems() -> None:
    found = wilson_interval(round(0.39 * 543), 543)
    assert (found.high - found.low) / 2 == pytest.approx(0.041, abs=0.0005)


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (3, 2), (-1, 5)])
def test_invalid_proportion_raises(successes: int, n: int) -> None:
    with pytest.raises(PromptOrTuneError):
        wilson_interval(successes, n)


def test_bootstrap_interval_agrees_with_the_t_interval_of_many_values() -> None:
    values = np.random.default_rng(1).beta(2, 5, 120)
    low, high = oracle.t.interval(0.95, len(values) - 1, values.mean(), oracle.sem(values))
    found = bootstrap_mean(list(values), seed=3)
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.003)


def test_bootstrap_is_reproducible_with_the_same_seed() -> None:
    values = [0.1, 0.7, 0.4, 0.9]
    assert bootstrap_mean(values, 1) == bootstrap_mean(values, 1)
    assert bootstrap_mean([*values] * 9, 1) != bootstrap_mean([*values] * 9, 2)


def test_one_value_is_its_own_interval_and_no_value_raises() -> None:
    found = bootstrap_mean([0.25])
    assert (found.value, found.low, found.high) == (0.25, 0.25, 0.25)
    with pytest.raises(PromptOrTuneError):
        bootstrap_mean([])


def test_paired_difference_agrees_with_the_paired_t_test_on_many_values() -> None:
    generator = np.random.default_rng(4)
    a = dict(zip(map(str, range(400)), generator.normal(0.50, 0.2, 400), strict=True))
    b = {key: value - 0.02 + generator.normal(0, 0.15) for key, value in a.items()}
    found = paired_bootstrap(a, b, seed=5)
    expected = oracle.ttest_rel(list(a.values()), list(b.values()))
    interval = expected.confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=0.002)
    assert found.p == pytest.approx(expected.pvalue, abs=0.02)
    assert found.n == 400


@pytest.mark.parametrize("n", [5, 12, 60])
def test_p_equals_that_of_scipys_paired_permutation_test(n: int) -> None:
    generator = np.random.default_rng(n)
    left, right = generator.normal(0.3, 1, n), generator.normal(0, 1, n)
    expected = oracle.permutation_test(
        (left, right),
        lambda a, b, axis: (a - b).mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=10_000,
        rng=np.random.default_rng(1),
    )
    keys = [str(index) for index in range(n)]
    found = paired_bootstrap(dict(zip(keys, left, strict=True)), dict(zip(keys, right, strict=True)))
    assert found.p == pytest.approx(expected.pvalue, abs=1e-9 if n <= 12 else 0.02)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=13))
def test_p_of_binary_scores_equals_mcnemars(cases: list[tuple[bool, bool]]) -> None:
    a = {str(index): left for index, (left, _) in enumerate(cases)}
    b = {str(index): right for index, (_, right) in enumerate(cases)}
    found = paired_bootstrap({key: float(value) for key, value in a.items()}, {key: float(b[key]) for key in b})
    assert found.p == pytest.approx(mcnemar_test(a, b).p)


def test_p_of_four_differences_of_one_sign_is_an_eighth() -> None:
    zero = dict.fromkeys("abcd", 0.0)
    assert paired_bootstrap({"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.4}, zero).p == pytest.approx(0.125)


def test_no_difference_has_p_one_and_a_clear_one_a_small_p() -> None:
    same = {str(index): index / 20 for index in range(20)}
    assert paired_bootstrap(same, same).p == 1.0
    other = {key: value + 0.3 for key, value in same.items()}
    found = paired_bootstrap(other, same)
    assert found.p < 0.001
    assert found.low == pytest.approx(0.3)


def test_swapping_the_methods_negates_the_difference() -> None:
    a = {str(index): (index * 7 % 10) / 10 for index in range(30)}
    b = {str(index): (index * 3 % 10) / 10 for index in range(30)}
    one, other = paired_bootstrap(a, b), paired_bootstrap(b, a)
    assert one.value == pytest.approx(-other.value)
    assert one.low == pytest.approx(-other.high)
    assert one.p == pytest.approx(other.p, abs=1e-3)


def test_different_problems_raise() -> None:
    with pytest.raises(PromptOrTuneError, match=messages.DIFFERENT_PROBLEMS):
        paired_bootstrap({"a": 1.0}, {"b": 1.0})
    with pytest.raises(PromptOrTuneError, match=messages.DIFFERENT_PROBLEMS):
        mcnemar_test({"a": True}, {"a": True, "b": False})


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60))
def test_mcnemar_equals_the_exact_binomial_test_of_the_disagreements(cases: list[tuple[bool, bool]]) -> None:
    a = {str(index): left for index, (left, _) in enumerate(cases)}
    b = {str(index): right for index, (_, right) in enumerate(cases)}
    found = mcnemar_test(a, b)
    split = found.only_a + found.only_b
    assert split == sum(left != right for left, right in cases)
    assert found.p == pytest.approx(oracle.binomtest(found.only_a, split).pvalue if split else 1.0)
    assert found.p == pytest.approx(mcnemar_test(b, a).p)


def test_holm_correction_of_a_worked_example() -> None:
    # Holm (1979), calculated by hand: 0.01 * 3, 0.02 * 2, 0.04 * 1, each at least the previous one.
    assert holm_correction([0.02, 0.01, 0.04]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm_correction([]) == []


@given(PS)
def test_holm_correction_is_between_the_raw_p_and_bonferroni_and_monotonic(ps: list[float]) -> None:
    adjusted = holm_correction(ps)
    for raw, value in zip(ps, adjusted, strict=True):
        assert raw <= value <= min(1.0, raw * len(ps)) or value == pytest.approx(raw)
    ranked = [value for _, value in sorted(zip(ps, adjusted, strict=True))]
    assert ranked == sorted(ranked)
