"""The Results page: pick runs, read tables and plots, filter problems, open one, download."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from errors import PeftArenaError
from evaluate.results import Run
from ui import widgets
from ui.board import Board
from ui.results.address import READ, WRITE, Asked, carrier, read_asked
from ui.results.answers import problem_board
from ui.results.exports import KINDS, export
from ui.results.problems import problem_list, problem_widget, summary_widget
from ui.results.shelf import Shelf
from ui.results.summary import choose_html, empty_html, reading_html, summary_html
from ui.results.view import SHOW, View, make_view, select

TITLE = "Results"
ALL_METHODS = ("All methods", "")
DEFECT = "Something went wrong on our side, and the log says what."
NO_BOARD: Board = {"run": "", "head": "", "cards": [], "reference": None}
_QUIET = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Page:
    """The components that events read and change."""

    runs: gr.Dropdown
    note: gr.HTML
    summary: gr.HTML
    downloads: gr.Row
    filters: gr.Row
    method: gr.Dropdown
    show: gr.Dropdown
    words: gr.Textbox
    problems: gr.HTML
    board: gr.HTML
    shown: gr.State
    asked: gr.State  # what the address asked for and is not shown yet
    picked: gr.State  # the runs that are shown


def build_results(shelf: Shelf, tab: gr.Tab) -> None:
    """Draws the page inside the current Blocks and wires it. Runs are read when somebody looks at the tab."""
    with gr.Column(elem_id="results"):
        with gr.Row(elem_id="results-title"):
            gr.HTML("<h1>What do the numbers say?</h1>", apply_default_css=False, js_on_load=None, elem_classes="title")
            runs = gr.Dropdown(
                [], value=[], multiselect=True, label="Runs", show_label=False, elem_id="runs", min_width=260
            )
            again = gr.Button("Look again", size="md", scale=0, min_width=110, elem_id="look-again")
        note = widgets.live("", elem_id="results-note", role="alert")
        summary = summary_widget(choose_html())
        with gr.Row(visible=False, elem_id="downloads") as downloads:
            buttons = {kind: gr.Button(label, size="sm", scale=0, min_width=92) for kind, label in KINDS.items()}
        with gr.Row(visible=False, elem_id="filters") as filters:
            method = gr.Dropdown([ALL_METHODS], value="", label="Method", min_width=180, elem_id="filter-method")
            show = gr.Dropdown(
                [(label, name) for name, label in SHOW.items()], value="all", label="Problems", min_width=180,
                elem_id="filter-show",
            )  # fmt: skip
            words = gr.Textbox(
                label="Words in the question, the reference or an answer", lines=1, max_lines=1, min_width=220, scale=2,
                elem_id="filter-words",
            )  # fmt: skip
        problems = problem_widget()
        board = widgets.board(NO_BOARD, elem_id="answers")
    shown, asked, picked = gr.State(""), gr.State(Asked()), gr.State([])
    page = Page(runs, note, summary, downloads, filters, method, show, words, problems, board, shown, asked, picked)
    saved, number = widgets.download(), gr.State(0)
    _wire(page, shelf)
    _wire_address(page, shelf, tab)
    again.click(lambda: choices(shelf), None, runs, **_QUIET)
    for kind, button in buttons.items():
        button.click(_exporter(shelf, kind), [runs, number], [saved, number, note], **_QUIET)


def choices(shelf: Shelf) -> Any:
    """The runs that lie in the folders now, as the choice of them."""
    return gr.Dropdown(choices=[(entry.name, entry.name) for entry in shelf.entries()])


def read(shelf: Shelf, names: Sequence[str]) -> tuple[list[tuple[str, Run]], list[str]]:
    """The runs of these names, and a sentence for each that cannot be read."""
    runs, sentences = [], []
    for name in dict.fromkeys(names):
        try:
            runs.append((name, shelf.run(name)))
        except PeftArenaError as fault:
            sentences.append(str(fault))
    return runs, sentences


def _wire(page: Page, shelf: Shelf) -> None:
    chosen = [page.runs, page.method, page.show, page.words]

    def view_of(names: Sequence[str]) -> View:
        return make_view(read(shelf, names)[0])

    def pick(names: list[str], asked: Asked, picked: list[str]) -> Iterator[dict[Any, Any]]:
        if names and names == picked:
            # A choice that is only drawn anew has changed nothing: filters and an open problem stay.
            yield {page.picked: gr.skip()}
            return
        try:
            yield {page.picked: names}
            yield from _picked(page, shelf, names, asked)
        except Exception:  # noqa: BLE001 - a page must outlive any defect; it is logged whole
            _log.exception("The runs %s could not be shown.", names)
            yield {page.note: _sentences([DEFECT])}

    def narrow(names: list[str], method: str, show: str, words: str, shown: str) -> dict[Any, Any]:
        view = view_of(names)
        return {page.problems: problem_list(view, select(view, show, method, words), shown=shown)}

    def click(names: list[str], method: str, show: str, words: str, shown: str, event: gr.EventData) -> dict[Any, Any]:
        asked = event._data if isinstance(event._data, dict) else {}
        view = view_of(names)
        rows = select(view, show, method, words)
        if isinstance(asked.get("from"), int):
            return {page.problems: problem_list(view, rows, asked["from"], shown)}
        place = view.by_id.get(str(asked.get("id")))
        if place is None:
            return {}
        row = view.rows[place]
        at = next((at for at, other in enumerate(rows) if other.id == row.id), 0)
        return {
            page.problems: problem_list(view, rows, at, row.id),
            page.board: problem_board(view, row, method),
            page.shown: row.id,
        }

    def failures(names: list[str], shown: str, event: gr.EventData) -> dict[Any, Any]:
        asked = event._data if isinstance(event._data, dict) else {}
        view = view_of(names)
        key = str(asked.get("method"))
        if key not in {side.key for side in view.sides}:
            return {}
        listed = problem_list(view, select(view, "failures", key, ""), shown=shown)
        return {page.method: key, page.show: "failures", page.words: "", page.problems: listed}

    outputs = [
        page.note, page.summary, page.downloads, page.filters, page.method, page.show, page.words, page.problems,
        page.board, page.shown, page.asked, page.picked,
    ]  # fmt: skip
    # In the queue, which its steps need; who chooses again while numbers are computed wants the last choice alone.
    page.runs.change(
        pick, [page.runs, page.asked, page.picked], outputs, show_progress="hidden", api_visibility="private",
        trigger_mode="always_last",
    )  # fmt: skip
    narrowing = [page.method.input, page.show.input, page.words.change]
    gr.on(narrowing, narrow, [*chosen, page.shown], [page.problems], **_QUIET)
    page.summary.select(
        failures, [page.runs, page.shown], [page.method, page.show, page.words, page.problems], **_QUIET
    )
    page.problems.select(click, [*chosen, page.shown], [page.problems, page.board, page.shown], **_QUIET)


def _wire_address(page: Page, shelf: Shelf, tab: gr.Tab) -> None:
    """The address follows the choices. Whoever opens the tab finds what it names, or the first run of all."""

    def look(chosen: list[str], address: Any) -> dict[Any, Any]:
        if chosen:
            return {page.asked: gr.skip()}
        names = [entry.name for entry in shelf.entries()]
        asked = read_asked(address, names)
        value = list(asked.runs) or names[:1]
        return {page.runs: gr.Dropdown(choices=[(name, name) for name in names], value=value), page.asked: asked}

    tab.select(look, [page.runs, carrier()], [page.runs, page.asked], js=READ, **_QUIET)
    fields = [page.runs, page.method, page.show, page.words, page.problems]
    gr.on([field.change for field in fields], None, fields, None, js=WRITE, **_QUIET)


def _picked(page: Page, shelf: Shelf, names: Sequence[str], asked: Asked) -> Iterator[dict[Any, Any]]:
    """The problems at once, then the table and the plots, then the comparisons."""
    runs, sentences = read(shelf, names)
    view = make_view(runs)
    if view.left_out:
        others = ", ".join(f"'{name}'" for name in view.left_out)
        sentences.append(f"The plots and problems below leave out {others}: these are over other problems.")
    summary = choose_html() if shelf.entries() else empty_html(str(shelf.folders[-1][1]))
    methods = [ALL_METHODS, *((side.label, side.key) for side in view.sides)]
    asked = asked.fitting(view)
    row = view.rows[view.by_id[asked.problem]] if asked.problem else None
    rows = select(view, asked.show, asked.method, asked.words)
    at = next((at for at, other in enumerate(rows) if row and other.id == row.id), 0)
    yield {
        page.note: _sentences(sentences),
        page.summary: reading_html(runs) if runs else summary,
        page.downloads: gr.Row(visible=bool(runs)),
        page.filters: gr.Row(visible=bool(view.rows)),
        page.method: gr.Dropdown(choices=methods, value=asked.method),
        page.show: asked.show,
        page.words: asked.words,
        page.problems: problem_list(view, rows, at, asked.problem),
        page.board: problem_board(view, row, asked.method) if row else NO_BOARD,
        page.shown: asked.problem,
        page.asked: Asked() if names else gr.skip(),
    }
    for compared in (False, True):
        if runs:
            yield {page.summary: summary_html(runs, view, compared=compared)}


def _exporter(shelf: Shelf, kind: str) -> Any:
    def save(names: list[str], number: int) -> tuple[Any, int, Any]:
        try:
            runs, _ = read(shelf, names)
            return export(runs, kind, number + 1), number + 1, gr.skip()
        except PeftArenaError as fault:
            return gr.skip(), number, _sentences([str(fault)])

    return save


def _sentences(texts: Sequence[str]) -> str:
    return "".join(f'<p class="sentence">{escape(text)}</p>' for text in texts)
