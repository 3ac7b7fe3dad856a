"""Ratings compared with closed forms and simulations, and the sampling of pairs."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from evalica import Winner, bradley_terry

from evaluate.arena import votes as arena_votes
from evaluate.arena.ratings import compute_ratings, point_ratings, sample_pair
from evaluate.arena.votes import MIN_VOTES, PairwiseComparison, Player, unordered_pair
from tests.evaluate.arena.votes import LORA, RAG, ZERO, make_votes, simulated

pytestmark = pytest.mark.slow

FOUR = [Player(name) for name in ("a", "b", "c", "d")]


@pytest.mark.parametrize(("wins", "losses", "ties", "bad"), [(12, 4, 0, 0), (7, 7, 3, 0), (10, 0, 0, 0), (5, 3, 2, 4)])
def test_ratings_of_two_methods_equal_the_closed_form(wins: int, losses: int, ties: int, bad: int) -> None:
    """The closed form is 400 log10((wins + 1/2) / (losses + 1/2)); a tie and both bad are half a win for each."""
    found = point_ratings(make_votes((LORA, ZERO), wins, losses, ties, bad))
    neither = (ties + bad) / 2
    assert found[LORA] - found[ZERO] == pytest.approx(
        400 * math.log10((wins + neither + 0.5) / (losses + neither + 0.5)), abs=0.01
    )
    assert (found[LORA] + found[ZERO]) / 2 == pytest.approx(1000)


def test_ties_and_both_bad_have_the_same_weight_and_separate_counts() -> None:
    ties = compute_ratings(make_votes((LORA, ZERO), 6, 3, ties=4))
    bad = compute_ratings(make_votes((LORA, ZERO), 6, 3, both_bad=4))
    assert ties.ratings[0].interval == bad.ratings[0].interval
    assert (ties.ratings[0].win_counts.ties, bad.ratings[0].win_counts.both_bad) == (4, 4)


def test_display_order_does_not_affect_ratings() -> None:
    votes = make_votes((LORA, ZERO), 9, 2, 3)
    swap: dict[arena_votes.Winner, arena_votes.Winner] = {
        "left": "right",
        "right": "left",
        "tie": "tie",
        "both bad": "both bad",
    }
    swapped = [PairwiseComparison(vote.right, vote.left, swap[vote.winner], vote.person) for vote in votes]
    assert compute_ratings(votes) == compute_ratings(swapped)


def test_beating_a_better_method_gives_a_higher_rating() -> None:
    """Without votes between LoRA and zero-shot, their distance is the sum of the two other distances."""
    found = point_ratings([*make_votes((LORA, RAG), 300, 100), *make_votes((RAG, ZERO), 300, 100)])
    assert found[LORA] > found[RAG] > found[ZERO]
    assert found[LORA] - found[RAG] == pytest.approx(400 * math.log10(3), abs=2)
    assert found[LORA] - found[ZERO] == pytest.approx(800 * math.log10(3), abs=4)


def test_ratings_of_many_votes_approach_the_maximum_likelihood() -> None:
    """evalica's fit, which has no prior ties, differs by less than one point."""
    votes = simulated(dict(zip(FOUR, (900, 950, 1050, 1100), strict=True)), 4000, 4000, random.Random(1))
    winners = {"left": Winner.X, "right": Winner.Y, "tie": Winner.Draw}
    plain = bradley_terry(
        [vote.left.method for vote in votes],
        [vote.right.method for vote in votes],
        [winners[vote.winner] for vote in votes],
        limit=10_000,
    ).scores
    mean = sum(math.log10(score) for score in plain) / len(plain)
    for player, rating in point_ratings(votes).items():
        assert rating == pytest.approx(1000 + 400 * (math.log10(plain[player.method]) - mean), abs=1)


def test_simulated_strengths_are_recovered() -> None:
    true = dict(zip(FOUR, (800, 950, 1050, 1200), strict=True))
    found = compute_ratings(simulated(true, 3000, 300, random.Random(2)), resamples=100)
    assert [rating.player for rating in found.ratings] == FOUR[::-1]
    for rating in found.ratings:
        assert rating.interval is not None
        assert rating.interval.value == pytest.approx(true[rating.player], abs=30)
    assert [rating.rank_range for rating in found.ratings] == [(index, index) for index in range(1, 5)]


@pytest.mark.parametrize(("gap", "votes", "people"), [(0, 60, 60), (300, 60, 60), (100, 60, 6)])
def test_intervals_have_their_nominal_coverage(gap: float, votes: int, people: int) -> None:
    """At least 90 % of the intervals over simulated votes contain the true rating; 24 runs of four methods."""
    true = dict(zip(FOUR, (1000 - gap, 1000 - gap / 3, 1000 + gap / 3, 1000 + gap), strict=True))
    rng, num_covered, num_intervals = random.Random(3), 0, 0
    for _ in range(24):
        for rating in compute_ratings(simulated(true, votes, people, rng), resamples=100).ratings:
            assert rating.interval is not None
            num_covered += rating.interval.low <= true[rating.player] <= rating.interval.high
            num_intervals += 1
    assert num_intervals == 96
    assert num_covered / num_intervals >= 0.9


def test_votes_of_few_people_give_wider_intervals() -> None:
    """The same outcomes come from 200 people, and from four people who always vote alike."""
    votes = make_votes((LORA, ZERO), 150, 50)
    many = compute_ratings(votes).ratings[0].interval
    few = compute_ratings(
        [PairwiseComparison(vote.left, vote.right, vote.winner, str(index // 50)) for index, vote in enumerate(votes)]
    )
    rating = few.ratings[0].interval
    assert many is not None
    assert rating is not None
    assert rating.value == many.value
    assert rating.high - rating.low > 2 * (many.high - many.low)
    assert (few.people, few.votes) == (4, 200)


def test_winning_all_votes_gives_a_finite_interval() -> None:
    rating = compute_ratings(make_votes((LORA, ZERO), 10, 0)).ratings[0].interval
    assert rating is not None
    assert rating.high - rating.low > 100


def test_intervals_depend_on_votes_and_seed_only() -> None:
    votes = make_votes((LORA, ZERO), 8, 6)
    assert compute_ratings(votes, seed=1) == compute_ratings(votes, seed=1)
    assert compute_ratings(votes, seed=1) != compute_ratings(votes, seed=2)


def test_overlapping_intervals_share_ranks() -> None:
    found = compute_ratings(make_votes((LORA, ZERO), 8, 7))
    assert [rating.rank_range for rating in found.ratings] == [(1, 2), (1, 2)]


def test_few_votes_give_no_ratings() -> None:
    found = compute_ratings(make_votes((LORA, ZERO), MIN_VOTES - 1, 0))
    assert [rating.interval for rating in found.ratings] == [None, None]
    assert found.no_ratings_reason.startswith("Too few votes to say")
    assert compute_ratings([]).no_ratings_reason.endswith("There are none.")
    assert compute_ratings(make_votes((LORA, ZERO), MIN_VOTES, 0)).no_ratings_reason == ""


def test_method_with_two_votes_is_unrated_while_others_are_rated() -> None:
    found = compute_ratings([*make_votes((LORA, ZERO), 8, 6), *make_votes((RAG, ZERO), 1, 1)])
    assert {rating.player: rating.interval is None for rating in found.ratings} == {
        LORA: False, ZERO: False, RAG: True,
    }  # fmt: skip
    assert found.ratings[-1].player == RAG
    assert found.unrated_reason == ""


def test_unconnected_groups_are_not_rated_together() -> None:
    found = compute_ratings([*make_votes((FOUR[0], FOUR[1]), 9, 5), *make_votes((FOUR[2], FOUR[3]), 12, 8)])
    assert {rating.player for rating in found.ratings if rating.interval} == {FOUR[2], FOUR[3]}
    assert found.unrated_reason.startswith("2 methods have enough votes")


def test_pair_counts_contain_every_pair_in_both_orders() -> None:
    matrix = compute_ratings(make_votes((LORA, ZERO), 3, 1, 2, 2)).pair_counts
    lora, zero = matrix[LORA, ZERO], matrix[ZERO, LORA]
    assert (lora.wins, lora.losses, lora.ties, lora.both_bad, lora.win_rate) == (3, 1, 2, 2, 0.625)
    assert (zero.wins, zero.losses, zero.win_rate) == (1, 3, 0.375)


PLAYERS = [ZERO, RAG, LORA]


def test_all_ordered_pairs_are_drawn_equally_often() -> None:
    rng = random.Random(0)
    drawn = Counter(sample_pair(PLAYERS, {}, rng) for _ in range(6000))
    assert len(drawn) == 6
    assert all(850 < count < 1150 for count in drawn.values())


def test_pairs_with_few_votes_are_drawn_more_often_but_not_always() -> None:
    rng = random.Random(0)
    votes = {unordered_pair(ZERO, RAG): 1, unordered_pair(ZERO, LORA): 2}
    drawn = Counter(unordered_pair(*(sample_pair(PLAYERS, votes, rng) or (ZERO, RAG))) for _ in range(4000))
    assert drawn[unordered_pair(RAG, LORA)] > 3000
    assert drawn[unordered_pair(ZERO, RAG)] > drawn[unordered_pair(ZERO, LORA)] > 20


def test_only_allowed_pairs_are_drawn() -> None:
    rng = random.Random(0)
    wanted = unordered_pair(ZERO, LORA)
    assert {
        unordered_pair(*(sample_pair(PLAYERS, {}, rng, lambda pair: pair == wanted) or (RAG, RAG))) for _ in range(20)
    } == {wanted}
    assert sample_pair(PLAYERS, {}, rng, lambda pair: False) is None
    assert sample_pair([ZERO, ZERO], {}, rng) is None
