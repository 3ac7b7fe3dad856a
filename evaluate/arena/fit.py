"""Bradley and Terry's model fitted to votes by evalica, and bootstrap intervals over people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluate.arena.tallies import Comparison
from evaluate.arena.vote import Pair, Player, unordered_pair
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
