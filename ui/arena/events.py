"""Handlers, vote.

What happens on a click: every event asks the server whose duel it is, whatever the browser says.

From a click to a kept vote, and what is said of it: who they were, how others chose, what it did to the ratings.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from functools import lru_cache
from html import escape
from typing import TYPE_CHECKING, Any

import gradio as gr

from errors import PromptOrTuneError
from evaluate.arena.ratings import compute_ratings, point_ratings
from evaluate.arena.votes import AlreadyVotedError, Comparison, Side, Vote, VoteStore, Winner, count_wins
from evaluate.run import package_versions
from tasks.prompt import PROMPT_VERSION
from ui.arena.form import form_updates, make_match_request
from ui.arena.matches import LOCKED_BY_OTHER_WINDOW, Match, MatchRunner, MatchUpdate
from ui.arena.view import empty_match_view, match_view
from ui.compare.steps import utc_timestamp
from ui.labels import method_label
from ui.records import Record
from ui.test_bench import run_tests

if TYPE_CHECKING:
    from ui.arena.page import ArenaPage


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
    except AlreadyVotedError as error:
        return replace(match, voted=True, said=f"<p>{escape(str(error))} {_method_names_html(match)}</p>")
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


INTERNAL_ERROR = "Something went wrong on our side, and the log says what. No vote was lost."
NO_OPEN_MATCH = "There is no duel to vote on: press n for one."
OTHER_WINDOW = "This is the duel that you opened in another window."
ALREADY_VOTED = "You have voted on this one: press n for the next."
STOPPED = "Stopped; nothing was voted."
VOTE_PROMPT = "Which answer would you rather use? Names follow after your vote."
_LOCK_TIMEOUT_SECONDS = 5.0
_log = logging.getLogger(__name__)
Update = dict[Any, Any]


class ArenaEvents:
    """The functions behind the page's buttons, on one Arena."""

    def __init__(self, runner: MatchRunner, page: ArenaPage) -> None:
        self._runner = runner
        self._page = page

    def load_form(self, stored: Any) -> list[Any]:
        """The form, with what the browser kept and the methods that can be used now."""
        source = self._runner.context.engine_loader
        return form_updates(source.engine() if source.state().phase == "ready" else None, stored)

    def restore_match(self, request: gr.Request) -> Iterator[Update]:
        """The page is looked at: the visitor's duel stands there again."""
        visitor, session = self._runner.context.visitors.identify(request), request.session_hash or ""
        if self._runner.matches.locked_session(visitor.id) == session:
            yield {self._page.status: gr.skip()}  # this very window is being answered
            return
        with self._runner.context.cancel_registry.register(session) as cancel:
            yield from self._stream_updates(self._runner.resume_match(visitor, session, cancel), visitor.id)

    def next_match(
        self, request: gr.Request, match_id: str, question: str, data: str, methods: list[str]
    ) -> Iterator[Update]:
        """Start, skip or next."""
        visitor, session = self._runner.context.visitors.identify(request), request.session_hash or ""
        wish = make_match_request(question, data, methods)
        with self._runner.context.cancel_registry.register(session) as cancel:
            yield from self._stream_updates(
                self._runner.next_match(visitor, session, wish, match_id, cancel), visitor.id
            )

    def stop(self, request: gr.Request) -> None:
        """Ends this window's runs. A duel that was not answered yet is forgotten: no name was seen."""
        visitor = self._runner.context.visitors.identify(request)
        self._runner.context.cancel_registry.cancel(request.session_hash or "")
        with self._runner.matches.lock(visitor.id, timeout=5) as held:
            duel = self._runner.matches.load(visitor.id) if held else None
            if duel is not None and not duel.records:
                self._runner.matches.delete(visitor.id)

    def show_reference(self, request: gr.Request, match_id: str) -> Update:
        """Before the vote on request, and the vote says so."""
        return self._update_match(request, match_id, lambda _, duel: replace(duel, reference_seen=True))

    def vote_handler(self, winner: Winner) -> Callable[..., Update]:
        """The function behind one of the four buttons."""

        def keep(visitor: str, duel: Match) -> Match:
            if duel.voted:
                raise PromptOrTuneError(ALREADY_VOTED)
            return record_vote(self._runner.votes, visitor, duel, winner)

        def vote(request: gr.Request, shown: str) -> Update:
            return self._update_match(request, shown, keep)

        return vote

    def run_tests(self, request: gr.Request, match_id: str) -> Iterator[Update]:
        """Both answers against the problem's tests, in the sandbox; a vote that follows says so."""
        visitor, session = self._runner.context.visitors.identify(request).id, request.session_hash or ""
        duel, sentence = self._load_match(visitor, match_id)
        if sentence or duel is None or not duel.problem.tests:
            yield self._render_match(duel, sentence)
            return
        records = duel.records
        with self._runner.context.cancel_registry.register(session) as cancel:
            for testing in run_tests(self._runner.context.test_bench, duel.records, duel.problem.tests, cancel):
                records = testing.records
                # Who votes meanwhile sees the names at once: what is painted is the duel as it stands now.
                now = self._runner.matches.load(visitor) or duel
                board = match_view(replace(now, records=records), testing.pending)
                yield {
                    self._page.status: _paragraph_html(testing.status), self._page.answers_view: board,
                    self._page.run: gr.Button(visible=False), self._page.stop: gr.Button(visible=True),
                }  # fmt: skip
        with self._runner.matches.lock(visitor, session):
            now = self._runner.matches.load(visitor) or duel
            if now.id == duel.id:
                now = replace(now, records=records, tests_run=_tests_ran(records))
                self._runner.matches.save(visitor, now)
        yield self._render_match(now)

    def _update_match(self, request: gr.Request, match_id: str, change: Callable[[str, Match], Match]) -> Update:
        """The visitor's duel changed and kept, if it is the one that this window shows; else a sentence why not."""
        visitor = self._runner.context.visitors.identify(request).id
        with self._runner.matches.lock(visitor, request.session_hash or "", _LOCK_TIMEOUT_SECONDS) as held:
            duel, sentence = self._load_match(visitor, match_id)
            if not held or duel is None or sentence:
                return self._render_match(duel, sentence or LOCKED_BY_OTHER_WINDOW)
            try:
                changed = change(visitor, duel)
                self._runner.matches.save(visitor, changed)
            except PromptOrTuneError as error:
                return self._render_match(duel, str(error))
            return self._render_match(changed)

    def _load_match(self, visitor: str, match_id: str) -> tuple[Match | None, str]:
        """The visitor's duel, and why it is none that this window can vote on; '' where it is one."""
        duel = self._runner.matches.load(visitor)
        if duel is None or not duel.records:
            return None, NO_OPEN_MATCH
        return duel, OTHER_WINDOW if match_id and match_id != duel.id else ""

    def _stream_updates(self, updates: Iterator[MatchUpdate], visitor: str) -> Iterator[Update]:
        """The steps of a draw as updates, and what is there when they end, however that is."""
        last: MatchUpdate | None = None
        try:
            for last in updates:
                yield self._render_update(last)
        except PromptOrTuneError as error:
            yield self._render_match(self._runner.matches.load(visitor), str(error))
        except Exception:  # noqa: BLE001 - a page must outlive any defect; it is logged whole
            _log.exception("A duel failed.")
            yield self._render_match(self._runner.matches.load(visitor), INTERNAL_ERROR)
        else:
            # A generator that says nothing would empty the page.
            if last is None or last.match is None or not last.match.records:
                yield self._render_match(None, STOPPED if last else "")

    def _render_update(self, update: MatchUpdate) -> Update:
        if update.match is not None and update.match.records:
            return self._render_match(update.match)
        page = self._page
        changes: Update = {
            page.status: _paragraph_html(update.status), page.outcome: "", page.voting: gr.Row(visible=False),
            page.run: gr.Button(visible=False), page.reference: gr.Button(visible=False),
            page.next: gr.Button(visible=False), page.stop: gr.Button(visible=True),
        }  # fmt: skip
        return changes if update.match is None else {**changes, page.answers_view: match_view(update.match)}

    def _render_match(self, match: Match | None, error: str = "") -> Update:
        """A duel with both answers, before the vote or after it; the introduction where there is none."""
        page, problem = self._page, match.problem if match else None
        blind = match is not None and not match.voted
        label = "Start (n)" if match is None else "Skip (n)" if blind else "Next (n)"
        testable = match is not None and problem is not None and bool(problem.tests) and not _tests_ran(match.records)
        unseen = match is not None and blind and bool(match.problem.reference) and not match.reference_seen
        return {
            page.status: _error_html(error) if error else _paragraph_html(VOTE_PROMPT) if blind else "",
            page.answers_view: match_view(match) if match else empty_match_view(),
            page.outcome: match.said if match else "",
            page.voting: gr.Row(visible=blind),
            page.run: gr.Button(visible=testable),
            page.reference: gr.Button(visible=unseen),
            page.next: gr.Button(label, visible=True, variant="secondary" if blind else "primary"),
            page.stop: gr.Button(visible=False),
            page.match_id: match.id if match else "",
        }


def _tests_ran(records: Sequence[Record]) -> bool:
    return any(record["tests"] for record in records)


def _paragraph_html(text: str) -> str:
    return f"<p>{escape(text)}</p>" if text else ""


def _error_html(text: object) -> str:
    return f'<p class="error-message">{escape(str(text))}</p>'
