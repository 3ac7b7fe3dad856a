"""Compare layout.

The Compare page: one question, several methods, their answers side by side.

What a first visit reads: three lines, and one click that runs a real example.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import gradio as gr

from ui import components
from ui.compare.decoding_form import build_options
from ui.compare.endpoints import build_endpoints
from ui.compare.events import ComparePage, paragraph_html, wire_browser_state, wire_history, wire_run
from ui.compare.verdict import History, export_file, verdict_text
from ui.compare.view import empty_view, example_view, load_first_example
from ui.context import Context
from ui.method_form import MethodForm, build_method_form
from ui.problem_picker import (
    ProblemPicker,
    build_picker,
    build_starter_buttons,
    fill_handler,
    starter_problems,
    wire_picker,
)

COLUMNS_TEXT = (
    "zero-shot gets no help; ICL sees eight fixed examples; RAG sees the eight examples nearest to your words; the "
    "last one is trained for the task with a small add-on, called an adapter."
)
WELCOME_LINES = (
    (
        "What this is",
        "A small language model writes Python from one sentence, in several ways at once, side by side.",
    ),
    ("The four columns", COLUMNS_TEXT),
    ("What to do", "Ask for a piece of Python below, compare the answers, and see which way suits your kind of code."),
)
_WELCOME_JS = "() => window.promptOrTune.setWelcomeVisible({})"


def welcome_html(lines: Sequence[tuple[str, str]] = WELCOME_LINES) -> str:
    """The three lines."""
    items = "".join(f"<p><strong>{escape(title)}.</strong> {escape(text)}</p>" for title, text in lines)
    return f'<section class="welcome" aria-label="What this is">{items}</section>'


def build_welcome(*, example: bool) -> gr.Button:
    """Draws it, hidden once the browser has seen a run (js/page.js). Returns the button that runs the example."""
    with gr.Column(elem_id="welcome"):
        gr.HTML(welcome_html(), apply_default_css=False, js_on_load=None)
        with gr.Row(elem_id="welcome-actions"):
            run = gr.Button(
                "Run a real example", variant="primary", size="md", scale=0, min_width=170, visible=example,
                elem_id="run-example",
            )  # fmt: skip
            hide = gr.Button("Hide this", size="md", scale=0, min_width=100, elem_id="hide-welcome")
    hide.click(None, None, None, js=_WELCOME_JS.format("false"), api_visibility="private")
    return run


def build_show_welcome_button() -> None:
    """The button that shows it again."""
    again = gr.Button("Show the introduction", size="sm", scale=0, min_width=170, elem_id="show-welcome")
    again.click(None, None, None, js=_WELCOME_JS.format("true"), api_visibility="private")


TITLE = "Compare"
EXPORT_KINDS = ("json", "csv")
PRIVACY_NOTE = (
    "Your question, your settings and your runs stay in this browser, and nowhere else, until you forget them."
)
_EVENT_OPTIONS = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


def build_compare(context: Context) -> tuple[MethodForm, Callable[[Any], None]]:
    """Draws the page inside the current Blocks and wires it.

    Returns the form, which learns the adapters later, and what brings back the state that the browser kept: to be
    called with the event after which that shall happen.
    """
    example = load_first_example()
    with gr.Column(elem_id="compare"):
        show = build_welcome(example=bool(starter_problems(context.data_dir)))
        intent, run, stop, note, picker = _build_question(context)
        begin = build_starter_buttons(context.data_dir)
        form = build_method_form()
        options = build_options(context.data_dir)
        with gr.Row(elem_id="result-line"):
            status = components.live_region(
                paragraph_html(verdict_text(example.records)) if example else "", elem_id="status"
            )
            exports = [_export_button(kind, visible=bool(example)) for kind in EXPORT_KINDS]
        board = components.comparison_view(example_view(example) if example else empty_view())
        history = _build_history()
    saved = components.file_download()
    memory, chosen, number = gr.State(History(selected=example.records if example else ())), gr.State(None), gr.State(0)
    page = ComparePage(
        intent, note, run, stop, picker, form, options, status, board, history, exports, memory, chosen,
        components.storage_writer(),
    )  # fmt: skip
    fill = [intent, options.reference, options.tests, options.pool]
    choosing = wire_picker(picker, begin, context.data_dir, chosen, fill)
    triggers = [run.click]
    if begin:
        filled = show.click(fill_handler(begin[0][1]), None, [chosen, *fill], **_EVENT_OPTIONS)
        triggers.append(filled.success)
        choosing.append(filled)
    wire_run(page, context, triggers)
    wire_history(page)
    restore = wire_browser_state(page, context, choosing)
    for kind, button in zip(EXPORT_KINDS, exports, strict=True):
        button.click(_export_handler(kind), [memory, number], [saved, number], **_EVENT_OPTIONS)
    build_endpoints(context)
    return form, restore


def _build_history() -> gr.HTML:
    gr.HTML("<h2>Your runs</h2>", apply_default_css=False, js_on_load=None, elem_id="history-title")
    history = components.history_list()
    with gr.Row(elem_id="compare-foot"):
        gr.HTML(f'<p class="muted">{PRIVACY_NOTE}</p>', apply_default_css=False, js_on_load=None)
        forget = gr.Button("Forget them", size="sm", scale=0, min_width=110, elem_id="clear-storage")
        build_show_welcome_button()
    forget.click(None, None, None, js="() => window.promptOrTune.clearStorage()", api_visibility="private")
    return history


def _build_question(context: Context) -> tuple[gr.Textbox, gr.Button, gr.Button, gr.HTML, ProblemPicker]:
    with gr.Row(elem_id="title-row"):
        gr.HTML("<h1>What should the Python do?</h1>", apply_default_css=False, js_on_load=None, elem_id="title")
        picker = build_picker(context.data_dir)
    with gr.Row(elem_id="question"):
        intent = gr.Textbox(
            label="What should the Python do?", show_label=False, lines=2, max_lines=12, elem_id="intent",
            autofocus=True, placeholder="map two lists `keys` and `values` into a dictionary",
        )  # fmt: skip
        with gr.Column(scale=0, min_width=132, elem_id="actions"):
            run = gr.Button("Run", variant="primary", size="lg", elem_id="run")
            stop = gr.Button("Stop", variant="stop", size="lg", elem_id="stop", visible=False)
    note = components.live_region("", elem_id="intent-note", role="alert")
    return intent, run, stop, note, picker


def _export_button(kind: str, *, visible: bool) -> gr.Button:
    return gr.Button(f"Save {kind.upper()}", size="sm", scale=0, min_width=96, elem_id=f"save-{kind}", visible=visible)


def _export_handler(kind: str) -> Any:
    def export(memory: History, number: int) -> tuple[Any, int]:
        return export_file(memory.selected, kind, number + 1), number + 1

    return export
