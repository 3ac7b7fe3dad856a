"""From a click to a kept vote, and what is said of it: who they were, how others chose, what it did to the ratings."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from functools import lru_cache
from html import escape
from typing import Any

from evaluate.arena.ratings import compute_ratings, point_ratings
from evaluate.arena.tallies import Comparison, count_wins
from evaluate.arena.vote import Side, Vote, Winner
from evaluate.arena.votes import AlreadyVotedError, VoteStore
from evaluate.run import package_versions
from tasks.prompt import PROMPT_VERSION
from ui.arena.duels import Match
from ui.labels import method_label
from ui.live import utc_timestamp
from ui.records import Record

# What a side's answer depends on and what came of it; the rest of a record stands in the vote itself.
_SIDE_FIELDS = (
    "adapter", "examples_kind", "examples_k", "examples", "prompt", "prompt_style", "prompt_fingerprint",
    "prompt_tokens", "tokens", "seconds", "scores", "score_reasons", "notes", "tests", "sandbox",
)  # fmt: skip


def record_vote(votes: VoteStore, visitor: str, match: Match, winner: Winner) -> Match:
    """Keeps the vote, and then gives the duel with all that may be seen now. VotesError where it cannot be kept.

    An earlier vote of this person on the pair and problem stands, and the duel says so.
    """
    try:
        votes.add(make_vote(visitor, match, winner))
    except AlreadyVotedError as fault:
        return replace(match, voted=True, said=f"<p>{escape(str(fault))} {_method_names_html(match)}</p>")
    return replace(match, voted=True, winner=winner, said=_outcome_html(votes, visitor, match, winner))


def make_vote(visitor: str, match: Match, winner: Winner) -> Vote:
    """The vote with everything that is needed to ask the same again."""
    first = match.records[0]
    created = utc_timestamp()
    seconds = (datetime.fromisoformat(created) - datetime.fromisoformat(match.answered)).total_seconds()
    settings = {
        **{name: first[name] for name in ("decoding", "pool", "architecture", "device")},
        "prompt_version": PROMPT_VERSION,
        "versions": dict(_versions()),
    }
    left, right = (
        Side(player, record["text"], record["code"], _side_details(record))
        for player, record in zip((match.left, match.right), match.records, strict=True)
    )
    return Vote(
        match.id, created, visitor, match.base, match.data, match.problem, left, right, winner, max(0.0, seconds),
        match.tests_run, match.reference_seen, settings,
    )  # fmt: skip


def _side_details(record: Record) -> dict[str, Any]:
    return {name: record[name] for name in _SIDE_FIELDS}  # type: ignore[literal-required]


@lru_cache(maxsize=1)
def _versions() -> dict[str, str]:
    return package_versions()


def _outcome_html(votes: VoteStore, visitor: str, match: Match, winner: Winner) -> str:
    """What came of the vote, as escaped HTML."""
    bouts = [bout for _, bout in votes.comparisons(match.base)]
    return f"<p>{_choice_html(match, winner)}</p><p>{_other_votes_html(bouts, visitor, match)}</p><p>{_rating_change_html(bouts, match)}</p>"


def _choice_html(match: Match, winner: Winner) -> str:
    left, right = (f"<b>{escape(method_label(name))}</b>" for name in match.methods)
    return {
        "left": f"You picked A, {left}, over B, {right}.",
        "right": f"You picked B, {right}, over A, {left}.",
        "tie": f"You called it a tie: A was {left}, B was {right}.",
        "both bad": f"You found both bad: A was {left}, B was {right}.",
    }[winner]


def _method_names_html(match: Match) -> str:
    left, right = (f"<b>{escape(method_label(name))}</b>" for name in match.methods)
    return f"A was {left}, B was {right}."


def _other_votes_html(comparisons: list[Comparison], visitor: str, match: Match) -> str:
    """How other people voted on this pair, over all problems."""
    others = [bout for bout in comparisons if bout.person != visitor]
    found = count_wins(others).get((match.left, match.right))
    if found is None:
        return "Nobody else has voted on this pair yet."
    left, right = (escape(method_label(name)) for name in match.methods)
    parts = [f"{left} {found.wins}", f"{right} {found.losses}", f"tie {found.ties}", f"both bad {found.both_bad}"]
    count = f"{found.votes} vote{'' if found.votes == 1 else 's'}"
    return f"Others on this pair, over all questions ({count}): {', '.join(parts)}."


def _rating_change_html(comparisons: list[Comparison], match: Match) -> str:
    """The ratings of both with this vote, and by how much it moved them. This vote is the last one of its pair."""
    after = point_ratings(comparisons)
    mine = next(
        at
        for at in range(len(comparisons) - 1, -1, -1)
        if {comparisons[at].left, comparisons[at].right} == {match.left, match.right}
    )
    before = point_ratings(comparisons[:mine] + comparisons[mine + 1 :])
    parts = []
    for player in (match.left, match.right):
        if player in after:
            moved = f" ({after[player] - before[player]:+.0f})" if player in before else " (new)"
            parts.append(f"{escape(method_label(player.method))} {after[player]:.0f}{moved}")
    if not parts:
        return (
            escape(compute_ratings(comparisons, resamples=1).no_ratings_reason)
            or "Too few votes on these two to give them a rating."
        )
    return f"Ratings now: {', '.join(parts)}."
