"""Who meets next: any pair can, those with few votes sooner, and which one stands left is a coin's business."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

from evaluate.arena.vote import Pair, Player, pair_of

# A pair without votes is drawn eight times as often as one with one vote, and 27 times as often as one with two. It is
# never certain: who knew the counts could else tell the names before the vote.
_STEEPNESS = 3


def draw_pair(
    players: Sequence[Player],
    votes: Mapping[Pair, int],
    chance: random.Random,
    allowed: Callable[[Pair], bool] = lambda pair: True,  # noqa: ARG005
) -> Pair | None:
    """Two different players, left and right; None where no allowed pair is left.

    `votes` counts the votes of unordered pairs (`pair_of`), which `allowed` is asked about too.
    """
    pairs = [pair_of(one, other) for one, other in combinations(dict.fromkeys(players), 2)]
    pairs = [pair for pair in pairs if allowed(pair)]
    if not pairs:
        return None
    weights = [(1 + votes.get(pair, 0)) ** -_STEEPNESS for pair in pairs]
    left, right = chance.choices(pairs, weights)[0]
    return (left, right) if chance.random() < 0.5 else (right, left)
