"""Ratings from votes: Bradley and Terry's model (Biometrika 39, 1952), fitted by evalica, with bootstrap intervals.

The model says that GroupT beats B with probability a / (a + b). Ratings are 1000 + 400 log10(strength), strengths having a
geometric mean of 1: the methods' mean is 1000, and one that is 400 points ahead wins ten times as often as it loses.

A tie counts as half a win for each side, and so does 'both bad', as Chatbot Arena does (Chiang et al., ICML 2024): it
does not tell the two apart either. How often a method was in a 'both bad' is shown beside its rating.

Where a method has won or lost everything the likelihood has no maximum. So every method gets half a vote of tie in
advance, spread evenly over the pairs that have met; between two methods this is the half that Haldane and Anscombe add
to both counts of an odds ratio (Biometrika 43, 1956), and their distance is 400 log10((wins + 1/2) / (losses + 1/2)).

Intervals are percentile bootstrap over people and then over each drawn person's votes (Davison and Hinkley, 1997, 3.8):
who votes often is of one mind, so their votes are no independent ones. Of one person only the votes are drawn. The
votes given in advance are drawn along, and weigh at random (gamma, as in Rubin's Bayesian bootstrap, Annals of
Statistics 9, 1981): else they would hide that after few votes a method could be far better or worse than it looks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from evaluate.arena.fit import fit_rating_intervals, fit_ratings
from evaluate.arena.tallies import MIN_VOTES, MIN_VOTES_IN_GROUP, Comparison, WinCounts, count_wins, rated_players
from evaluate.arena.vote import Pair, Player
from evaluate.stats import Interval

RESAMPLES = 1000


@dataclass(frozen=True)
class Rating:
    """A method's rating with its interval, and the places it may have by the intervals; None where nothing is said.

    `tally` counts all its votes, those against methods without a rating too.
    """

    player: Player
    win_counts: WinCounts
    interval: Interval | None = None
    rank_range: tuple[int, int] | None = None


@dataclass(frozen=True)
class RatingTable:
    """All methods, best first, those without a rating last. `matrix` has each pair that met, from both sides.

    `reason` says in one sentence why nobody has a rating, `apart` why some have none; '' where that is not so.
    """

    ratings: tuple[Rating, ...] = ()
    pair_counts: Mapping[Pair, WinCounts] = field(default_factory=dict)
    votes: int = 0
    people: int = 0
    no_ratings_reason: str = ""
    unrated_reason: str = ""

    def get(self, player: Player) -> Rating | None:
        return next((standing for standing in self.ratings if standing.player == player), None)


def compute_ratings(comparisons: Sequence[Comparison], seed: int = 0, resamples: int = RESAMPLES) -> RatingTable:
    """The ratings of all methods in these votes, the same for the same votes and seed.

    Rated is the largest group of methods that have met each other directly or through others, each with MIN_VOTES_IN_GROUP votes
    in the group and MIN_VOTES in all: between groups that never met nothing can be said.
    """
    matrix = count_wins(comparisons)
    totals: dict[Player, WinCounts] = {}
    for (player, _), tally in matrix.items():
        totals[player] = totals.get(player, WinCounts()).add(tally)
    rated = rated_players(matrix)
    chosen = [bout for bout in comparisons if bout.left in rated and bout.right in rated]
    found = fit_rating_intervals(chosen, sorted(rated), seed, resamples) if rated else {}
    places = _rank_ranges(found)
    standings = [Rating(player, tally, found.get(player), places.get(player)) for player, tally in totals.items()]
    standings.sort(
        key=lambda each: (-each.interval.value if each.interval else 0.0, -each.win_counts.votes, each.player)
    )
    people = len({bout.person for bout in comparisons})
    return RatingTable(
        tuple(standings),
        matrix,
        len(comparisons),
        people,
        "" if rated else _no_ratings_reason(len(comparisons)),
        _unrated_reason(rated, totals),
    )


def point_ratings(comparisons: Sequence[Comparison]) -> dict[Player, float]:
    """The ratings alone, without intervals: quick enough to ask before and after each vote. Empty where none are."""
    rated = rated_players(count_wins(comparisons))
    chosen = [bout for bout in comparisons if bout.left in rated and bout.right in rated]
    return fit_ratings(chosen, sorted(rated)) if rated else {}


def _rank_ranges(intervals: Mapping[Player, Interval]) -> dict[Player, tuple[int, int]]:
    """The best and the worst place that each may have: only intervals that do not touch tell two apart."""
    above = Counter[Player]()
    below = Counter[Player]()
    for one, other in combinations(intervals, 2):
        for high, low in ((one, other), (other, one)):
            if intervals[high].low > intervals[low].high:
                above[low] += 1
                below[high] += 1
    return {player: (1 + above[player], len(intervals) - below[player]) for player in intervals}


def _no_ratings_reason(votes: int) -> str:
    return (
        f"Too few votes to say who is ahead: a rating needs {MIN_VOTES}, and at least {MIN_VOTES_IN_GROUP} for each method "
        f"against the others. There {'is' if votes == 1 else 'are'} {votes or 'none'}."
    )


def _unrated_reason(rated: Collection[Player], totals: Mapping[Player, WinCounts]) -> str:
    lonely = [player for player, tally in totals.items() if player not in rated and tally.votes >= MIN_VOTES_IN_GROUP]
    if not rated or not lonely:
        return ""
    who = f"{len(lonely)} method{'s have' if len(lonely) > 1 else ' has'}"
    return f"{who} votes enough, but too few against the rated ones: no place can be given beside these."
