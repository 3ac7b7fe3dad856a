"""The Compare page: one question, several methods, their answers side by side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from ui import widgets
from ui.board import empty_board, example_board, first_example
from ui.compare_events import Page, line, wire_history, wire_kept, wire_run
from ui.context import Context
from ui.endpoints import build_endpoints
from ui.history import History, export_file
from ui.method_form import MethodForm, build_method_form
from ui.options import build_options
from ui.problem_picker import Picker, beginners, build_beginners, build_picker, filler, wire_picker
from ui.verdict import verdict
from ui.welcome import build_welcome, build_welcome_again

TITLE = "Compare"
EXPORTS = ("json", "csv")
KEPT = "Your question, your settings and your runs stay in this browser, and nowhere else, until you forget them."
_QUIET = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


def build_compare(context: Context) -> tuple[MethodForm, Callable[[Any], None]]:
    """Draws the page inside the current Blocks and wires it.

    Returns the form, which learns the adapters later, and what brings back the state that the browser kept: to be
    called with the event after which that shall happen.
    """
    example = first_example()
    with gr.Column(elem_id="compare"):
        show = build_welcome(example=bool(beginners(context.data_dir)))
        intent, run, stop, note, picker = _question(context)
        begin = build_beginners(context.data_dir)
        form = build_method_form()
        options = build_options(context.data_dir)
        with gr.Row(elem_id="result-line"):
            status = widgets.live(line(verdict(example.records)) if example else "", elem_id="status")
            exports = [_export_button(kind, visible=bool(example)) for kind in EXPORTS]
        board = widgets.board(example_board(example) if example else empty_board())
        history = _history()
    saved = widgets.download()
    memory, chosen, number = gr.State(History(shown=example.records if example else ())), gr.State(None), gr.State(0)
    page = Page(
        intent, note, run, stop, picker, form, options, status, board, history, exports, memory, chosen,
        widgets.keeper(),
    )  # fmt: skip
    fill = [intent, options.reference, options.tests, options.pool]
    choosing = wire_picker(picker, begin, context.data_dir, chosen, fill)
    triggers = [run.click]
    if begin:
        filled = show.click(filler(begin[0][1]), None, [chosen, *fill], **_QUIET)
        triggers.append(filled.success)
        choosing.append(filled)
    wire_run(page, context, triggers)
    wire_history(page)
    restore = wire_kept(page, context, choosing)
    for kind, button in zip(EXPORTS, exports, strict=True):
        button.click(_exporter(kind), [memory, number], [saved, number], **_QUIET)
    build_endpoints(context)
    return form, restore


def _history() -> gr.HTML:
    gr.HTML("<h2>Your runs</h2>", apply_default_css=False, js_on_load=None, elem_id="history-title")
    history = widgets.history()
    with gr.Row(elem_id="compare-foot"):
        gr.HTML(f'<p class="quiet">{KEPT}</p>', apply_default_css=False, js_on_load=None)
        forget = gr.Button("Forget them", size="sm", scale=0, min_width=110, elem_id="forget")
        build_welcome_again()
    forget.click(None, None, None, js="() => window.peftArenaForget()", api_visibility="private")
    return history


def _question(context: Context) -> tuple[gr.Textbox, gr.Button, gr.Button, gr.HTML, Picker]:
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
    note = widgets.live("", elem_id="intent-note", role="alert")
    return intent, run, stop, note, picker


def _export_button(kind: str, *, visible: bool) -> gr.Button:
    return gr.Button(f"Save {kind.upper()}", size="sm", scale=0, min_width=96, elem_id=f"save-{kind}", visible=visible)


def _exporter(kind: str) -> Any:
    def export(memory: History, number: int) -> tuple[Any, int]:
        return export_file(memory.shown, kind, number + 1), number + 1

    return export
