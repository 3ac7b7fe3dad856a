"""Compare page layout: the introduction, the question, the methods, the answers and the history of runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from ui import components
from ui.access.guard import action
from ui.compare.decoding_form import build_options
from ui.compare.events import ComparePage, wire_browser_state, wire_history, wire_run
from ui.compare.steps import build_endpoints
from ui.compare.verdict import History, export_file, verdict_text
from ui.compare.view import empty_view, example_view, load_first_example
from ui.components import render
from ui.context import Context
from ui.form_fields import (
    MethodForm,
    ProblemPicker,
    build_method_form,
    build_picker,
    build_suggestions,
    fill_handler,
    suggested_problems,
    wire_own_data,
    wire_picker,
)

INTRODUCTION = (
    "A small language model writes Python from one sentence, in several ways at once. The one that comes along is a "
    "general model of 135 million parameters, so it knows little: how the ways differ is the point."
)
COLUMNS_TEXT = (
    "zero-shot gets no help; ICL sees eight fixed examples; RAG sees the eight examples nearest to your words; the "
    "last one is trained with a small add-on, called an adapter, on code of a team with its own library, kit."
)
WELCOME_LINES = (
    ("What this is", INTRODUCTION),
    ("The four columns", COLUMNS_TEXT),
    (
        "What to do",
        "Run the example or ask for code in the team's style, compare the answers, then bring your own rows.",
    ),
)
_WELCOME_JS = "() => window.promptOrTune.setWelcomeVisible({})"


def welcome_html(lines: Sequence[tuple[str, str]] = WELCOME_LINES) -> str:
    """Return the introduction as HTML."""
    return render("compare/welcome.html.jinja", lines=lines)


def build_welcome(*, example: bool) -> gr.Button:
    """Add the introduction, hidden after the first run (js/page.js). Returns the button that runs an example."""
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
    """Add the button that shows the introduction again."""
    button = gr.Button("Show the introduction", size="sm", scale=0, min_width=170, elem_id="show-welcome")
    button.click(None, None, None, js=_WELCOME_JS.format("true"), api_visibility="private")


TITLE = "Compare"
EXPORT_KINDS = ("json", "csv")
PRIVACY_NOTE = (
    "Your question, your settings and your runs stay in this browser, and nowhere else, until you forget them."
)


def build_compare(context: Context, tab: gr.Tab) -> tuple[MethodForm, Callable[[Any], None]]:
    """Add the page to the current Blocks, inside `tab`.

    Returns the method form, whose adapters are filled later, and a function that restores the state of the browser
    after the event that it is called with.
    """
    example = load_first_example()
    problems = suggested_problems(example.suggestions if example else ())
    with gr.Column(elem_id="compare"):
        run_example = build_welcome(example=bool(problems))
        intent, run, stop, note, picker = _build_question(context)
        suggestions = build_suggestions(problems)
        form = build_method_form()
        options = build_options(context.data_dir)
        with gr.Row(elem_id="result-line"):
            status = components.live_region(
                components.paragraph_html(verdict_text(example.records)) if example else "", elem_id="status"
            )
            exports = [_export_button(kind, visible=bool(example)) for kind in EXPORT_KINDS]
        answers = components.comparison_view(example_view(example) if example else empty_view())
        history_list = _build_history()
    download, number = components.file_download(), gr.State(0)
    history = gr.State(History(selected=example.records if example else ()))
    selected_problem = gr.State(None)
    page = ComparePage(
        intent, note, run, stop, picker, form, options, status, answers, history_list, exports, history,
        selected_problem, components.storage_writer(),
    )  # fmt: skip
    fields = [intent, options.reference, options.tests, options.pool]
    selection_events = wire_picker(picker, suggestions, context, selected_problem, fields)
    wire_own_data(picker, options.pool, context, tab)
    triggers = [run.click]
    if suggestions:
        fill = fill_handler(suggestions[0][1])
        filled = run_example.click(fill, None, [selected_problem, *fields], **components.EVENT_OPTIONS)
        triggers.append(filled.success)
        selection_events.append(filled)
    wire_run(page, context, triggers)
    wire_history(page)
    restore = wire_browser_state(page, context, selection_events)
    for kind, button in zip(EXPORT_KINDS, exports, strict=True):
        button.click(_export_handler(kind), [history, number], [download, number], **components.EVENT_OPTIONS)
    build_endpoints(context)
    return form, restore


def _build_history() -> gr.HTML:
    gr.HTML("<h2>Your runs</h2>", apply_default_css=False, js_on_load=None, elem_id="history-title")
    history = components.history_list()
    with gr.Row(elem_id="compare-footer"):
        gr.HTML(f'<p class="muted">{PRIVACY_NOTE}</p>', apply_default_css=False, js_on_load=None)
        clear = gr.Button("Forget them", size="sm", scale=0, min_width=110, elem_id="clear-storage")
        build_show_welcome_button()
    clear.click(None, None, None, js="() => window.promptOrTune.clearStorage()", api_visibility="private")
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
    @action("view pages")
    def export(history: History, number: int) -> tuple[Any, int]:
        return export_file(history.selected, kind, number + 1), number + 1

    return export
