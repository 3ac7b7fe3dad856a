"""Ratings section.

The ratings under the duel: which base and which questions they are over, and the files to save.

The ratings as HTML: dots with intervals, a table, and who won how often against whom. All texts are escaped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from typing import Any

import gradio as gr

from errors import PromptOrTuneError
from evaluate.arena.ratings import Rating, RatingTable, compute_ratings, player_labels, rank_text, vote_count_text
from evaluate.arena.votes import EXPORTERS, Base, Player, VoteStore
from evaluate.stats import Interval
from ui import components
from ui.compare.steps import utc_timestamp
from ui.labels import method_label, model_label

_AXIS_STEP = 100  # points between the ends of an axis are a multiple of this
RATING_NOTE = (
    "1000 is the mean of all rated methods; 400 points more win ten times as often as they lose. A tie, and both bad, "
    "count as half a win for each. The line is the 95 % interval: where two overlap, the votes do not tell them apart."
)
NO_VOTES = "No votes yet. A rating appears here once there are enough of them to say something."


def ratings_html(base: Base | None, ratings: RatingTable) -> str:
    """The section under the duel."""
    if base is None or not ratings.votes:
        return f'<p class="empty">{NO_VOTES}</p>'
    names = {player: _player_label(name) for player, name in _player_labels(ratings).items()}
    rated = [standing for standing in ratings.ratings if standing.interval]
    about = f"{vote_count_text(ratings.votes, ratings.people)} · {model_label(base.id, base.quantization, '')}".rstrip(
        " ·"
    )
    notes = "".join(
        f'<p class="low-votes">{escape(note)}</p>'
        for note in (ratings.no_ratings_reason, ratings.unrated_reason)
        if note
    )
    how = f'<p class="muted">{escape(RATING_NOTE)}</p>' if rated else ""
    plot = _interval_plot(rated, names) if rated else ""
    return (
        f'<p class="about">{escape(about)}</p>{notes}'
        f'<div class="arena-sheets">{plot}{_votes_table(ratings.ratings, names)}{_win_matrix(ratings, names)}</div>{how}'
    )


def _player_labels(ratings: RatingTable) -> dict[Player, str]:
    return player_labels([standing.player for standing in ratings.ratings])


def _player_label(name: str) -> str:
    # The piece of a digest that tells two adapters of one name apart is no part of the method's own name.
    method, space, rest = name.partition(" (")
    return f"{method_label(method)}{space}{rest}"


def _interval_plot(rated: Sequence[Rating], names: Mapping[Player, str]) -> str:
    intervals = [standing.interval for standing in rated if standing.interval]
    low = _AXIS_STEP * math.floor(min(interval.low for interval in intervals) / _AXIS_STEP)
    high = _AXIS_STEP * math.ceil(max(interval.high for interval in intervals) / _AXIS_STEP)
    lines = "".join(
        _interval_row(names[standing.player], interval, low, high)
        for standing, interval in zip(rated, intervals, strict=True)
    )
    ends = f'<div class="axis" aria-hidden="true"><span>{low}</span><span>{high}</span></div>'
    return (
        '<figure class="plot"><figcaption>Rating with its 95 % interval</figcaption>'
        f'<ul class="bars">{lines}</ul>{ends}</figure>'
    )


def _interval_row(name: str, interval: Interval, low: float, high: float) -> str:
    def place(value: float) -> float:
        return (value - low) / max(high - low, 1)

    label = escape(name)
    width = max(place(interval.high) - place(interval.low), 0.002)
    figures = f"{interval.value:.0f} <span>[{interval.low:.0f}, {interval.high:.0f}]</span>"
    return (
        f'<li><span class="name" title="{label}">{label}</span><span class="track" aria-hidden="true">'
        f'<span class="range" style="left:{place(interval.low):.2%};width:{width:.2%}"></span>'
        f'<span class="dot" style="left:{place(interval.value):.2%}"></span></span>'
        f'<span class="value">{figures}</span></li>'
    )


def _votes_table(standings: Sequence[Rating], names: Mapping[Player, str]) -> str:
    head = "".join(
        f'<th scope="col">{name}</th>'
        for name in ("Method", "Rating", "Place", "Votes", "Won", "Lost", "Tie", "Both bad")
    )
    rows = "".join(_votes_row(standing, names[standing.player]) for standing in standings)
    return (
        '<figure class="plot"><figcaption>All votes</figcaption><div class="table-scroll" tabindex="0" role="group" '
        f'aria-label="Votes by method"><table class="grid"><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div></figure>"
    )


def _votes_row(standing: Rating, name: str) -> str:
    tally = standing.win_counts
    counts = (tally.votes, tally.wins, tally.losses, tally.ties, tally.both_bad)
    cells = "".join(f"<td>{count}</td>" for count in counts)
    rating = (
        f"{standing.interval.value:.0f}" if standing.interval else '<span class="low-votes">too few votes to say</span>'
    )
    return f'<tr><th scope="row">{escape(name)}</th><td>{rating}</td><td>{rank_text(standing)}</td>{cells}</tr>'


def _win_matrix(ratings: RatingTable, names: Mapping[Player, str]) -> str:
    """Each row's share of wins against each column."""
    players = [standing.player for standing in ratings.ratings]
    head = "".join(f'<th scope="col">{escape(names[player])}</th>' for player in players)
    rows = "".join(
        f'<tr><th scope="row">{escape(names[one])}</th>{"".join(_matrix_cell(ratings, one, other) for other in players)}</tr>'
        for one in players
    )
    return (
        '<figure class="plot wide"><figcaption>How often the row beats the column, ties as half</figcaption>'
        '<div class="table-scroll" tabindex="0" role="group" aria-label="Win matrix"><table class="grid matrix">'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{rows}</tbody></table></div></figure>"
    )


def _matrix_cell(ratings: RatingTable, one: Player, other: Player) -> str:
    tally = ratings.pair_counts.get((one, other))
    if tally is None or tally.win_rate is None:
        return '<td class="none">–</td>'
    votes = f"{tally.votes} vote{'' if tally.votes == 1 else 's'}"
    return f'<td style="--share:{tally.win_rate:.0%}">{tally.win_rate:.0%}<span>{votes}</span></td>'


ALL_QUESTIONS = "*"
CUSTOM_QUESTIONS = "people's own questions"
_MEDIA_TYPES = {"jsonl": "application/x-ndjson", "csv": "text/csv"}
_EVENT_OPTIONS = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


@dataclass(frozen=True)
class RatingsSection:
    """The components; `updates` gives their values anew."""

    votes: VoteStore
    current_base: Callable[[], Base | None]
    base: gr.Dropdown
    data: gr.Dropdown
    table: gr.HTML
    export_row: gr.Row

    @property
    def outputs(self) -> list[Any]:
        return [self.base, self.data, self.table, self.export_row]

    def updates(self, chosen: str | None = None, data: str | None = None) -> list[Any]:
        """Values for `outputs`: the ratings of a base (the present one by default) over all questions or a data set."""
        try:
            return self._updates(chosen, data or ALL_QUESTIONS)
        except PromptOrTuneError as error:
            return [gr.skip(), gr.skip(), f'<p class="error-message">{escape(str(error))}</p>', gr.Row(visible=False)]

    def _updates(self, chosen: str | None, data: str) -> list[Any]:
        known = [base for base, _ in self.votes.bases()]
        keys = [_base_key(base) for base in known]
        present = self.current_base()
        base = present if present in known else next(iter(known), present)
        if chosen in keys:
            base = known[keys.index(chosen)]
        sets = sorted({name for name, _ in self.votes.comparisons(base)}) if base is not None else []
        data = data if data in sets else ALL_QUESTIONS
        names = [("all questions", ALL_QUESTIONS), *((name or CUSTOM_QUESTIONS, name) for name in sets)]
        return [
            gr.Dropdown(
                choices=[(_base_label(base, known), key) for base, key in zip(known, keys, strict=True)],
                value=_base_key(base) if base in known else None, visible=len(known) > 1,
            ),
            gr.Dropdown(choices=names, value=data, visible=len(sets) > 1),
            ratings_html(base, _compute_ratings(self.votes, base, data, self.votes.count()) if base is not None else RatingTable()),
            gr.Row(visible=bool(known)),
        ]  # fmt: skip


def build_ratings(votes: VoteStore, current_base: Callable[[], Base | None]) -> RatingsSection:
    """Draws the section and wires it. `present` is the base that answers now, None while it loads."""
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
    sheet = gr.HTML(
        ratings_html(None, RatingTable()),
        html_template="<section aria-label='Ratings'>${value}</section>",
        js_on_load=None,
        apply_default_css=False,
        elem_id="arena-ratings",
    )
    with gr.Row(visible=False, elem_id="arena-exports") as buttons:
        saves = {kind: gr.Button(f"Save votes as {kind.upper()}", size="sm", scale=0) for kind in EXPORTERS}
        gr.HTML(
            '<p class="muted">Every vote with its question, both answers and all settings; people as numbers.</p>',
            apply_default_css=False, js_on_load=None,
        )  # fmt: skip
    section = RatingsSection(votes, current_base, base, data, sheet, buttons)
    gr.on([base.input, data.input], section.updates, [base, data], section.outputs, **_EVENT_OPTIONS)
    saved, number = components.file_download(), gr.State(0)
    for kind, button in saves.items():
        button.click(_save_handler(votes, kind), number, [saved, number, sheet], **_EVENT_OPTIONS)
    return section


def _save_handler(votes: VoteStore, kind: str) -> Any:
    def save(number: int) -> tuple[Any, int, Any]:
        try:
            text = EXPORTERS[kind](votes)
        except PromptOrTuneError as error:
            return gr.skip(), number, f'<p class="error-message">{escape(str(error))}</p>'
        name = f"arena-votes-{utc_timestamp()[:10]}.{kind}"
        return {"name": name, "type": _MEDIA_TYPES[kind], "text": text, "number": number + 1}, number + 1, gr.skip()

    return save


@lru_cache(maxsize=32)
def _compute_ratings(votes: VoteStore, base: Base, data: str, count: int) -> RatingTable:
    """Computed once for as many votes as there are: `count` changes with every vote."""
    del count
    return compute_ratings([bout for name, bout in votes.comparisons(base) if data in (ALL_QUESTIONS, name)])


def _base_key(base: Base) -> str:
    return f"{base.id}|{base.revision}|{base.quantization}"


def _base_label(base: Base, known: list[Base]) -> str:
    """The model's name, with its revision where two share it."""
    line = model_label(base.id, base.quantization, "")
    twin = any(other != base and model_label(other.id, other.quantization, "") == line for other in known)
    return (f"{line} · {base.revision[:16]}" if twin else line).rstrip(" ·")
