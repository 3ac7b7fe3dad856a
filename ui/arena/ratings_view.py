"""The ratings under the duel: which base and which questions they are over, and the files to save."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from typing import Any

import gradio as gr

from errors import PeftArenaError
from evaluate.arena.export import EXPORTS
from evaluate.arena.ratings import Ratings, rate
from evaluate.arena.vote import Base
from evaluate.arena.votes import Votes
from ui import widgets
from ui.arena.ratings_html import ratings_html
from ui.labels import model_line
from ui.live import now

ALL = "*"
OWN = "people's own questions"
_MEDIA = {"jsonl": "application/x-ndjson", "csv": "text/csv"}
_QUIET = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


@dataclass(frozen=True)
class Section:
    """The components; `updates` gives their values anew."""

    votes: Votes
    present: Callable[[], Base | None]
    base: gr.Dropdown
    data: gr.Dropdown
    sheet: gr.HTML
    buttons: gr.Row

    @property
    def outputs(self) -> list[Any]:
        return [self.base, self.data, self.sheet, self.buttons]

    def updates(self, chosen: str | None = None, data: str | None = None) -> list[Any]:
        """Values for `outputs`: the ratings of a base (the present one by default) over all questions or a data set."""
        try:
            return self._updates(chosen, data or ALL)
        except PeftArenaError as fault:
            return [gr.skip(), gr.skip(), f'<p class="sentence">{escape(str(fault))}</p>', gr.Row(visible=False)]

    def _updates(self, chosen: str | None, data: str) -> list[Any]:
        known = [base for base, _ in self.votes.bases()]
        keys = [_key(base) for base in known]
        present = self.present()
        base = present if present in known else next(iter(known), present)
        if chosen in keys:
            base = known[keys.index(chosen)]
        sets = sorted({name for name, _ in self.votes.bouts(base)}) if base is not None else []
        data = data if data in sets else ALL
        names = [("all questions", ALL), *((name or OWN, name) for name in sets)]
        return [
            gr.Dropdown(
                choices=[(_label(base, known), key) for base, key in zip(known, keys, strict=True)],
                value=_key(base) if base in known else None, visible=len(known) > 1,
            ),
            gr.Dropdown(choices=names, value=data, visible=len(sets) > 1),
            ratings_html(base, _ratings(self.votes, base, data, self.votes.count()) if base is not None else Ratings()),
            gr.Row(visible=bool(known)),
        ]  # fmt: skip


def build_ratings(votes: Votes, present: Callable[[], Base | None]) -> Section:
    """Draws the section and wires it. `present` is the base that answers now, None while it loads."""
    with gr.Row(elem_id="arena-ratings-head"):
        gr.HTML("<h2>Ratings</h2>", apply_default_css=False, js_on_load=None, elem_id="arena-ratings-title")
        base = gr.Dropdown([], label="Base model", visible=False, min_width=260, elem_id="arena-base")
        data = gr.Dropdown(
            [("all questions", ALL)], value=ALL, label="Votes on", visible=False, min_width=180, elem_id="arena-data"
        )
    sheet = gr.HTML(
        ratings_html(None, Ratings()),
        html_template="<section aria-label='Ratings'>${value}</section>",
        js_on_load=None,
        apply_default_css=False,
        elem_id="arena-ratings",
    )
    with gr.Row(visible=False, elem_id="arena-exports") as buttons:
        saves = {kind: gr.Button(f"Save votes as {kind.upper()}", size="sm", scale=0) for kind in EXPORTS}
        gr.HTML(
            '<p class="quiet">Every vote with its question, both answers and all settings; people as numbers.</p>',
            apply_default_css=False, js_on_load=None,
        )  # fmt: skip
    section = Section(votes, present, base, data, sheet, buttons)
    gr.on([base.input, data.input], section.updates, [base, data], section.outputs, **_QUIET)
    saved, number = widgets.download(), gr.State(0)
    for kind, button in saves.items():
        button.click(_saver(votes, kind), number, [saved, number, sheet], **_QUIET)
    return section


def _saver(votes: Votes, kind: str) -> Any:
    def save(number: int) -> tuple[Any, int, Any]:
        try:
            text = EXPORTS[kind](votes)
        except PeftArenaError as fault:
            return gr.skip(), number, f'<p class="sentence">{escape(str(fault))}</p>'
        name = f"arena-votes-{now()[:10]}.{kind}"
        return {"name": name, "type": _MEDIA[kind], "text": text, "number": number + 1}, number + 1, gr.skip()

    return save


@lru_cache(maxsize=32)
def _ratings(votes: Votes, base: Base, data: str, count: int) -> Ratings:
    """Computed once for as many votes as there are: `count` changes with every vote."""
    del count
    return rate([bout for name, bout in votes.bouts(base) if data in (ALL, name)])


def _key(base: Base) -> str:
    return f"{base.id}|{base.revision}|{base.quantization}"


def _label(base: Base, known: list[Base]) -> str:
    """The model's name, with its revision where two share it."""
    line = model_line(base.id, base.quantization, "")
    twin = any(other != base and model_line(other.id, other.quantization, "") == line for other in known)
    return (f"{line} · {base.revision[:16]}" if twin else line).rstrip(" ·")
