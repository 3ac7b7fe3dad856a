"""Exact match, parse rate and Pass@k, compared with their definitions."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from errors import PromptOrTuneError
from evaluate.metrics import basic as module
from evaluate.metrics.basic import exact_match, exact_match_at_k, pass_at_k, syntax_tree_match
from tests import messages
from tests.evaluate.hostile import HOSTILE


@given(st.text())
def test_exact_match_ignores_surrounding_blanks(code: str) -> None:
    assert exact_match(code, f"\n {code}\t\n")


def test_exact_match_fails_for_one_different_character() -> None:
    assert not exact_match("x = 1", "x = 2")
    assert not exact_match("x = 1", "x  = 1")


@given(st.lists(st.sampled_from(["a", "b", "c", ""]), min_size=1, max_size=10))
def test_em_at_k_is_monotonic_in_k(candidates: list[str]) -> None:
    hits = [exact_match_at_k("a", candidates, k) for k in range(1, len(candidates) + 1)]
    assert hits == sorted(hits)
    assert hits[-1] == ("a" in candidates)


def test_k_above_the_number_of_candidates_raises() -> None:
    with pytest.raises(PromptOrTuneError, match=messages.EM_AT_3_UNDEFINED):
        exact_match_at_k("a", ["b", "c"], 3)
    with pytest.raises(PromptOrTuneError, match=messages.EM_AT_0):
        exact_match_at_k("a", ["b"], 0)
    with pytest.raises(PromptOrTuneError, match=messages.TOO_MANY_CANDIDATES):
        exact_match_at_k("a", ["b", "c", "d"], 1, num_candidates=2)


def test_em_at_10_accepts_fewer_candidates_after_merging_duplicates() -> None:
    assert exact_match_at_k("a", ["b", "a"], 10, num_candidates=10)
    assert not exact_match_at_k("a", ["b", "a"], 1, num_candidates=10)
    assert not exact_match_at_k("a", [], 10, num_candidates=10)


def test_syntax_tree_match_ignores_only_quotes_brackets_and_comments() -> None:
    assert syntax_tree_match("x = ('a')", 'x="a" # same')
    assert not syntax_tree_match("x = 1", "x = 1.0")
    assert not syntax_tree_match("x = 1", "y = 1")
    assert not syntax_tree_match("", "")
    assert not syntax_tree_match("x =", "x =")


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_never_raises(text: str) -> None:
    assert exact_match(text, text)
    assert syntax_tree_match("x = 1", text) is False
    assert syntax_tree_match(text, text) in (True, False)


COUNTS = st.integers(1, 400).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n)))
SAMPLES = st.integers(1, 6).flatmap(
    lambda tests: st.lists(st.lists(st.booleans(), min_size=tests, max_size=tests), min_size=1, max_size=8)
)


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_equals_the_share_of_draws_with_a_correct_sample(n: int) -> None:
    for c, k in itertools.product(range(n + 1), range(1, n + 1)):
        draws = list(itertools.combinations(range(n), k))
        successful_draws = sum(any(sample < c for sample in draw) for draw in draws)
        assert pass_at_k(n, c, k) == pytest.approx(successful_draws / len(draws), abs=1e-12)


@given(COUNTS)
def test_pass_at_k_is_exact_for_huge_binomials(counts: tuple[int, int, int]) -> None:
    n, c, k = counts
    exact = 1 - math.comb(n - c, k) / math.comb(n, k)
    assert pass_at_k(n, c, k) == pytest.approx(exact, abs=1e-9)


@given(COUNTS)
def test_pass_at_k_is_in_bounds_and_monotonic(counts: tuple[int, int, int]) -> None:
    n, c, k = counts
    value = pass_at_k(n, c, k)
    assert 0 <= value <= 1
    assert (value == 0) == (c == 0)
    assert k == n or pass_at_k(n, c, k + 1) >= value - 1e-12
    assert c == n or pass_at_k(n, c + 1, k) >= value - 1e-12
    assert pass_at_k(n, n, k) == 1


def test_pass_at_1_equals_the_share_of_correct_samples() -> None:
    assert pass_at_k(5, 2, 1) == pytest.approx(0.4)
    assert pass_at_k(200, 3, 100) == pytest.approx(1 - math.comb(197, 100) / math.comb(200, 100))


@pytest.mark.parametrize(("n", "c", "k"), [(1, 0, 2), (5, 5, 6), (5, 1, 0), (0, 0, 1), (5, 1, -1)])
def test_pass_at_k_raises_for_k_above_the_number_of_samples(n: int, c: int, k: int) -> None:
    with pytest.raises(PromptOrTuneError, match=messages.PASS_AT_K_UNDEFINED.format(k=k, n=n)):
        pass_at_k(n, c, k)


@pytest.mark.parametrize("c", [-1, 6])
def test_impossible_counts_raise(c: int) -> None:
    with pytest.raises(PromptOrTuneError, match=messages.IMPOSSIBLE_COUNTS):
        pass_at_k(5, c, 1)


@given(SAMPLES)
def test_share_of_tests_is_the_mean_over_samples(samples: list[list[bool]]) -> None:
    value = module.test_pass_rate(samples)
    assert 0 <= value <= 1
    assert value == pytest.approx(sum(map(sum, samples)) / (len(samples) * len(samples[0])))
    assert module.test_pass_rate([*samples, [True] * len(samples[0])]) >= value - 1e-12
    assert (value == 1) == all(map(all, samples))


def test_share_of_tests_requires_the_same_tests_for_each_sample() -> None:
    assert module.test_pass_rate([[True, False], [True, True]]) == pytest.approx(0.75)
    empty: list[list[list[bool]]] = [[], [[], []]]
    for samples in empty:
        with pytest.raises(PromptOrTuneError, match=messages.TEST_SHARE_UNDEFINED):
            module.test_pass_rate(samples)
    with pytest.raises(PromptOrTuneError, match=messages.DIFFERENT_TEST_COUNTS):
        module.test_pass_rate([[True], [True, False]])
