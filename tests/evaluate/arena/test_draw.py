"""The draw: any pair can come, pairs with few votes come sooner, and the order is a coin's."""

from __future__ import annotations

import random
from collections import Counter

from evaluate.arena.draw import draw_pair
from evaluate.arena.vote import pair_of
from tests.evaluate.arena.votes import LORA, RAG, ZERO

PLAYERS = [ZERO, RAG, LORA]


def test_pairs_and_orders_come_equally_often() -> None:
    chance = random.Random(0)
    drawn = Counter(draw_pair(PLAYERS, {}, chance) for _ in range(6000))
    assert len(drawn) == 6
    assert all(850 < count < 1150 for count in drawn.values())


def test_pairs_with_few_votes_are_preferred_but_never_certain() -> None:
    chance = random.Random(0)
    votes = {pair_of(ZERO, RAG): 1, pair_of(ZERO, LORA): 2}
    drawn = Counter(pair_of(*(draw_pair(PLAYERS, votes, chance) or (ZERO, RAG))) for _ in range(4000))
    assert drawn[pair_of(RAG, LORA)] > 3000
    assert drawn[pair_of(ZERO, RAG)] > drawn[pair_of(ZERO, LORA)] > 20


def test_only_allowed_pairs_are_drawn() -> None:
    chance = random.Random(0)
    wanted = pair_of(ZERO, LORA)
    assert {
        pair_of(*(draw_pair(PLAYERS, {}, chance, lambda pair: pair == wanted) or (RAG, RAG))) for _ in range(20)
    } == {wanted}
    assert draw_pair(PLAYERS, {}, chance, lambda pair: False) is None
    assert draw_pair([ZERO, ZERO], {}, chance) is None
