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

from errors import PromptOrTuneError
from evaluate.arena.draw import sample_pair
from evaluate.arena.vote import Base, Player, problem_digest, unordered_pair
from evaluate.arena.votes import VoteStore
from serve.method import parse_method
from tasks.problem import Problem
from ui.arena.duels import Match
from ui.asked import CUSTOM_PROBLEM_ID
from ui.method_form import METHODS_WITHOUT_ADAPTER, list_adapter_choices
from ui.problem_picker import DEFAULT_DATA, load_split_problems

if TYPE_CHECKING:
    from serve.engine import LLMEngine

TOO_FEW_METHODS = "A duel needs two methods: choose at least two that can be used here, under 'Who takes part'."
ALL_VOTED = (
    "You have voted on every pair of these methods for {what}: ask something else, or let more methods take part."
)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MatchRequest:
    """What the form says: an own question ('' for a problem of the data set), and the methods that take part."""

    question: str
    data: str
    methods: tuple[str, ...]


def usable_methods(engine: LLMEngine) -> list[str]:
    """The methods that can take part: zero-shot, ICL, RAG, and every adapter that this base can wear."""
    return [*METHODS_WITHOUT_ADAPTER, *list_adapter_choices(engine).usable]


def arena_base(engine: LLMEngine) -> Base:
    """The base as votes name it."""
    return Base(engine.base.id, engine.base.revision, engine.base.quantization)


def sample_match(
    engine: LLMEngine,
    votes: VoteStore,
    visitor: str,
    request: MatchRequest,
    data_dir: Path | None,
    exclude: Collection[str] = (),
) -> Match:
    """A new duel on which this visitor has not voted. PromptOrTuneError in one sentence where there is none.

    `avoid` are methods that have just failed.
    """
    base = arena_base(engine)
    players = [player for player in _available_players(engine, request.methods) if player.method not in exclude]
    if len(players) < 2:
        raise PromptOrTuneError(TOO_FEW_METHODS)
    voted = votes.voted_pairs(visitor, base)
    counts, chance = votes.count_by_pair(base), random.SystemRandom()
    if request.question.strip():
        problem = Problem(CUSTOM_PROBLEM_ID, request.question.strip())
        key = problem_digest(problem)
        pair = sample_pair(players, counts, chance, lambda pair: (key, pair) not in voted)
        what, data, pool = "this question", "", DEFAULT_DATA
    else:
        data = pool = request.data
        keyed = _problems_by_key(data, data_dir)
        done = {pair: {key for key, other in voted if other == pair} for _, pair in voted}
        pair = sample_pair(players, counts, chance, lambda pair: len(keyed) > len(done.get(pair, ()) & keyed.keys()))
        left = [each for key, each in keyed.items() if pair and key not in done.get(unordered_pair(*pair), ())]
        problem = chance.choice(left) if left else Problem(CUSTOM_PROBLEM_ID, "")
        what = f"all problems of '{data}'"
    if pair is None:
        raise PromptOrTuneError(ALL_VOTED.format(what=what))
    return Match(uuid.uuid4().hex, data, pool, problem, base, *pair)


def _available_players(engine: LLMEngine, methods: Sequence[str]) -> list[Player]:
    """The methods that can be asked now, each once, with the digest of its adapter as it is now."""
    names = engine.adapters()
    players = []
    for name in methods:
        try:
            method = parse_method(name, names)
            reason = engine.unsupported_reason(method)
            if reason is None:
                players.append(Player(method.name, engine.adapter_digest(method.adapter) if method.adapter else ""))
        except PromptOrTuneError as fault:
            reason = str(fault)
        if reason is not None:
            _log.warning("%s does not take part: %s", name, reason)
    return list(dict.fromkeys(players))


@lru_cache(maxsize=16)
def _problems_by_key(data: str, data_dir: Path | None) -> dict[str, Problem]:
    """The problems of a data set by the key under which votes know them."""
    return {problem_digest(problem): problem for problem in load_split_problems(data, data_dir)}
