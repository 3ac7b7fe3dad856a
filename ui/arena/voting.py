"""From a click to a kept vote, and what is said of it: who they were, how others chose, what it did to the ratings."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from functools import lru_cache
from html import escape
from typing import Any

from evaluate.arena.ratings import points, rate
from evaluate.arena.tallies import Bout, tallies
from evaluate.arena.vote import Side, Vote, Winner
from evaluate.arena.votes import AlreadyVotedError, Votes
from evaluate.run import versions
from tasks.prompt import PROMPT_VERSION
from ui.arena.duels import Duel
from ui.labels import method_label
from ui.live import now
from ui.records import Record

# What a side's answer depends on and what came of it; the rest of a record stands in the vote itself.
_DETAILS = (
    "adapter", "examples_kind", "examples_k", "examples", "prompt", "prompt_style", "prompt_fingerprint",
    "prompt_tokens", "tokens", "seconds", "scores", "score_reasons", "notes", "tests", "sandbox",
)  # fmt: skip


def cast(votes: Votes, visitor: str, duel: Duel, winner: Winner) -> Duel:
    """Keeps the vote, and then gives the duel with all that may be seen now. VotesError where it cannot be kept.

    An earlier vote of this person on the pair and problem stands, and the duel says so.
    """
    try:
        votes.add(make_vote(visitor, duel, winner))
    except AlreadyVotedError as fault:
        return replace(duel, voted=True, said=f"<p>{escape(str(fault))} {_names(duel)}</p>")
    return replace(duel, voted=True, winner=winner, said=_said(votes, visitor, duel, winner))


def make_vote(visitor: str, duel: Duel, winner: Winner) -> Vote:
    """The vote with everything that is needed to ask the same again."""
    first = duel.records[0]
    created = now()
    seconds = (datetime.fromisoformat(created) - datetime.fromisoformat(duel.answered)).total_seconds()
    settings = {
        **{name: first[name] for name in ("decoding", "pool", "architecture", "device")},
        "prompt_version": PROMPT_VERSION,
        "versions": dict(_versions()),
    }
    left, right = (
        Side(player, record["text"], record["code"], _details(record))
        for player, record in zip((duel.left, duel.right), duel.records, strict=True)
    )
    return Vote(
        duel.id, created, visitor, duel.base, duel.data, duel.problem, left, right, winner, max(0.0, seconds),
        duel.tests_run, duel.reference_seen, settings,
    )  # fmt: skip


def _details(record: Record) -> dict[str, Any]:
    return {name: record[name] for name in _DETAILS}  # type: ignore[literal-required]


@lru_cache(maxsize=1)
def _versions() -> dict[str, str]:
    return versions()


def _said(votes: Votes, visitor: str, duel: Duel, winner: Winner) -> str:
    """What came of the vote, as escaped HTML."""
    bouts = [bout for _, bout in votes.bouts(duel.base)]
    return f"<p>{_picked(duel, winner)}</p><p>{_others(bouts, visitor, duel)}</p><p>{_change(bouts, duel)}</p>"


def _picked(duel: Duel, winner: Winner) -> str:
    left, right = (f"<b>{escape(method_label(name))}</b>" for name in duel.methods)
    return {
        "left": f"You picked A, {left}, over B, {right}.",
        "right": f"You picked B, {right}, over A, {left}.",
        "tie": f"You called it a tie: A was {left}, B was {right}.",
        "both bad": f"You found both bad: A was {left}, B was {right}.",
    }[winner]


def _names(duel: Duel) -> str:
    left, right = (f"<b>{escape(method_label(name))}</b>" for name in duel.methods)
    return f"A was {left}, B was {right}."


def _others(bouts: list[Bout], visitor: str, duel: Duel) -> str:
    """How other people voted on this pair, over all problems."""
    others = [bout for bout in bouts if bout.person != visitor]
    found = tallies(others).get((duel.left, duel.right))
    if found is None:
        return "Nobody else has voted on this pair yet."
    left, right = (escape(method_label(name)) for name in duel.methods)
    parts = [f"{left} {found.wins}", f"{right} {found.losses}", f"tie {found.ties}", f"both bad {found.both_bad}"]
    count = f"{found.votes} vote{'' if found.votes == 1 else 's'}"
    return f"Others on this pair, over all questions ({count}): {', '.join(parts)}."


def _change(bouts: list[Bout], duel: Duel) -> str:
    """The ratings of both with this vote, and by how much it moved them. This vote is the last one of its pair."""
    after = points(bouts)
    mine = next(
        at for at in range(len(bouts) - 1, -1, -1) if {bouts[at].left, bouts[at].right} == {duel.left, duel.right}
    )
    before = points(bouts[:mine] + bouts[mine + 1 :])
    parts = []
    for player in (duel.left, duel.right):
        if player in after:
            moved = f" ({after[player] - before[player]:+.0f})" if player in before else " (new)"
            parts.append(f"{escape(method_label(player.method))} {after[player]:.0f}{moved}")
    if not parts:
        return escape(rate(bouts, resamples=1).reason) or "Too few votes on these two to give them a rating."
    return f"Ratings now: {', '.join(parts)}."
