"""Who meets next: any pair can, those with few votes sooner, and which one stands left is a coin's business."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

from evaluate.arena.vote import Pair, Player, unordered_pair

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
