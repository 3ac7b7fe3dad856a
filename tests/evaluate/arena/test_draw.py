"""The draw: any pair can come, pairs with few votes come sooner, and the order is a coin's."""

from __future__ import annotations

import random
from collections import Counter

from evaluate.arena.ratings import sample_pair
from evaluate.arena.votes import unordered_pair
from tests.evaluate.arena.votes import LORA, RAG, ZERO

PLAYERS = [ZERO, RAG, LORA]


def test_pairs_and_orders_come_equally_often() -> None:
    chance = random.Random(0)
    drawn = Counter(sample_pair(PLAYERS, {}, chance) for _ in range(6000))
    assert len(drawn) == 6
    assert all(850 < count < 1150 for count in drawn.values())


def test_pairs_with_few_votes_are_preferred_but_never_certain() -> None:
    chance = random.Random(0)
    votes = {unordered_pair(ZERO, RAG): 1, unordered_pair(ZERO, LORA): 2}
    drawn = Counter(unordered_pair(*(sample_pair(PLAYERS, votes, chance) or (ZERO, RAG))) for _ in range(4000))
    assert drawn[unordered_pair(RAG, LORA)] > 3000
    assert drawn[unordered_pair(ZERO, RAG)] > drawn[unordered_pair(ZERO, LORA)] > 20


def test_only_allowed_pairs_are_drawn() -> None:
    chance = random.Random(0)
    wanted = unordered_pair(ZERO, LORA)
    assert {
        unordered_pair(*(sample_pair(PLAYERS, {}, chance, lambda pair: pair == wanted) or (RAG, RAG)))
        for _ in range(20)
    } == {wanted}
    assert sample_pair(PLAYERS, {}, chance, lambda pair: False) is None
    assert sample_pair([ZERO, ZERO], {}, chance) is None
