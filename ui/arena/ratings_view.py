"""The ratings under the duel: which base and which questions they are over, and the files to save."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from typing import Any

import gradio as gr

from errors import PromptOrTuneError
from evaluate.arena.export import EXPORTERS
from evaluate.arena.ratings import RatingTable, compute_ratings
from evaluate.arena.vote import Base
from evaluate.arena.votes import VoteStore
from ui import widgets
from ui.arena.ratings_html import ratings_html
from ui.labels import model_label
from ui.live import utc_timestamp

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
        except PromptOrTuneError as fault:
            return [gr.skip(), gr.skip(), f'<p class="sentence">{escape(str(fault))}</p>', gr.Row(visible=False)]

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
            '<p class="quiet">Every vote with its question, both answers and all settings; people as numbers.</p>',
            apply_default_css=False, js_on_load=None,
        )  # fmt: skip
    section = RatingsSection(votes, current_base, base, data, sheet, buttons)
    gr.on([base.input, data.input], section.updates, [base, data], section.outputs, **_EVENT_OPTIONS)
    saved, number = widgets.file_download(), gr.State(0)
    for kind, button in saves.items():
        button.click(_save_handler(votes, kind), number, [saved, number, sheet], **_EVENT_OPTIONS)
    return section


def _save_handler(votes: VoteStore, kind: str) -> Any:
    def save(number: int) -> tuple[Any, int, Any]:
        try:
            text = EXPORTERS[kind](votes)
        except PromptOrTuneError as fault:
            return gr.skip(), number, f'<p class="sentence">{escape(str(fault))}</p>'
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
