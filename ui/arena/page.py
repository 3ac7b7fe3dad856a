"""The Arena page: two answers without names, a vote, and then who they were."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from evaluate.arena.vote import Base, Winner
from evaluate.arena.votes import FILE, Votes
from ui import widgets
from ui.arena.answering import Arena
from ui.arena.blind import empty_board
from ui.arena.drawing import base_of
from ui.arena.duels import FOLDER, Duels
from ui.arena.events import Events
from ui.arena.form import Form, build_form
from ui.arena.ratings_view import Section, build_ratings
from ui.context import Context

TITLE = "Arena"
QUESTION = "Which answer would you pick, not knowing whose it is?"
# Duels wait in the app's own line for the engine; this many may wait before Gradio's queue takes over.
MAX_WAITING = 24
_QUIET = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
_BUTTONS: tuple[tuple[Winner, str, str], ...] = (
    ("left", "A is better (1)", "arena-left"),
    ("right", "B is better (2)", "arena-right"),
    ("tie", "Tie (3)", "arena-tie"),
    ("both bad", "Both bad (4)", "arena-bad"),
)


@dataclass(frozen=True)
class Page:
    """The components that events read and change. `shown` is the id of the duel that this window shows."""

    form: Form
    status: gr.HTML
    board: gr.HTML
    outcome: gr.HTML
    votes: dict[Winner, gr.Button]
    voting: gr.Row
    run: gr.Button
    reference: gr.Button
    next: gr.Button
    stop: gr.Button
    section: Section
    shown: gr.State

    @property
    def of_duel(self) -> list[Any]:
        """What changes with a duel."""
        return [
            self.status, self.board, self.outcome, self.voting, self.run, self.reference, self.next, self.stop,
            self.shown,
        ]  # fmt: skip


def build_arena(context: Context, tab: gr.Tab) -> None:
    """Draws the page inside `tab` and wires it. Votes lie in the home's votes.sqlite, open duels in its `arena`."""
    arena = Arena(context, Votes(context.home / FILE), Duels(context.home / FOLDER))

    def present() -> Base | None:
        return base_of(context.source.engine()) if context.source.state().phase == "ready" else None

    with gr.Column(elem_id="arena"):
        gr.HTML(f"<h1>{QUESTION}</h1>", apply_default_css=False, js_on_load=None, elem_classes="title")
        form = build_form(context)
        status = widgets.live("", elem_id="arena-status")
        outcome = widgets.live("", elem_id="arena-outcome")
        board = widgets.board(empty_board(), elem_id="arena-board")
        with gr.Column(elem_id="arena-actions"):
            with gr.Row(visible=False, elem_id="arena-votes") as voting:
                votes = {winner: gr.Button(label, elem_id=name) for winner, label, name in _BUTTONS}
            with gr.Row(elem_id="arena-more"):
                following = gr.Button("Start (n)", variant="primary", scale=0, min_width=150, elem_id="arena-next")
                run = gr.Button("Run the tests (r)", visible=False, scale=0, min_width=150, elem_id="arena-run")
                reference = gr.Button(
                    "Show the reference", visible=False, scale=0, min_width=150, elem_id="arena-reference"
                )
                stop = gr.Button("Stop", visible=False, scale=0, min_width=110, elem_id="arena-stop")
        section = build_ratings(arena.votes, present)
        gr.HTML("", html_template="", js_on_load=widgets.script("arena"), visible="hidden")
    page = Page(
        form, status, board, outcome, votes, voting, run, reference, following, stop, section, gr.State("")
    )  # fmt: skip
    _wire(page, Events(arena, page), tab)


def _wire(page: Page, events: Events, tab: gr.Tab) -> None:
    slow = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": MAX_WAITING}
    ratings = page.section.outputs
    tab.select(events.fill, page.form.kept, page.form.fields, **_QUIET)
    tab.select(page.section.updates, None, ratings, **_QUIET)
    tab.select(events.opened, None, page.of_duel, **slow)
    page.next.click(events.following, [page.shown, *page.form.fields], page.of_duel, **slow)
    page.stop.click(events.stop, None, None, **_QUIET)
    page.run.click(events.run_tests, page.shown, page.of_duel, **slow)
    page.reference.click(events.show_reference, page.shown, page.of_duel, **_QUIET)
    for winner, button in page.votes.items():
        voted = button.click(events.voter(winner), page.shown, page.of_duel, **_QUIET)
        # The names come at once; intervals take a moment.
        voted.then(page.section.updates, [page.section.base, page.section.data], ratings, **_QUIET)
