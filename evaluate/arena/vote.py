"""One blind vote, with everything that is needed to ask the same again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from errors import PromptOrTuneError
from tasks.problem import Problem

SCHEMA = 1
Winner = Literal["left", "right", "tie", "both bad"]
WINNERS: tuple[Winner, ...] = get_args(Winner)
Pair = tuple["Player", "Player"]


@dataclass(frozen=True, order=True)
class Base:
    """The base model that answered. Votes of different ones are never counted together."""

    id: str
    revision: str
    quantization: str


@dataclass(frozen=True, order=True)
class Player:
    """Who is rated: a method by its canonical name, and the digest of its adapter's weights ('' without one).

    An adapter that was trained anew under the same name is another player.
    """

    method: str
    digest: str = ""


@dataclass(frozen=True)
class Side:
    """One of the two answers. `details` are plain values for JSON: prompt, examples, style, tokens, scores, tests."""

    player: Player
    text: str
    code: str
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Vote:
    """One person's choice between two answers to one problem, in the order in which they were shown.

    `visitor` is an id that says nothing of the person. `data` names the data set of the problem, '' for a question of
    the person's own. `seconds` went by between the answers and the vote. `settings` is all else that the answers depend
    on: decoding with its seed, pool of examples, device, versions.
    """

    id: str
    created: str
    visitor: str
    base: Base
    data: str
    problem: Problem
    left: Side
    right: Side
    winner: Winner
    seconds: float
    tests_run: bool = False
    reference_seen: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.winner not in WINNERS:
            raise PromptOrTuneError(f"'{self.winner}' is no vote: choose one of {', '.join(WINNERS)}.")
        if self.left.player == self.right.player:
            raise PromptOrTuneError(f"{self.left.player.method} cannot be compared with itself: choose two methods.")

    @property
    def pair(self) -> Pair:
        """The two players in an order that does not depend on how they were shown."""
        return unordered_pair(self.left.player, self.right.player)

    def details(self) -> dict[str, Any]:
        """What no query asks for, as plain values: the problem, both answers, the settings."""
        values = {
            "problem": asdict(self.problem),
            "left": _side_record(self.left),
            "right": _side_record(self.right),
            "settings": dict(self.settings),
        }
        return dict(json.loads(json.dumps(values)))


def unordered_pair(one: Player, other: Player) -> Pair:
    """The unordered pair, as a sorted tuple."""
    return (one, other) if one <= other else (other, one)


def problem_digest(problem: Problem) -> str:
    """The same for the same words, however they are spaced: 16 hex digits of their SHA-256.

    Reference and tests do not count: they change no answer, and a person has one vote on a question.
    """
    return hashlib.sha256(" ".join(problem.intent.split()).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _side_record(side: Side) -> dict[str, Any]:
    return {"text": side.text, "code": side.code, **side.details}
