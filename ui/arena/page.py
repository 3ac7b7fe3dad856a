"""Arena page: two answers without method names, a vote, then the names; ratings below."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from evaluate.arena.votes import VOTES_FILE, Base, VoteStore, Winner
from ui import components
from ui.arena.events import ArenaEvents
from ui.arena.form import ArenaForm, build_form
from ui.arena.leaderboard import RatingsSection, build_ratings
from ui.arena.matches import MATCH_FOLDER, MatchRunner, MatchStore, arena_base
from ui.arena.view import empty_match_view
from ui.context import Context
from ui.own_data import own_allowed

TITLE = "Arena"
HEADING = "Which answer would you pick, not knowing whose it is?"
# Matches wait in the app's own queue for the engine; this many may wait there, the others in Gradio's queue.
MAX_WAITING = 24
_EVENT_OPTIONS = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
_VOTE_BUTTONS: tuple[tuple[Winner, str, str], ...] = (
    ("left", "A is better (1)", "arena-left"),
    ("right", "B is better (2)", "arena-right"),
    ("tie", "Tie (3)", "arena-tie"),
    ("both bad", "Both bad (4)", "arena-bad"),
)


@dataclass(frozen=True)
class ArenaPage:
    """Components that events read and change. `match_id` is the id of the match in this window."""

    form: ArenaForm
    status: gr.HTML
    answers_view: gr.HTML
    outcome: gr.HTML
    votes: dict[Winner, gr.Button]
    voting: gr.Row
    run: gr.Button
    reference: gr.Button
    next: gr.Button
    stop: gr.Button
    ratings_section: RatingsSection
    match_id: gr.State

    @property
    def match_outputs(self) -> list[Any]:
        """The components that change with a match."""
        return [
            self.status, self.answers_view, self.outcome, self.voting, self.run, self.reference, self.next, self.stop,
            self.match_id,
        ]  # fmt: skip


def build_arena(context: Context, tab: gr.Tab) -> None:
    """Build the page inside `tab` and wire its events.

    Votes are stored in votes.sqlite of the app's home, open matches in its folder `arena`.
    """
    runner = MatchRunner(context, VoteStore(context.home / VOTES_FILE), MatchStore(context.home / MATCH_FOLDER))

    def current_base() -> Base | None:
        return arena_base(context.engine_loader.engine()) if context.engine_loader.state().phase == "ready" else None

    with gr.Column(elem_id="arena"):
        gr.HTML(f"<h1>{HEADING}</h1>", apply_default_css=False, js_on_load=None, elem_classes="title")
        form = build_form(context)
        status = components.live_region("", elem_id="arena-status")
        outcome = components.live_region("", elem_id="arena-outcome")
        answers_view = components.comparison_view(empty_match_view(), elem_id="arena-comparison")
        with gr.Column(elem_id="arena-actions"):
            with gr.Row(visible=False, elem_id="arena-votes") as voting:
                votes = {winner: gr.Button(label, elem_id=name) for winner, label, name in _VOTE_BUTTONS}
            with gr.Row(elem_id="arena-more"):
                next_button = gr.Button("Start (n)", variant="primary", scale=0, min_width=150, elem_id="arena-next")
                run = gr.Button("Run the tests (r)", visible=False, scale=0, min_width=150, elem_id="arena-run")
                reference = gr.Button(
                    "Show the reference", visible=False, scale=0, min_width=150, elem_id="arena-reference"
                )
                stop = gr.Button("Stop", visible=False, scale=0, min_width=110, elem_id="arena-stop")
        section = build_ratings(runner.votes, current_base, partial(own_allowed, context))
        gr.HTML("", html_template="", js_on_load=components.load_script("arena"), visible="hidden")
    page = ArenaPage(
        form, status, answers_view, outcome, votes, voting, run, reference, next_button, stop, section, gr.State("")
    )  # fmt: skip
    _wire(page, ArenaEvents(runner, page), tab)


def _wire(page: ArenaPage, events: ArenaEvents, tab: gr.Tab) -> None:
    slow = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": MAX_WAITING}
    ratings = page.ratings_section.outputs
    tab.select(events.load_form, page.form.browser_state, page.form.fields, **_EVENT_OPTIONS)
    tab.select(page.ratings_section.updates, None, ratings, **_EVENT_OPTIONS)
    tab.select(events.restore_match, None, page.match_outputs, **slow)
    page.next.click(events.next_match, [page.match_id, *page.form.fields], page.match_outputs, **slow)
    page.stop.click(events.stop, None, None, **_EVENT_OPTIONS)
    page.run.click(events.run_tests, page.match_id, page.match_outputs, **slow)
    page.reference.click(events.show_reference, page.match_id, page.match_outputs, **_EVENT_OPTIONS)
    for winner, button in page.votes.items():
        voted = button.click(events.vote_handler(winner), page.match_id, page.match_outputs, **_EVENT_OPTIONS)
        # The names appear at once; computing the intervals takes a moment.
        voted.then(
            page.ratings_section.updates,
            [page.ratings_section.base, page.ratings_section.data],
            ratings,
            **_EVENT_OPTIONS,
        )
