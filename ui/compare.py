"""The Compare page: one question, several methods, their answers side by side."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

import gradio as gr

from errors import PeftArenaError
from tasks.problem import Problem
from ui import widgets
from ui.asked import TYPED_ID, Fields, problem_of
from ui.board import empty_board, example_board, finished_board, first_example
from ui.compare_run import make_ask
from ui.context import Context
from ui.history import History, export_file
from ui.live import answers, live_steps
from ui.method_form import MethodForm, build_method_form
from ui.options import Options, build_options, decoding, decoding_fields
from ui.problem_picker import Picker, build_beginners, build_picker, wire_picker
from ui.records import Record, problem_tests
from ui.verdict import verdict

TITLE = "Compare"
EXPORTS = ("json", "csv")
DEFECT = "Something went wrong on our side, and the log says what. Nothing you typed is lost."
NEW_WORDS = (
    "You changed the words of the test problem, so its reference and its tests are no longer used. "
    "To score the answers, give your own under 'Reference, tests and options'."
)
# Runs wait in our own line for the engine; this many may wait before Gradio's queue takes over.
MAX_WAITING = 24
_QUIET = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Page:
    """The components that events read and change."""

    intent: gr.Textbox
    note: gr.HTML
    run: gr.Button
    stop: gr.Button
    form: MethodForm
    options: Options
    status: gr.HTML
    board: gr.HTML
    history: gr.HTML
    exports: Sequence[gr.Button]
    memory: gr.State
    chosen: gr.State


def build_compare(context: Context) -> MethodForm:
    """Draws the page inside the current Blocks and wires it. Returns the form, which learns the adapters later."""
    example = first_example()
    with gr.Column(elem_id="compare"):
        intent, run, stop, note, picker = _question(context)
        begin = build_beginners(context.data_dir)
        form = build_method_form()
        options = build_options(context.data_dir)
        with gr.Row(elem_id="result-line"):
            status = widgets.live(_line(verdict(example.records)) if example else "", elem_id="status")
            exports = [_export_button(kind, visible=bool(example)) for kind in EXPORTS]
        board = widgets.board(example_board(example) if example else empty_board())
        gr.HTML("<h2>This session</h2>", apply_default_css=False, js_on_load=None, elem_id="history-title")
        history = widgets.history()
    saved = widgets.download()
    memory, chosen, number = gr.State(History(shown=example.records if example else ())), gr.State(None), gr.State(0)
    page = Page(intent, note, run, stop, form, options, status, board, history, exports, memory, chosen)
    wire_picker(picker, begin, context.data_dir, chosen, [intent, options.reference, options.tests, options.pool])
    _wire_run(page, context)
    _wire_history(page)
    for kind, button in zip(EXPORTS, exports, strict=True):
        button.click(_exporter(kind), [memory, number], [saved, number], **_QUIET)
    gr.api(endpoint(context), api_name="compare", concurrency_limit=MAX_WAITING)
    return form


def endpoint(context: Context) -> Any:
    """The function behind `/compare`."""

    def compare(
        intent: str, methods: list[str], reference: str | None = None, tests: str | None = None
    ) -> list[dict[str, Any]]:
        """Answers an intent with each method; one record a method, failures included.

        `methods` are names such as zero-shot, icl-8, rag-8, lora-starter, lora-starter+rag-8. `tests` are asserts or
        input and output pairs; each record's `tests` says what they found, or `tests_note` why they did not run.
        """
        try:
            problem, note = problem_of(Fields(intent, reference, tests))
            ask = make_ask(problem, methods, tests_text=tests or "", tests_note=note)
            return [dict(record) for record in answers(context, ask)]
        except PeftArenaError as fault:
            raise gr.Error(str(fault), print_exception=False) from fault

    return compare


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


def _wire_run(page: Page, context: Context) -> None:
    inputs = [
        page.intent, page.options.reference, page.options.tests, page.chosen, page.form.chips, page.memory,
        page.options.pool, *page.options.of_decoding,
    ]  # fmt: skip
    outputs = [
        page.note, page.run, page.stop, page.status, page.board, page.history, page.memory, *page.exports,
        page.chosen, page.options.reference, page.options.tests,
    ]  # fmt: skip
    page.run.click(
        _runner(page, context),
        inputs,
        outputs,
        show_progress="hidden",
        api_visibility="private",
        concurrency_limit=MAX_WAITING,
    )

    def stop(request: gr.Request) -> None:
        context.stops.stop(request.session_hash or "")

    page.stop.click(stop, None, None, **_QUIET)


def _runner(page: Page, context: Context) -> Any:
    """The generator behind Run: every yield repaints what changed."""

    def run(
        request: gr.Request,
        intent: str,
        reference: str,
        tests: str,
        chosen: Problem | None,
        chips: Any,
        memory: History,
        *values: Any,
    ) -> Iterator[dict[Any, Any]]:
        fields = Fields(intent, reference, tests, chosen)
        try:
            problem, tests_note = problem_of(fields)
            names = widgets.chip_names(chips)
            pool, *choices = values
            ask = make_ask(problem, names, decoding(*choices), pool, tests_text=tests, tests_note=tests_note)
            ask = replace(ask, owner=request.session_hash or "")
        except PeftArenaError as fault:
            yield {page.note: _sentence(fault)}
            return
        start: dict[Any, Any] = {page.note: "", page.run: gr.Button(visible=False), page.stop: gr.Button(visible=True)}
        if fields.lost_reference or fields.lost_tests:
            start |= {page.note: _line(NEW_WORDS), page.chosen: None}
            start |= {page.options.reference: ""} if fields.lost_reference else {}
            start |= {page.options.tests: ""} if fields.lost_tests else {}
        yield start
        ended = {page.run: gr.Button(visible=True), page.stop: gr.Button(visible=False)}
        try:
            with context.stops.running(request.session_hash or "") as cancel:
                for step in live_steps(context, ask, cancel):
                    changes: dict[Any, Any] = {page.status: _line(step.status)}
                    if step.board is not None:
                        changes[page.board] = step.board
                    if step.records:
                        memory = memory.with_run(step.records)
                        changes |= {page.memory: memory, page.history: memory.items()}
                        changes |= {button: gr.Button(visible=True) for button in page.exports}
                    yield changes
            yield ended
        except PeftArenaError as fault:
            yield {page.status: _sentence(fault), **ended}
        except Exception:  # noqa: BLE001 - a page must outlive any defect; it is logged whole
            _log.exception("A comparison failed.")
            yield {page.status: _sentence(DEFECT), **ended}

    return run


def _wire_history(page: Page) -> None:
    outputs = [
        page.memory, page.history, page.board, page.status, page.chosen, page.intent, page.options.reference,
        page.options.tests, page.form.chips, page.options.pool, *page.options.of_decoding,
    ]  # fmt: skip

    def restore(memory: History, event: gr.EventData) -> list[Any]:
        index = event._data.get("index") if isinstance(event._data, dict) else None
        if not isinstance(index, int) or not 0 <= index < len(memory.runs):
            return [gr.skip()] * len(outputs)
        memory = memory.showing(index)
        records = memory.shown
        first: Record = records[0]
        chosen = Problem(first["problem_id"], first["intent"], first["reference"], problem_tests(first))
        return [
            memory, memory.items(), finished_board(records), _line(verdict(records)),
            None if chosen.id == TYPED_ID else chosen, first["intent"],
            first["reference"] or "", first["tests_text"],
            widgets.chip_values([record["method"] for record in records]), first["pool"],
            *decoding_fields(first["decoding"]),
        ]  # fmt: skip

    page.history.select(restore, page.memory, outputs, **_QUIET)


def _export_button(kind: str, *, visible: bool) -> gr.Button:
    return gr.Button(f"Save {kind.upper()}", size="sm", scale=0, min_width=96, elem_id=f"save-{kind}", visible=visible)


def _exporter(kind: str) -> Any:
    def export(memory: History, number: int) -> tuple[Any, int]:
        return export_file(memory.shown, kind, number + 1), number + 1

    return export


def _line(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def _sentence(fault: object) -> str:
    return f'<p class="sentence">{escape(str(fault))}</p>'
