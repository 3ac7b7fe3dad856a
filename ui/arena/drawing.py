"""Which two methods meet over which problem: a draw that no visitor can repeat to find out who is who."""

from __future__ import annotations

import logging
import random
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from errors import PeftArenaError
from evaluate.arena.draw import draw_pair
from evaluate.arena.vote import Base, Player, pair_of, problem_key
from evaluate.arena.votes import Votes
from serve.method import parse_method
from tasks.problem import Problem
from ui.arena.duels import Duel
from ui.asked import TYPED_ID
from ui.method_form import WITHOUT_ADAPTER, known_adapters
from ui.problem_picker import DEFAULT_DATA, problems_of

if TYPE_CHECKING:
    from serve.engine import Engine

TOO_FEW = "A duel needs two methods: choose at least two that can be used here, under 'Who takes part'."
ALL_VOTED = (
    "You have voted on every pair of these methods for {what}: ask something else, or let more methods take part."
)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wish:
    """What the form says: an own question ('' for a problem of the data set), and the methods that take part."""

    question: str
    data: str
    methods: tuple[str, ...]


def usable_methods(engine: Engine) -> list[str]:
    """The methods that can take part: zero-shot, ICL, RAG, and every adapter that this base can wear."""
    return [*WITHOUT_ADAPTER, *known_adapters(engine).usable]


def base_of(engine: Engine) -> Base:
    """The base as votes name it."""
    return Base(engine.base.id, engine.base.revision, engine.base.quantization)


def draw_duel(
    engine: Engine, votes: Votes, visitor: str, wish: Wish, data_dir: Path | None, avoid: Collection[str] = ()
) -> Duel:
    """A new duel on which this visitor has not voted. PeftArenaError in one sentence where there is none.

    `avoid` are methods that have just failed.
    """
    base = base_of(engine)
    players = [player for player in _players(engine, wish.methods) if player.method not in avoid]
    if len(players) < 2:
        raise PeftArenaError(TOO_FEW)
    voted = votes.voted(visitor, base)
    counts, chance = votes.by_pair(base), random.SystemRandom()
    if wish.question.strip():
        problem = Problem(TYPED_ID, wish.question.strip())
        key = problem_key(problem)
        pair = draw_pair(players, counts, chance, lambda pair: (key, pair) not in voted)
        what, data, pool = "this question", "", DEFAULT_DATA
    else:
        data = pool = wish.data
        keyed = _keyed(data, data_dir)
        done = {pair: {key for key, other in voted if other == pair} for _, pair in voted}
        pair = draw_pair(players, counts, chance, lambda pair: len(keyed) > len(done.get(pair, ()) & keyed.keys()))
        left = [each for key, each in keyed.items() if pair and key not in done.get(pair_of(*pair), ())]
        problem = chance.choice(left) if left else Problem(TYPED_ID, "")
        what = f"all problems of '{data}'"
    if pair is None:
        raise PeftArenaError(ALL_VOTED.format(what=what))
    return Duel(uuid.uuid4().hex, data, pool, problem, base, *pair)


def _players(engine: Engine, methods: Sequence[str]) -> list[Player]:
    """The methods that can be asked now, each once, with the digest of its adapter as it is now."""
    names = engine.adapters()
    players = []
    for name in methods:
        try:
            method = parse_method(name, names)
            reason = engine.unavailable(method)
            if reason is None:
                players.append(Player(method.name, engine.adapter_digest(method.adapter) if method.adapter else ""))
        except PeftArenaError as fault:
            reason = str(fault)
        if reason is not None:
            _log.warning("%s does not take part: %s", name, reason)
    return list(dict.fromkeys(players))


@lru_cache(maxsize=16)
def _keyed(data: str, data_dir: Path | None) -> dict[str, Problem]:
    """The problems of a data set by the key under which votes know them."""
    return {problem_key(problem): problem for problem in problems_of(data, data_dir)}
