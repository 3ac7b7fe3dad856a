"""Votes for tests: single ones, counts of outcomes, and simulated ones."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from evaluate.arena.votes import Base, PairwiseComparison, Player, Side, Vote, Winner
from tasks.problem import AssertTest, Problem

BASE = Base("org/base", "abc", "nf4")
ZERO, RAG, LORA = Player("zero-shot"), Player("rag-8"), Player("lora-starter", "sha256:1")


def make_vote(number: int = 0, **changes: Any) -> Vote:
    """Make a vote of one person on one pair, on problem `number`."""
    values: dict[str, Any] = {
        "id": f"vote-{number}", "created": "2026-11-22T18:00:00+00:00", "visitor": "browser-0", "base": BASE,
        "data": "starter", "winner": "left", "seconds": 4.5, "settings": {"decoding": {"mode": "greedy", "seed": 0}},
        "problem": Problem(f"p{number}", f"intent {number}", "x = 1", (AssertTest("assert x == 1"),)),
        "left": Side(ZERO, "```\n=1+1\n```", "=1+1", {"tokens": 3}), "right": Side(LORA, "x = 1", "x = 1"),
    }  # fmt: skip
    return Vote(**{**values, **changes})


def make_votes(
    pair: tuple[Player, Player], wins: int, losses: int, ties: int = 0, both_bad: int = 0
) -> list[PairwiseComparison]:
    """Make votes of the first player against the second, each by a different person."""
    counts: dict[Winner, int] = {"left": wins, "right": losses, "tie": ties, "both bad": both_bad}
    winners = [winner for winner, count in counts.items() for _ in range(count)]
    return [PairwiseComparison(*pair, winner, f"{pair}-{index}") for index, winner in enumerate(winners)]


def simulated(
    ratings: Mapping[Player, float], votes: int, people: int, rng: random.Random, ties: float = 0.2
) -> list[PairwiseComparison]:
    """Simulate votes by the Bradley-Terry model with a share of ties; the people vote in turn."""
    players: Sequence[Player] = list(ratings)
    found = []
    for index in range(votes):
        left, right = rng.sample(players, 2)
        wins = 1 / (1 + 10 ** ((ratings[right] - ratings[left]) / 400))
        # Ties replace wins and losses equally, so that wins plus half the ties have the model's probability.
        tie = ties * 4 * wins * (1 - wins)
        draw = rng.random()
        winner: Winner = "tie" if draw < tie else "left" if draw < wins + tie / 2 else "right"
        found.append(PairwiseComparison(left, right, winner, str(index % people)))
    return found
