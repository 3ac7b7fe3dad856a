from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from errors import PromptOrTuneError
from evaluate.metrics.basic import exact_match, exact_match_at_k, syntax_tree_match
from tests.evaluate.hostile import HOSTILE


@given(st.text())
def test_code_matches_itself_whatever_stands_around_it(code: str) -> None:
    assert exact_match(code, f"\n {code}\t\n")


def test_one_different_letter_is_no_match() -> None:
    assert not exact_match("x = 1", "x = 2")
    assert not exact_match("x = 1", "x  = 1")


@given(st.lists(st.sampled_from(["a", "b", "c", ""]), min_size=1, max_size=10))
def test_more_candidates_never_lose_a_match(candidates: list[str]) -> None:
    hits = [exact_match_at_k("a", candidates, k) for k in range(1, len(candidates) + 1)]
    assert hits == sorted(hits)
    assert hits[-1] == ("a" in candidates)


def test_k_above_the_number_asked_for_is_an_error() -> None:
    with pytest.raises(PromptOrTuneError, match="EM@3 is undefined for 2 candidates"):
        exact_match_at_k("a", ["b", "c"], 3)
    with pytest.raises(PromptOrTuneError, match="EM@0"):
        exact_match_at_k("a", ["b"], 0)
    with pytest.raises(PromptOrTuneError, match="2 candidates were asked for and 3 are here"):
        exact_match_at_k("a", ["b", "c", "d"], 1, num_candidates=2)


def test_merged_duplicates_leave_a_shorter_list_that_is_still_scored_at_ten() -> None:
    assert exact_match_at_k("a", ["b", "a"], 10, num_candidates=10)
    assert not exact_match_at_k("a", ["b", "a"], 1, num_candidates=10)
    assert not exact_match_at_k("a", [], 10, num_candidates=10)


def test_equal_trees_forgive_quotes_and_brackets_and_nothing_more() -> None:
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
