"""Bradley-Terry ratings of methods from votes, with bootstrap intervals; also pair sampling and ratings as text.

Model (Bradley and Terry, Biometrika 39, 1952; fitted by evalica): A beats B with probability a / (a + b). Ratings are
1000 + 400 log10(strength), with strengths of geometric mean 1: the mean rating is 1000, and a method that is 400
points ahead wins ten times as often as it loses.

A tie counts as half a win for each side, and so does 'both bad', as in Chatbot Arena (Chiang et al., ICML 2024),
since it does not distinguish the two. The number of 'both bad' votes is displayed beside the rating.

For a method that has won or lost everything the likelihood has no maximum. So every method gets half a prior tie,
spread evenly over the observed pairs. Between two methods this is the half that Haldane and Anscombe add to both
counts of an odds ratio (Biometrika 43, 1956): their distance is 400 log10((wins + 1/2) / (losses + 1/2)).

Intervals are percentile bootstrap over people and then over each drawn person's votes (Davison and Hinkley, 1997,
3.8), because votes of one person are not independent. With a single person only the votes are drawn. The prior ties
are resampled too, with random weights (gamma, as in Rubin's Bayesian bootstrap, Annals of Statistics 9, 1981);
otherwise intervals after few votes would be too narrow.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from evaluate.arena.votes import (
    MIN_VOTES,
    MIN_VOTES_IN_GROUP,
    Base,
    Pair,
    PairwiseComparison,
    Player,
    WinCounts,
    count_wins,
    rated_players,
    unordered_pair,
)
from evaluate.stats import CONFIDENCE, Interval

MEAN, SCALE = 1000.0, 400.0
_PRIOR_TIES = 0.5  # prior ties of each method
_MIN_BOOTSTRAP_WEIGHT = 1e-3  # votes; with 0 a rating could be infinite

FloatArray = NDArray[np.float64]


def fit_ratings(comparisons: Sequence[PairwiseComparison], players: Sequence[Player]) -> dict[Player, float]:
    """Fit ratings without intervals. The players must be connected by votes, directly or through others."""
    pairs = _observed_pairs(comparisons)
    counts = _count_outcomes(_encode_outcomes(comparisons, pairs), len(pairs))
    ratings = _fit_bradley_terry(counts, _PRIOR_TIES * len(players) / len(pairs), pairs, players)
    return {player: float(rating) for player, rating in zip(players, ratings, strict=True)}


def fit_rating_intervals(
    comparisons: Sequence[PairwiseComparison], players: Sequence[Player], seed: int, resamples: int
) -> dict[Player, Interval]:
    """Fit ratings with 95 % percentile intervals over `resamples` resamples of people and their votes."""
    pairs = _observed_pairs(comparisons)
    outcomes = _encode_outcomes(comparisons, pairs)
    prior_ties = _PRIOR_TIES * len(players) / len(pairs)
    values = _fit_bradley_terry(_count_outcomes(outcomes, len(pairs)), prior_ties, pairs, players)
    people = _group_by_person(comparisons)
    generator = np.random.default_rng(seed)
    drawn = []
    for _ in range(resamples):
        sample = _add_prior_votes(outcomes[people.resample(generator)], len(pairs), prior_ties, generator)
        weights = np.maximum(generator.gamma(prior_ties, size=len(pairs)), _MIN_BOOTSTRAP_WEIGHT)
        drawn.append(_fit_bradley_terry(_count_outcomes(sample, len(pairs)), weights, pairs, players))
    tail = (1 - CONFIDENCE) / 2
    lows, highs = np.quantile(drawn, [tail, 1 - tail], axis=0)
    # With few votes the value itself can be slightly outside the resampled range.
    return {
        player: Interval(float(value), float(min(low, value)), float(max(high, value)))
        for player, value, low, high in zip(players, values, lows, highs, strict=True)
    }


def _add_prior_votes(
    outcomes: NDArray[np.intp], pairs: int, prior_ties: float, generator: np.random.Generator
) -> NDArray[np.intp]:
    """Replace some of the drawn votes by prior votes, of a random pair and for a random side.

    Otherwise ten wins of ten would be ten in every resample, and the interval would have no width.
    """
    n = len(outcomes)
    replaced = generator.random(n) < pairs * prior_ties / (n + pairs * prior_ties)
    other = 3 * generator.integers(0, pairs, n) + generator.integers(0, 2, n)
    return np.where(replaced, other, outcomes)


def _observed_pairs(comparisons: Sequence[PairwiseComparison]) -> list[Pair]:
    return sorted({unordered_pair(vote.left, vote.right) for vote in comparisons})


def _encode_outcomes(comparisons: Sequence[PairwiseComparison], pairs: Sequence[Pair]) -> NDArray[np.intp]:
    """Encode each vote as 3 * pair index + outcome: 0 if the pair's first player won, 1 its second, 2 neither.

    Shape (votes,).
    """
    pair_index = {pair: index for index, pair in enumerate(pairs)}
    outcomes = []
    for vote in comparisons:
        pair = unordered_pair(vote.left, vote.right)
        winner = {"left": vote.left, "right": vote.right}.get(vote.winner)
        outcomes.append(3 * pair_index[pair] + (2 if winner is None else pair.index(winner)))
    return np.array(outcomes, dtype=np.intp)


def _count_outcomes(outcomes: NDArray[np.intp], pairs: int) -> FloatArray:
    return np.bincount(outcomes, minlength=3 * pairs).astype(np.float64)


@dataclass(frozen=True)
class _VotesByPerson:
    """Indices of votes, sorted by person; each person's votes begin at `starts` and number `sizes`."""

    vote_indices: NDArray[np.intp]
    starts: NDArray[np.intp]
    sizes: NDArray[np.intp]

    def resample(self, generator: np.random.Generator) -> NDArray[np.intp]:
        """Draw people with replacement, then for each as many of their votes as they have; return vote indices."""
        chosen = generator.integers(0, len(self.sizes), len(self.sizes))
        sizes = np.repeat(self.sizes[chosen], self.sizes[chosen])
        starts = np.repeat(self.starts[chosen], self.sizes[chosen])
        return self.vote_indices[starts + generator.integers(0, sizes)]


def _group_by_person(comparisons: Sequence[PairwiseComparison]) -> _VotesByPerson:
    _, person = np.unique([vote.person for vote in comparisons], return_inverse=True)
    sizes = np.bincount(person).astype(np.intp)
    return _VotesByPerson(np.argsort(person, kind="stable"), np.cumsum(sizes) - sizes, sizes)


def _fit_bradley_terry(
    counts: FloatArray, prior_ties: FloatArray | float, pairs: Sequence[Pair], players: Sequence[Player]
) -> FloatArray:
    """Fit ratings, shape (players,). `counts` has three numbers per pair: first won, second won, neither.

    `prior_ties` is added to the ties of each pair.
    """
    import pandas as pd
    from evalica import Winner as EvalicaWinner
    from evalica import bradley_terry

    index = {player: number for number, player in enumerate(players)}
    weights = counts.copy()
    weights[2::3] += prior_ties
    result = bradley_terry(
        [index[pair[0]] for pair in pairs for _ in range(3)],
        [index[pair[1]] for pair in pairs for _ in range(3)],
        [EvalicaWinner.X, EvalicaWinner.Y, EvalicaWinner.Draw] * len(pairs),
        index=pd.RangeIndex(len(players)),
        weights=weights,
        win_weight=1.0,
        tie_weight=0.5,
        tolerance=1e-8,
        limit=10_000,
    )
    scores = result.scores.reindex(range(len(players))).to_numpy(dtype=np.float64)
    logs = np.log10(scores)
    return np.asarray(MEAN + SCALE * (logs - logs.mean()), dtype=np.float64)


RESAMPLES = 1000


@dataclass(frozen=True)
class Rating:
    """A method's rating with its interval, and the range of its rank by the intervals; None if it is not rated.

    `win_counts` has all its votes, also those against unrated methods.
    """

    player: Player
    win_counts: WinCounts
    interval: Interval | None = None
    rank_range: tuple[int, int] | None = None


@dataclass(frozen=True)
class RatingTable:
    """All methods, best first, unrated ones last. `pair_counts` has each observed pair in both orders.

    `no_ratings_reason` is the message if no method is rated, `unrated_reason` if some are not; else ''.
    """

    ratings: tuple[Rating, ...] = ()
    pair_counts: Mapping[Pair, WinCounts] = field(default_factory=dict)
    votes: int = 0
    people: int = 0
    no_ratings_reason: str = ""
    unrated_reason: str = ""

    def get(self, player: Player) -> Rating | None:
        return next((rating for rating in self.ratings if rating.player == player), None)


def compute_ratings(
    comparisons: Sequence[PairwiseComparison], seed: int = 0, resamples: int = RESAMPLES
) -> RatingTable:
    """Compute the ratings of all methods in these votes, the same for the same votes and seed.

    Methods outside of `rated_players` get no rating: groups without votes between them cannot be compared.
    """
    pair_counts = count_wins(comparisons)
    totals: dict[Player, WinCounts] = {}
    for (player, _), counts in pair_counts.items():
        totals[player] = totals.get(player, WinCounts()).add(counts)
    rated = rated_players(pair_counts)
    rated_votes = [vote for vote in comparisons if vote.left in rated and vote.right in rated]
    intervals = fit_rating_intervals(rated_votes, sorted(rated), seed, resamples) if rated else {}
    ranks = _rank_ranges(intervals)
    ratings = [Rating(player, counts, intervals.get(player), ranks.get(player)) for player, counts in totals.items()]
    ratings.sort(
        key=lambda rating: (-rating.interval.value if rating.interval else 0.0, -rating.win_counts.votes, rating.player)
    )
    people = len({vote.person for vote in comparisons})
    return RatingTable(
        tuple(ratings),
        pair_counts,
        len(comparisons),
        people,
        "" if rated else _no_ratings_reason(len(comparisons)),
        _unrated_reason(rated, totals),
    )


def point_ratings(comparisons: Sequence[PairwiseComparison]) -> dict[Player, float]:
    """Compute ratings without intervals, fast enough for use before and after each vote; empty if none are possible."""
    rated = rated_players(count_wins(comparisons))
    rated_votes = [vote for vote in comparisons if vote.left in rated and vote.right in rated]
    return fit_ratings(rated_votes, sorted(rated)) if rated else {}


def _rank_ranges(intervals: Mapping[Player, Interval]) -> dict[Player, tuple[int, int]]:
    """Return the best and worst rank of each player; only disjoint intervals order two players."""
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
        f"Too few votes to say who is ahead: a rating needs {MIN_VOTES}, and at least {MIN_VOTES_IN_GROUP} for each "
        f"method against the others. There {'is' if votes == 1 else 'are'} {votes or 'none'}."
    )


def _unrated_reason(rated: Collection[Player], totals: Mapping[Player, WinCounts]) -> str:
    unrated = [p for p, counts in totals.items() if p not in rated and counts.votes >= MIN_VOTES_IN_GROUP]
    if not rated or not unrated:
        return ""
    methods = f"{len(unrated)} method{'s have' if len(unrated) > 1 else ' has'}"
    return f"{methods} enough votes, but too few against the rated ones: a comparison with these is not possible."


# A pair without votes is drawn eight times as often as one with one vote, and 27 times as often as one with two. The
# draw stays random: otherwise somebody who knows the counts could infer the methods before voting.
_VOTE_COUNT_EXPONENT = 3


def sample_pair(
    players: Sequence[Player],
    vote_counts: Mapping[Pair, int],
    rng: random.Random,
    is_allowed: Callable[[Pair], bool] = lambda pair: True,  # noqa: ARG005
) -> Pair | None:
    """Draw two different players, left and right; None if no pair is allowed.

    `vote_counts` and `is_allowed` take unordered pairs (`unordered_pair`). Pairs with few votes are drawn more often.
    """
    pairs = [unordered_pair(one, other) for one, other in combinations(dict.fromkeys(players), 2)]
    pairs = [pair for pair in pairs if is_allowed(pair)]
    if not pairs:
        return None
    weights = [(1 + vote_counts.get(pair, 0)) ** -_VOTE_COUNT_EXPONENT for pair in pairs]
    left, right = rng.choices(pairs, weights)[0]
    return (left, right) if rng.random() < 0.5 else (right, left)


_HEADER = ("method", "rating", "95 % interval", "rank", "votes", "won", "lost", "tie", "both bad")


def player_labels(players: Sequence[Player]) -> dict[Player, str]:
    """Return each player's label: the method, with part of the adapter's digest if two adapters share a name."""
    method_counts = Counter(player.method for player in players)
    return {
        player: player.method
        if method_counts[player.method] == 1
        else f"{player.method} ({player.digest.rpartition(':')[2][:6] or 'no adapter'})"
        for player in players
    }


def rank_text(rating: Rating) -> str:
    """Return the rank as '1' or '1 to 3'; '' without a rating."""
    if rating.rank_range is None:
        return ""
    best, worst = rating.rank_range
    return str(best) if best == worst else f"{best} to {worst}"


def base_text(base: Base) -> str:
    """Return the base as 'SmolLM2-135M-Instruct (sha256:0123…), nf4'."""
    return f"{base.id} ({base.revision}), {base.quantization}"


def vote_count_text(votes: int, people: int) -> str:
    """Return '12 votes of 3 people' or '1 vote of one person'."""
    voters = "one person" if people == 1 else f"{people} people"
    return f"{votes} vote{'' if votes == 1 else 's'} of {voters}"


def ratings_text(base: Base, ratings: RatingTable) -> str:
    """Return the ratings of one base as a text table."""
    lines = [base_text(base), vote_count_text(ratings.votes, ratings.people)]
    labels = player_labels([rating.player for rating in ratings.ratings])
    rows = [_HEADER, *(_rating_row(rating, labels[rating.player]) for rating in ratings.ratings)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    for row in rows:
        cells = (
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join(cells).rstrip())
    lines += [message for message in (ratings.no_ratings_reason, ratings.unrated_reason) if message]
    return "\n".join(lines) + "\n"


def _rating_row(entry: Rating, name: str) -> tuple[str, ...]:
    rating, wins = entry.interval, entry.win_counts
    value, interval = (f"{rating.value:.0f}", f"{rating.low:.0f} to {rating.high:.0f}") if rating else ("", "")
    counts = (wins.votes, wins.wins, wins.losses, wins.ties, wins.both_bad)
    return (name, value, interval, rank_text(entry), *(str(count) for count in counts))
