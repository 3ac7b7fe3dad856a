"""Bradley and Terry's model fitted to votes by evalica, and bootstrap intervals over people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluate.arena.tallies import Bout
from evaluate.arena.vote import Pair, Player, pair_of
from evaluate.stats import CONFIDENCE, Interval

MEAN, SCALE = 1000.0, 400.0
_ADVANCE = 0.5  # votes of tie that each method gets in advance
_LEAST = 1e-3  # of a vote: with none at all a rating could be infinite

Floats = NDArray[np.float64]


def strengths(bouts: Sequence[Bout], players: Sequence[Player]) -> dict[Player, float]:
    """The ratings alone, without intervals, of players that have all met directly or through others."""
    pairs = _met(bouts)
    counts = _counts(_outcomes(bouts, pairs), len(pairs))
    ratings = _fit(counts, _ADVANCE * len(players) / len(pairs), pairs, players)
    return {player: float(rating) for player, rating in zip(players, ratings, strict=True)}


def fit_with_intervals(
    bouts: Sequence[Bout], players: Sequence[Player], seed: int, resamples: int
) -> dict[Player, Interval]:
    """The same with intervals: the middle 95 % of the ratings of as many resamples of people and their votes."""
    pairs = _met(bouts)
    outcomes = _outcomes(bouts, pairs)
    advance = _ADVANCE * len(players) / len(pairs)
    values = _fit(_counts(outcomes, len(pairs)), advance, pairs, players)
    people = _people(bouts)
    generator = np.random.default_rng(seed)
    drawn = []
    for _ in range(resamples):
        sample = _smoothed(outcomes[people.drawn(generator)], len(pairs), advance, generator)
        weights = np.maximum(generator.gamma(advance, size=len(pairs)), _LEAST)
        drawn.append(_fit(_counts(sample, len(pairs)), weights, pairs, players))
    tail = (1 - CONFIDENCE) / 2
    lows, highs = np.quantile(drawn, [tail, 1 - tail], axis=0)
    # Few votes can put the value itself outside of what was drawn, by a hair.
    return {
        player: Interval(float(value), float(min(low, value)), float(max(high, value)))
        for player, value, low, high in zip(players, values, lows, highs, strict=True)
    }


def _smoothed(
    outcomes: NDArray[np.intp], pairs: int, advance: float, generator: np.random.Generator
) -> NDArray[np.intp]:
    """The drawn votes, some of them replaced by those given in advance, which are of any pair and for either side.

    Without it ten wins of ten would be ten in every resample, and the interval would claim to be certain.
    """
    n = len(outcomes)
    replaced = generator.random(n) < pairs * advance / (n + pairs * advance)
    other = 3 * generator.integers(0, pairs, n) + generator.integers(0, 2, n)
    return np.where(replaced, other, outcomes)


def _met(bouts: Sequence[Bout]) -> list[Pair]:
    return sorted({pair_of(bout.left, bout.right) for bout in bouts})


def _outcomes(bouts: Sequence[Bout], pairs: Sequence[Pair]) -> NDArray[np.intp]:
    """Each vote as one number: its pair times three, plus 0 where the pair's first won, 1 its second, 2 neither."""
    place = {pair: at for at, pair in enumerate(pairs)}
    numbers = []
    for bout in bouts:
        pair = pair_of(bout.left, bout.right)
        winner = {"left": bout.left, "right": bout.right}.get(bout.winner)
        numbers.append(3 * place[pair] + (2 if winner is None else pair.index(winner)))
    return np.array(numbers, dtype=np.intp)


def _counts(outcomes: NDArray[np.intp], pairs: int) -> Floats:
    return np.bincount(outcomes, minlength=3 * pairs).astype(np.float64)


@dataclass(frozen=True)
class _People:
    """Votes by person: `places` in the order of the people, whose votes begin at `starts` and are `sizes` many."""

    places: NDArray[np.intp]
    starts: NDArray[np.intp]
    sizes: NDArray[np.intp]

    def drawn(self, generator: np.random.Generator) -> NDArray[np.intp]:
        """Places of votes: people drawn with replacement, and of each drawn one as many votes as they gave."""
        chosen = generator.integers(0, len(self.sizes), len(self.sizes))
        sizes = np.repeat(self.sizes[chosen], self.sizes[chosen])
        starts = np.repeat(self.starts[chosen], self.sizes[chosen])
        return self.places[starts + generator.integers(0, sizes)]


def _people(bouts: Sequence[Bout]) -> _People:
    _, person = np.unique([bout.person for bout in bouts], return_inverse=True)
    sizes = np.bincount(person).astype(np.intp)
    return _People(np.argsort(person, kind="stable"), np.cumsum(sizes) - sizes, sizes)


def _fit(counts: Floats, advance: Floats | float, pairs: Sequence[Pair], players: Sequence[Player]) -> Floats:
    """Ratings in the order of `players`. `counts` has for each pair: first won, second won, neither.

    `advance` are the votes of tie that each pair gets besides.
    """
    import pandas as pd
    from evalica import Winner as Outcome
    from evalica import bradley_terry

    index = {player: at for at, player in enumerate(players)}
    weights = counts.copy()
    weights[2::3] += advance
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
