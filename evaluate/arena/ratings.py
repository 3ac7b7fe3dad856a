"""Bradley-Terry ratings with intervals.

Ratings from votes: Bradley and Terry's model (Biometrika 39, 1952), fitted by evalica, with bootstrap intervals.

The model says that A beats B with probability a / (a + b). Ratings are 1000 + 400 log10(strength), strengths having a
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

Bradley and Terry's model fitted to votes by evalica, and bootstrap intervals over people.

Who meets next: any pair can, those with few votes sooner, and which one stands left is a coin's business.

The ratings as text, and the words that the page uses too.
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
    Comparison,
    Pair,
    Player,
    WinCounts,
    count_wins,
    rated_players,
    unordered_pair,
)
from evaluate.stats import CONFIDENCE, Interval

MEAN, SCALE = 1000.0, 400.0
_PRIOR_TIES = 0.5  # votes of tie that each method gets in advance
_MIN_BOOTSTRAP_WEIGHT = 1e-3  # of a vote: with none at all a rating could be infinite

FloatArray = NDArray[np.float64]


def fit_ratings(comparisons: Sequence[Comparison], players: Sequence[Player]) -> dict[Player, float]:
    """The ratings alone, without intervals, of players that have all met directly or through others."""
    pairs = _observed_pairs(comparisons)
    counts = _count_outcomes(_encode_outcomes(comparisons, pairs), len(pairs))
    ratings = _fit_bradley_terry(counts, _PRIOR_TIES * len(players) / len(pairs), pairs, players)
    return {player: float(rating) for player, rating in zip(players, ratings, strict=True)}


def fit_rating_intervals(
    comparisons: Sequence[Comparison], players: Sequence[Player], seed: int, resamples: int
) -> dict[Player, Interval]:
    """The same with intervals: the middle 95 % of the ratings of as many resamples of people and their votes."""
    pairs = _observed_pairs(comparisons)
    outcomes = _encode_outcomes(comparisons, pairs)
    advance = _PRIOR_TIES * len(players) / len(pairs)
    values = _fit_bradley_terry(_count_outcomes(outcomes, len(pairs)), advance, pairs, players)
    people = _group_by_person(comparisons)
    generator = np.random.default_rng(seed)
    drawn = []
    for _ in range(resamples):
        sample = _add_prior_votes(outcomes[people.resample(generator)], len(pairs), advance, generator)
        weights = np.maximum(generator.gamma(advance, size=len(pairs)), _MIN_BOOTSTRAP_WEIGHT)
        drawn.append(_fit_bradley_terry(_count_outcomes(sample, len(pairs)), weights, pairs, players))
    tail = (1 - CONFIDENCE) / 2
    lows, highs = np.quantile(drawn, [tail, 1 - tail], axis=0)
    # Few votes can put the value itself outside of what was drawn, by a hair.
    return {
        player: Interval(float(value), float(min(low, value)), float(max(high, value)))
        for player, value, low, high in zip(players, values, lows, highs, strict=True)
    }


def _add_prior_votes(
    outcomes: NDArray[np.intp], pairs: int, prior_ties: float, generator: np.random.Generator
) -> NDArray[np.intp]:
    """The drawn votes, some of them replaced by those given in advance, which are of any pair and for either side.

    Without it ten wins of ten would be ten in every resample, and the interval would claim to be certain.
    """
    n = len(outcomes)
    replaced = generator.random(n) < pairs * prior_ties / (n + pairs * prior_ties)
    other = 3 * generator.integers(0, pairs, n) + generator.integers(0, 2, n)
    return np.where(replaced, other, outcomes)


def _observed_pairs(comparisons: Sequence[Comparison]) -> list[Pair]:
    return sorted({unordered_pair(bout.left, bout.right) for bout in comparisons})


def _encode_outcomes(comparisons: Sequence[Comparison], pairs: Sequence[Pair]) -> NDArray[np.intp]:
    """Each vote as one number: its pair times three, plus 0 where the pair's first won, 1 its second, 2 neither."""
    place = {pair: at for at, pair in enumerate(pairs)}
    numbers = []
    for bout in comparisons:
        pair = unordered_pair(bout.left, bout.right)
        winner = {"left": bout.left, "right": bout.right}.get(bout.winner)
        numbers.append(3 * place[pair] + (2 if winner is None else pair.index(winner)))
    return np.array(numbers, dtype=np.intp)


def _count_outcomes(outcomes: NDArray[np.intp], pairs: int) -> FloatArray:
    return np.bincount(outcomes, minlength=3 * pairs).astype(np.float64)


@dataclass(frozen=True)
class _VotesByPerson:
    """Votes by person: `places` in the order of the people, whose votes begin at `starts` and are `sizes` many."""

    vote_indices: NDArray[np.intp]
    starts: NDArray[np.intp]
    sizes: NDArray[np.intp]

    def resample(self, generator: np.random.Generator) -> NDArray[np.intp]:
        """Places of votes: people drawn with replacement, and of each drawn one as many votes as they gave."""
        chosen = generator.integers(0, len(self.sizes), len(self.sizes))
        sizes = np.repeat(self.sizes[chosen], self.sizes[chosen])
        starts = np.repeat(self.starts[chosen], self.sizes[chosen])
        return self.vote_indices[starts + generator.integers(0, sizes)]


def _group_by_person(comparisons: Sequence[Comparison]) -> _VotesByPerson:
    _, person = np.unique([bout.person for bout in comparisons], return_inverse=True)
    sizes = np.bincount(person).astype(np.intp)
    return _VotesByPerson(np.argsort(person, kind="stable"), np.cumsum(sizes) - sizes, sizes)


def _fit_bradley_terry(
    counts: FloatArray, prior_ties: FloatArray | float, pairs: Sequence[Pair], players: Sequence[Player]
) -> FloatArray:
    """Ratings in the order of `players`. `counts` has for each pair: first won, second won, neither.

    `advance` are the votes of tie that each pair gets besides.
    """
    import pandas as pd
    from evalica import Winner as Outcome
    from evalica import bradley_terry

    index = {player: at for at, player in enumerate(players)}
    weights = counts.copy()
    weights[2::3] += prior_ties
    result = bradley_terry(
        [index[pair[0]] for pair in pairs for _ in range(3)],
        [index[pair[1]] for pair in pairs for _ in range(3)],
        [Outcome.X, Outcome.Y, Outcome.Draw] * len(pairs),
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


# A pair without votes is drawn eight times as often as one with one vote, and 27 times as often as one with two. It is
# never certain: who knew the counts could else tell the names before the vote.
_VOTE_COUNT_EXPONENT = 3


def sample_pair(
    players: Sequence[Player],
    vote_counts: Mapping[Pair, int],
    rng: random.Random,
    is_allowed: Callable[[Pair], bool] = lambda pair: True,  # noqa: ARG005
) -> Pair | None:
    """Two different players, left and right; None where no allowed pair is left.

    `votes` counts the votes of unordered pairs (`pair_of`), which `allowed` is asked about too.
    """
    pairs = [unordered_pair(one, other) for one, other in combinations(dict.fromkeys(players), 2)]
    pairs = [pair for pair in pairs if is_allowed(pair)]
    if not pairs:
        return None
    weights = [(1 + vote_counts.get(pair, 0)) ** -_VOTE_COUNT_EXPONENT for pair in pairs]
    left, right = rng.choices(pairs, weights)[0]
    return (left, right) if rng.random() < 0.5 else (right, left)


_HEADER = ("method", "rating", "95 % interval", "place", "votes", "won", "lost", "tie", "both bad")


def player_labels(players: Sequence[Player]) -> dict[Player, str]:
    """What to call each: the method, and a piece of the adapter's digest where two adapters share a name."""
    often = Counter(player.method for player in players)
    return {
        player: player.method
        if often[player.method] == 1
        else f"{player.method} ({player.digest.rpartition(':')[2][:6] or 'no adapter'})"
        for player in players
    }


def rank_text(rating: Rating) -> str:
    """'1', '1 to 3', '' without a rating."""
    if rating.rank_range is None:
        return ""
    best, worst = rating.rank_range
    return str(best) if best == worst else f"{best} to {worst}"


def base_text(base: Base) -> str:
    """'SmolLM2-135M-Instruct (sha256:0123…), nf4'."""
    return f"{base.id} ({base.revision}), {base.quantization}"


def vote_count_text(votes: int, people: int) -> str:
    """'12 votes of 3 people', '1 vote of one person'."""
    who = "one person" if people == 1 else f"{people} people"
    return f"{votes} vote{'' if votes == 1 else 's'} of {who}"


def ratings_text(base: Base, ratings: RatingTable) -> str:
    """The ratings of one base as a table of text."""
    lines = [base_text(base), vote_count_text(ratings.votes, ratings.people)]
    names = player_labels([standing.player for standing in ratings.ratings])
    rows = [_HEADER, *(_rating_row(standing, names[standing.player]) for standing in ratings.ratings)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(_HEADER))]
    for row in rows:
        cells = (
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join(cells).rstrip())
    lines += [sentence for sentence in (ratings.no_ratings_reason, ratings.unrated_reason) if sentence]
    return "\n".join(lines) + "\n"


def _rating_row(entry: Rating, name: str) -> tuple[str, ...]:
    rating, tally = entry.interval, entry.win_counts
    value, interval = (f"{rating.value:.0f}", f"{rating.low:.0f} to {rating.high:.0f}") if rating else ("", "")
    counts = (tally.votes, tally.wins, tally.losses, tally.ties, tally.both_bad)
    return (name, value, interval, rank_text(entry), *(str(count) for count in counts))
