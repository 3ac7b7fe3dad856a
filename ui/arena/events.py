"""Event handlers of the Arena: sample a match, run its tests, record a vote and show its outcome.

Every handler loads the visitor's match on the server; a match id from the browser only says which one a window shows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import gradio as gr
from markupsafe import Markup

from common.format import utc_timestamp
from errors import PromptOrTuneError
from evaluate.arena.ratings import compute_ratings, point_ratings
from evaluate.arena.votes import AlreadyVotedError, PairwiseComparison, Side, Vote, VoteStore, Winner, count_wins
from evaluate.generate import package_versions
from tasks.prompt import PROMPT_VERSION
from ui.access.guard import action, data_choices, own_allowed
from ui.arena.matches import LOCKED_BY_OTHER_WINDOW, Match, MatchRunner, MatchUpdate
from ui.arena.view import empty_match_view, form_updates, make_match_request, match_view
from ui.components import method_label, render
from ui.test_bench import Record, add_tests_note, test_answers

if TYPE_CHECKING:
    from ui.arena.page import ArenaPage


INTERNAL_ERROR = "Something went wrong on our side; the log has the details. No vote was lost."
NO_OPEN_MATCH = "There is no duel to vote on: press n for one."
OTHER_WINDOW = "This is the duel that you opened in another window."
ALREADY_VOTED = "You have voted on this one: press n for the next."
STOPPED = "Stopped; no vote was recorded."
VOTE_PROMPT = "Which answer would you rather use? Names follow after your vote."
_LOCK_TIMEOUT_SECONDS = 5.0
_log = logging.getLogger(__name__)
Update = dict[Any, Any]
# Fields of a record that a vote stores for each side; the others are fields of the vote itself.
_SIDE_FIELDS = (
    "adapter", "examples_kind", "examples_k", "examples", "prompt", "prompt_style", "prompt_fingerprint",
    "prompt_tokens", "tokens", "seconds", "scores", "score_reasons", "notes", "tests", "sandbox",
)  # fmt: skip


def record_vote(votes: VoteStore, visitor: str, match: Match, winner: Winner) -> Match:
    """Store the vote and return the match with its outcome. Raises VotesError if it cannot be stored.

    If the visitor voted on this pair and problem before, that vote stays, and the outcome says so.
    """
    try:
        votes.add(make_vote(visitor, match, winner))
    except AlreadyVotedError as error:
        left, right = (method_label(name) for name in match.methods)
        outcome = Markup("<p>{} A was <b>{}</b>, B was <b>{}</b>.</p>").format(error, left, right)
        return replace(match, voted=True, said=outcome)
    return replace(match, voted=True, winner=winner, said=_outcome_html(votes, visitor, match, winner))


def make_vote(visitor: str, match: Match, winner: Winner) -> Vote:
    """Make the vote with everything that is needed to repeat the match."""
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


def _outcome_html(votes: VoteStore, visitor: str, match: Match, winner: Winner) -> Markup:
    """Return the names, how others voted on the pair, and what the vote did to the ratings."""
    comparisons = [comparison for _, comparison in votes.comparisons(match.base)]
    return render(
        "arena/outcome.html.jinja",
        winner=winner,
        names=[method_label(name) for name in match.methods],
        other_votes=_other_votes(comparisons, visitor, match),
        ratings=_rating_change(comparisons, match),
    )


def _other_votes(comparisons: list[PairwiseComparison], visitor: str, match: Match) -> str:
    """Return how other people voted on this pair, over all problems."""
    others = [comparison for comparison in comparisons if comparison.person != visitor]
    counts = count_wins(others).get((match.left, match.right))
    if counts is None:
        return "Nobody else has voted on this pair yet."
    left, right = (method_label(name) for name in match.methods)
    parts = [f"{left} {counts.wins}", f"{right} {counts.losses}", f"tie {counts.ties}", f"both bad {counts.both_bad}"]
    total = f"{counts.votes} vote{'' if counts.votes == 1 else 's'}"
    return f"Others on this pair, over all questions ({total}): {', '.join(parts)}."


def _rating_change(comparisons: list[PairwiseComparison], match: Match) -> str:
    """Return the ratings of both methods with this vote, and the changes. The vote must be the last one of its pair."""
    after = point_ratings(comparisons)
    pair = {match.left, match.right}
    own = next(
        index
        for index in range(len(comparisons) - 1, -1, -1)
        if {comparisons[index].left, comparisons[index].right} == pair
    )
    before = point_ratings(comparisons[:own] + comparisons[own + 1 :])
    parts = []
    for player in (match.left, match.right):
        if player in after:
            change = f" ({after[player] - before[player]:+.0f})" if player in before else " (new)"
            parts.append(f"{method_label(player.method)} {after[player]:.0f}{change}")
    if parts:
        return f"Ratings now: {', '.join(parts)}."
    reason = compute_ratings(comparisons, resamples=1).no_ratings_reason
    return reason or "Too few votes on these two to give them a rating."


class ArenaEvents:
    """Handlers of the page's events."""

    def __init__(self, runner: MatchRunner, page: ArenaPage) -> None:
        self._runner = runner
        self._page = page

    @action("view pages")
    def load_form(self, stored: Any, request: gr.Request) -> list[Any]:
        """Return updates of the form: the values that the browser stored, and what can be chosen now."""
        context = self._runner.context
        loader, data_sets = context.engine_loader, data_choices(context.data_dir, own=own_allowed(context, request))
        return form_updates(loader.engine() if loader.state().phase == "ready" else None, stored, data_sets)

    @action("vote")
    def restore_match(self, request: gr.Request) -> Iterator[Update]:
        """The tab was opened: yield the visitor's open match."""
        visitor, session = self._runner.context.visitors.identify(request), request.session_hash or ""
        if self._runner.matches.locked_session(visitor.id) == session:
            yield {self._page.status: gr.skip()}  # this window is being answered
            return
        with self._runner.context.cancel_registry.register(session) as cancel:
            yield from self._stream_updates(self._runner.resume_match(visitor, session, cancel), visitor.id)

    @action("vote")
    def next_match(
        self, request: gr.Request, match_id: str, question: str, data: str, methods: list[str]
    ) -> Iterator[Update]:
        """Yield the next match (Start, Skip or Next)."""
        visitor, session = self._runner.context.visitors.identify(request), request.session_hash or ""
        match_request = make_match_request(question, data, methods)
        with self._runner.context.cancel_registry.register(session) as cancel:
            yield from self._stream_updates(
                self._runner.next_match(visitor, session, match_request, match_id, cancel), visitor.id
            )

    @action("vote")
    def stop(self, request: gr.Request) -> None:
        """Cancel this window's runs. A match without answers is deleted: its names were not shown."""
        visitor = self._runner.context.visitors.identify(request)
        self._runner.context.cancel_registry.cancel(request.session_hash or "")
        with self._runner.matches.lock(visitor.id, timeout=5) as held:
            match = self._runner.matches.load(visitor.id) if held else None
            if match is not None and not match.records:
                self._runner.matches.delete(visitor.id)

    @action("vote")
    def show_reference(self, request: gr.Request, match_id: str) -> Update:
        """Show the reference before the vote; the vote records that."""
        return self._update_match(request, match_id, lambda _, match: replace(match, reference_seen=True))

    def vote_handler(self, winner: Winner) -> Callable[..., Update]:
        """Return the handler of one of the four vote buttons."""

        def record(visitor: str, match: Match) -> Match:
            if match.voted:
                raise PromptOrTuneError(ALREADY_VOTED)
            return record_vote(self._runner.votes, visitor, match, winner)

        @action("vote")
        def vote(request: gr.Request, match_id: str) -> Update:
            return self._update_match(request, match_id, record)

        return vote

    @action("vote")
    def run_tests(self, request: gr.Request, match_id: str) -> Iterator[Update]:
        """Run both answers against the problem's tests in the sandbox; a later vote records that."""
        visitor, session = self._runner.context.visitors.identify(request).id, request.session_hash or ""
        match, message = self._load_match(visitor, match_id)
        if message or match is None or not match.problem.tests:
            yield self._render_match(match, message)
            return
        records = match.records
        with self._runner.context.cancel_registry.register(session) as cancel:
            for testing in test_answers(self._runner.context.test_bench, match.records, match.problem, cancel):
                records = testing.records
                # The visitor may have voted meanwhile: the current match says whether names are shown.
                current = self._runner.matches.load(visitor) or match
                view = match_view(replace(current, records=records), testing.pending)
                yield {
                    self._page.status: _paragraph_html(testing.status), self._page.answers_view: view,
                    self._page.run: gr.Button(visible=False), self._page.stop: gr.Button(visible=True),
                }  # fmt: skip
        records = without_partial_tests(match.records, records)
        with self._runner.matches.lock(visitor, session):
            current = self._runner.matches.load(visitor) or match
            if current.id == match.id:
                current = replace(current, records=records, tests_run=_tests_ran(records))
                self._runner.matches.save(visitor, current)
        yield self._render_match(current)

    def _update_match(self, request: gr.Request, match_id: str, change: Callable[[str, Match], Match]) -> Update:
        """Change and save the visitor's match if this window shows it; else show an error message."""
        visitor = self._runner.context.visitors.identify(request).id
        with self._runner.matches.lock(visitor, request.session_hash or "", _LOCK_TIMEOUT_SECONDS) as held:
            match, message = self._load_match(visitor, match_id)
            if not held or match is None or message:
                return self._render_match(match, message or LOCKED_BY_OTHER_WINDOW)
            try:
                changed = change(visitor, match)
                self._runner.matches.save(visitor, changed)
            except PromptOrTuneError as error:
                return self._render_match(match, str(error))
            return self._render_match(changed)

    def _load_match(self, visitor: str, match_id: str) -> tuple[Match | None, str]:
        """Return the visitor's match, and an error message ('' for none) if this window cannot vote on it."""
        match = self._runner.matches.load(visitor)
        if match is None or not match.records:
            return None, NO_OPEN_MATCH
        return match, OTHER_WINDOW if match_id and match_id != match.id else ""

    def _stream_updates(self, updates: Iterator[MatchUpdate], visitor: str) -> Iterator[Update]:
        """Yield the updates of a run, and at its end the state that it left, also after an error."""
        last: MatchUpdate | None = None
        try:
            for last in updates:
                yield self._render_update(last)
        except PromptOrTuneError as error:
            yield self._render_match(self._runner.matches.load(visitor), str(error))
        except Exception:  # noqa: BLE001 - the page must survive any bug, which is logged
            _log.exception("A match failed.")
            yield self._render_match(self._runner.matches.load(visitor), INTERNAL_ERROR)
        else:
            # Gradio would clear all outputs of a generator that yields nothing.
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
        """Return updates that show an answered match, before or after its vote; without a match the introduction."""
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


def without_partial_tests(before: Sequence[Record], after: Sequence[Record]) -> tuple[Record, ...]:
    """Return the records after the tests, or those before with a note if the tests did not run on both answers.

    Results of one answer alone would count for or against it.
    """
    if _tests_ran(after):
        return tuple(after)
    note = next((record["tests_note"] for record in after if record["tests_note"]), "")
    return add_tests_note(before, range(len(before)), note)


def _tests_ran(records: Sequence[Record]) -> bool:
    return bool(records) and all(record["tests"] for record in records)


def _paragraph_html(text: str) -> str:
    return Markup("<p>{}</p>").format(text) if text else ""


def _error_html(message: str) -> Markup:
    return Markup('<p class="error-message">{}</p>').format(message)
