"""Arena page: two answers without method names, a vote, then the names; ratings, win matrix and votes below.

Leaderboard of the Arena: ratings with intervals, a table of votes, a win matrix, and files of all votes. The template
escapes all names and messages.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import gradio as gr
from markupsafe import Markup

from common.format import utc_timestamp
from errors import PromptOrTuneError
from evaluate.arena.ratings import Rating, RatingTable, compute_ratings, player_labels, rank_text, vote_count_text
from evaluate.arena.votes import EXPORTERS, VOTES_FILE, Base, Player, VoteStore, Winner
from evaluate.stats import Interval
from tasks.datasets.registry import DATASETS
from ui import components
from ui.access.guard import action, own_allowed
from ui.arena.events import ArenaEvents
from ui.arena.matches import MATCH_FOLDER, MatchRunner, MatchStore, arena_base
from ui.arena.view import ArenaForm, build_form, empty_match_view
from ui.components import method_label, model_label, render
from ui.context import Context

ALL_QUESTIONS = "*"
CUSTOM_QUESTIONS = "people's own questions"
_MEDIA_TYPES = {"jsonl": "application/x-ndjson", "csv": "text/csv"}
_EVENT_OPTIONS = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
# Points between the ends of an axis are a multiple of this.
_AXIS_STEP = 100
_MIN_RANGE_WIDTH = 0.002
RATING_NOTE = (
    "1000 is the mean of all rated methods; 400 points more win ten times as often as they lose. A tie, and both bad, "
    "count as half a win for each. The line is the 95 % interval: where two overlap, the votes do not tell them apart."
)
NO_VOTES = "No votes yet. Ratings appear here when there are enough of them."
TITLE = "Arena"
HEADING = "Which answer would you pick, not knowing whose it is?"
# Matches wait in the app's own queue for the engine; this many may wait there, the others in Gradio's queue.
MAX_WAITING = 24
_VOTE_BUTTONS: tuple[tuple[Winner, str, str], ...] = (
    ("left", "A is better (1)", "arena-left"),
    ("right", "B is better (2)", "arena-right"),
    ("tie", "Tie (3)", "arena-tie"),
    ("both bad", "Both bad (4)", "arena-bad"),
)


def ratings_html(base: Base | None, ratings: RatingTable) -> Markup:
    """Return the ratings over the votes on `base`: plot, table of votes and win matrix."""
    if base is None or not ratings.votes:
        return Markup('<p class="empty">{}</p>').format(NO_VOTES)
    players = [rating.player for rating in ratings.ratings]
    names = {player: _player_label(label) for player, label in player_labels(players).items()}
    rated = [(names[rating.player], rating.interval) for rating in ratings.ratings if rating.interval]
    about = f"{vote_count_text(ratings.votes, ratings.people)} · {model_label(base.id, base.quantization, '')}"
    low, high = _axis([interval for _, interval in rated])
    return render(
        "arena/leaderboard.html.jinja",
        about=about.rstrip(" ·"),
        notes=[note for note in (ratings.no_ratings_reason, ratings.unrated_reason) if note],
        intervals=[_interval_row(name, interval, low, high) for name, interval in rated],
        low=low,
        high=high,
        votes=[_votes_row(rating, names[rating.player]) for rating in ratings.ratings],
        players=[names[player] for player in players],
        matrix=[(names[player], [_matrix_cell(ratings, player, other) for other in players]) for player in players],
        rating_note=RATING_NOTE if rated else "",
    )


def _player_label(label: str) -> str:
    # The part in brackets is a piece of a digest, which tells two adapters of the same name apart.
    method, space, rest = label.partition(" (")
    return f"{method_label(method)}{space}{rest}"


def _axis(intervals: Sequence[Interval]) -> tuple[int, int]:
    """Return the ends of an axis that holds all intervals."""
    low = min((interval.low for interval in intervals), default=0)
    high = max((interval.high for interval in intervals), default=0)
    return _AXIS_STEP * math.floor(low / _AXIS_STEP), _AXIS_STEP * math.ceil(high / _AXIS_STEP)


def _interval_row(name: str, interval: Interval, low: float, high: float) -> dict[str, str]:
    """Return one row of the plot; positions are shares of the axis from `low` to `high`."""

    def position(value: float) -> float:
        return (value - low) / max(high - low, 1)

    return {
        "name": name,
        "range_left": f"{position(interval.low):.2%}",
        "range_width": f"{max(position(interval.high) - position(interval.low), _MIN_RANGE_WIDTH):.2%}",
        "dot_left": f"{position(interval.value):.2%}",
        "value": f"{interval.value:.0f}",
        "low": f"{interval.low:.0f}",
        "high": f"{interval.high:.0f}",
    }


def _votes_row(rating: Rating, name: str) -> dict[str, Any]:
    wins = rating.win_counts
    return {
        "name": name,
        "rating": f"{rating.interval.value:.0f}" if rating.interval else "",
        "rank": rank_text(rating),
        "counts": (wins.votes, wins.wins, wins.losses, wins.ties, wins.both_bad),
    }


def _matrix_cell(ratings: RatingTable, player: Player, other: Player) -> dict[str, str] | None:
    """Return the share of wins of `player` against `other`, and the votes on the pair; None without votes."""
    wins = ratings.pair_counts.get((player, other))
    if wins is None or wins.win_rate is None:
        return None
    return {"win_rate": f"{wins.win_rate:.0%}", "votes": f"{wins.votes} vote{'' if wins.votes == 1 else 's'}"}


@dataclass(frozen=True)
class RatingsSection:
    """Components of the leaderboard; `updates` returns their current values.

    `sees_own` says whether the visitor of a request may see the names of the data sets of the owner of the app.
    """

    votes: VoteStore
    current_base: Callable[[], Base | None]
    sees_own: Callable[[gr.Request], bool]
    base: gr.Dropdown
    data: gr.Dropdown
    table: gr.HTML
    export_row: gr.Row

    @property
    def outputs(self) -> list[Any]:
        return [self.base, self.data, self.table, self.export_row]

    @action("view pages")
    def updates(self, request: gr.Request, base_key: str | None = None, data: str | None = None) -> list[Any]:
        """Return updates of `outputs`: the ratings on a base (default: the served one) over one data set or all."""
        try:
            return self._updates(base_key, data or ALL_QUESTIONS, own=self.sees_own(request))
        except PromptOrTuneError as error:
            return [gr.skip(), gr.skip(), _error_html(error), gr.Row(visible=False)]

    def _updates(self, base_key: str | None, data: str, *, own: bool) -> list[Any]:
        bases = [base for base, _ in self.votes.bases()]
        keys = [_base_key(base) for base in bases]
        current = self.current_base()
        base = current if current in bases else next(iter(bases), current)
        if base_key in keys:
            base = bases[keys.index(base_key)]
        data_sets = sorted({name for name, _ in self.votes.comparisons(base)}) if base is not None else []
        data_sets = [name for name in data_sets if own or not name or name in DATASETS]
        data = data if data in data_sets else ALL_QUESTIONS
        data_choices = [("all questions", ALL_QUESTIONS), *((name or CUSTOM_QUESTIONS, name) for name in data_sets)]
        ratings = RatingTable() if base is None else _compute_ratings(self.votes, base, data, self.votes.count())
        return [
            gr.Dropdown(
                choices=[(_base_label(option, bases), key) for option, key in zip(bases, keys, strict=True)],
                value=_base_key(base) if base in bases else None,
                visible=len(bases) > 1,
            ),
            gr.Dropdown(choices=data_choices, value=data, visible=len(data_sets) > 1),
            ratings_html(base, ratings),
            gr.Row(visible=bool(bases)),
        ]


def build_ratings(
    votes: VoteStore,
    current_base: Callable[[], Base | None],
    sees_own: Callable[[gr.Request], bool] = lambda _request: False,
) -> RatingsSection:
    """Build the section and wire its events. `current_base` returns the served base, None while it is being loaded."""
    with gr.Row(elem_id="arena-ratings-head"):
        gr.HTML("<h2>Ratings</h2>", apply_default_css=False, js_on_load=None, elem_id="arena-ratings-title")
        base = gr.Dropdown([], label="Base model", visible=False, min_width=260, elem_id="arena-base")
        data = gr.Dropdown(
            [("all questions", ALL_QUESTIONS)],
            value=ALL_QUESTIONS,
            label="Votes on",
            visible=False,
            min_width=180,
            elem_id="arena-data",
        )
    table = gr.HTML(
        ratings_html(None, RatingTable()),
        html_template="<section aria-label='Ratings'>${value}</section>",
        js_on_load=None,
        apply_default_css=False,
        elem_id="arena-ratings",
    )
    with gr.Row(visible=False, elem_id="arena-exports") as export_row:
        export_buttons = {
            kind: gr.Button(f"Save votes as {kind.upper()}", size="sm", scale=0, elem_id=f"save-votes-{kind}")
            for kind in EXPORTERS
        }
        gr.HTML(
            '<p class="muted">Every vote with its question, both answers and all settings; people as numbers.</p>',
            apply_default_css=False, js_on_load=None,
        )  # fmt: skip
    section = RatingsSection(votes, current_base, sees_own, base, data, table, export_row)
    gr.on([base.input, data.input], section.updates, [base, data], section.outputs, **_EVENT_OPTIONS)
    download, number = components.file_download(), gr.State(0)
    for kind, button in export_buttons.items():
        button.click(_save_handler(votes, kind), number, [download, number, table], **_EVENT_OPTIONS)
    return section


def _save_handler(votes: VoteStore, kind: str) -> Any:
    @action("save all votes")
    def save(number: int) -> tuple[Any, int, Any]:
        try:
            text = EXPORTERS[kind](votes)
        except PromptOrTuneError as error:
            return gr.skip(), number, _error_html(error)
        name = f"arena-votes-{utc_timestamp()[:10]}.{kind}"
        return {"name": name, "type": _MEDIA_TYPES[kind], "text": text, "number": number + 1}, number + 1, gr.skip()

    return save


@lru_cache(maxsize=32)
def _compute_ratings(votes: VoteStore, base: Base, data: str, count: int) -> RatingTable:
    """Compute the ratings; `count` is the number of votes, so that the cache misses after each vote."""
    del count
    return compute_ratings(
        [comparison for name, comparison in votes.comparisons(base) if data in (ALL_QUESTIONS, name)]
    )


def _base_key(base: Base) -> str:
    return f"{base.id}|{base.revision}|{base.quantization}"


def _base_label(base: Base, bases: list[Base]) -> str:
    """Return the model's name, with its revision where two bases have the same name."""
    label = model_label(base.id, base.quantization, "")
    is_shared = any(other != base and model_label(other.id, other.quantization, "") == label for other in bases)
    return (f"{label} · {base.revision[:16]}" if is_shared else label).rstrip(" ·")


def _error_html(error: PromptOrTuneError) -> Markup:
    return Markup('<p class="error-message">{}</p>').format(error)


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
