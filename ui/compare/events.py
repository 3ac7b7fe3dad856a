"""What happens on the Compare page: a run from the click to its end, going back to an earlier one, a refresh."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from html import escape
from typing import Any

import gradio as gr

from errors import PromptOrTuneError
from tasks.problem import Problem
from ui import components
from ui.compare.browser_state import DECODING_FIELDS, STORED_FIELDS, TEXT_FIELDS, parse_browser_state
from ui.compare.decoding_form import DecodingForm, decoding_values, make_sampling_params
from ui.compare.endpoints import MAX_WAITING
from ui.compare.run import CUSTOM_PROBLEM_ID, Comparison, QuestionFields, build_problem, make_comparison
from ui.compare.steps import ComparisonUpdate, run_comparison
from ui.compare.verdict import History, verdict_text
from ui.compare.view import finished_view
from ui.context import Context
from ui.method_form import MethodForm
from ui.problem_picker import ProblemPicker
from ui.records import Record, problem_tests

INTERNAL_ERROR = "Something went wrong on our side, and the log says what. Nothing you typed is lost."
QUESTION_CHANGED = (
    "You changed the words of the test problem, so its reference and its tests are no longer used. "
    "To score the answers, give your own under 'Reference, tests and options'."
)
_EVENT_OPTIONS = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ComparePage:
    """The components that events read and change.

    `keeper` hands runs and the test problem that is asked about to the browser's storage: see js/storage.js.
    """

    intent: gr.Textbox
    note: gr.HTML
    run: gr.Button
    stop: gr.Button
    picker: ProblemPicker
    form: MethodForm
    options: DecodingForm
    status: gr.HTML
    answers_view: gr.HTML
    history_list: gr.HTML
    exports: Sequence[gr.Button]
    history_state: gr.State
    selected_problem: gr.State
    storage_writer: gr.HTML

    @property
    def history_outputs(self) -> list[gr.components.Component]:
        """What a run that is shown again fills."""
        return [
            self.history_state, self.history_list, self.answers_view, self.status, self.selected_problem, self.intent, self.options.reference,
            self.options.tests, self.form.chips, self.options.pool, *self.options.decoding_components,
        ]  # fmt: skip

    @property
    def stored_fields(self) -> dict[str, gr.components.Component]:
        """The fields that stay over a refresh, by the names of ui/compare/browser_state.py."""
        options = self.options
        fields = (
            self.intent, options.reference, options.tests, self.form.chips, self.picker.data, self.picker.problem,
            options.pool, *options.decoding_components,
        )  # fmt: skip
        return dict(zip(STORED_FIELDS, fields, strict=True))


def wire_run(page: ComparePage, context: Context, triggers: Sequence[Callable[..., Any]]) -> None:
    """Each of the triggers begins a run; Stop ends all runs of the window."""
    inputs = [
        page.intent, page.options.reference, page.options.tests, page.selected_problem, page.form.chips, page.history_state,
        page.options.pool, *page.options.decoding_components,
    ]  # fmt: skip
    outputs = [
        page.note, page.run, page.stop, page.status, page.answers_view, page.history_list, page.history_state, *page.exports,
        page.selected_problem, page.options.reference, page.options.tests, page.storage_writer,
    ]  # fmt: skip
    runner = _run_handler(page, context)
    for trigger in triggers:
        running = trigger(
            runner,
            inputs,
            outputs,
            show_progress="hidden",
            api_visibility="private",
            concurrency_limit=MAX_WAITING,
            concurrency_id="pages",
        )
        # Run comes back when Gradio holds the event as over: a click before that would be dropped without a word.
        running.then(_reset_buttons, None, [page.run, page.stop], **_EVENT_OPTIONS)

    def stop(request: gr.Request) -> None:
        context.cancel_registry.cancel(request.session_hash or "")

    page.stop.click(stop, None, None, **_EVENT_OPTIONS)


def _run_handler(page: ComparePage, context: Context) -> Any:
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
        fields = QuestionFields(intent, reference, tests, chosen)
        with ExitStack() as held:
            try:
                ask = replace(_make_comparison(fields, chips, values), owner=context.visitors.identify(request).id)
                held.enter_context(context.visitors.quota.reserve(ask.owner, len(ask.methods)))
            except PromptOrTuneError as error:
                yield {page.note: error_html(error)}
                return
            yield _run_started_updates(page, fields)
            try:
                cancel = held.enter_context(context.cancel_registry.register(request.session_hash or ""))
                for step in run_comparison(context, ask, cancel):
                    changes, memory = _apply_update(page, step, memory)
                    yield changes
            except PromptOrTuneError as error:
                yield {page.status: error_html(error)}
            except Exception:  # noqa: BLE001 - a page must outlive any defect; it is logged whole
                _log.exception("A comparison failed.")
                yield {page.status: error_html(INTERNAL_ERROR)}

    return run


def _reset_buttons() -> list[Any]:
    return [gr.Button(visible=True), gr.Button(visible=False)]


def _make_comparison(fields: QuestionFields, chips: Any, values: Sequence[Any]) -> Comparison:
    problem, note = build_problem(fields)
    pool, *choices = values
    return make_comparison(
        problem,
        components.chip_names(chips),
        make_sampling_params(*choices),
        pool,
        tests_text=fields.tests or "",
        tests_note=note,
    )


def _run_started_updates(page: ComparePage, fields: QuestionFields) -> dict[Any, Any]:
    changes: dict[Any, Any] = {
        page.note: "",
        page.run: gr.Button(visible=False),
        page.stop: gr.Button(visible=True),
    }
    kept: dict[str, Any] = {"at": time.time_ns(), "begun": True}
    if fields.stale_reference or fields.stale_tests:
        changes |= {page.note: paragraph_html(QUESTION_CHANGED), page.selected_problem: None}
        kept["chosen"] = None
        changes |= {page.options.reference: ""} if fields.stale_reference else {}
        changes |= {page.options.tests: ""} if fields.stale_tests else {}
    return changes | {page.storage_writer: kept}


def _apply_update(page: ComparePage, update: ComparisonUpdate, history: History) -> tuple[dict[Any, Any], History]:
    changes: dict[Any, Any] = {page.status: paragraph_html(update.status)}
    if update.make_view is not None:
        changes[page.answers_view] = update.make_view()
    if update.records:
        history = history.with_run(update.records)
        changes |= {page.history_state: history, page.history_list: history.items()}
        changes |= {button: gr.Button(visible=True) for button in page.exports}
        changes[page.storage_writer] = {"at": time.time_ns(), "run": list(update.records)}
    return changes, history


def wire_history(page: ComparePage) -> None:
    """A click on one of the runs brings it back, with all that it was asked with."""

    def restore(memory: History, event: gr.EventData) -> list[Any]:
        index = event._data.get("index") if isinstance(event._data, dict) else None
        if not isinstance(index, int) or not 0 <= index < len(memory.runs):
            return [gr.skip()] * (len(page.history_outputs) + 1)
        memory = memory.select(index)
        first: Record = memory.selected[0]
        problem = Problem(first["problem_id"], first["intent"], first["reference"], problem_tests(first))
        chosen = None if problem.id == CUSTOM_PROBLEM_ID else problem
        return [
            *_selected_run_updates(memory), chosen, first["intent"],
            first["reference"] or "", first["tests_text"],
            components.chip_values([record["method"] for record in memory.selected]), first["pool"],
            *decoding_values(first["decoding"]), _store_selected_problem(chosen) | {"shown": first["created"]},
        ]  # fmt: skip

    page.history_list.select(
        restore, page.history_state, [*page.history_outputs, page.storage_writer], **_EVENT_OPTIONS
    )


def wire_browser_state(page: ComparePage, context: Context, selection_events: Sequence[Any]) -> Callable[[Any], None]:
    """What the fields say stays in the browser as it changes, and so does the problem after the events `choosing` it.

    Returns what brings all of it back, with the runs, after the event of a page that has come up.
    """
    fields = page.stored_fields
    picker = page.picker
    save, start_saving = (
        f"(...values) => window.promptOrTune.{function}({json.dumps(STORED_FIELDS)}, values)"
        for function in ("saveFields", "startSavingFields")
    )
    gr.on([field.change for field in fields.values()], None, list(fields.values()), None, js=save, **_EVENT_OPTIONS)
    for event in selection_events:
        event.then(_store_selected_problem, page.selected_problem, page.storage_writer, **_EVENT_OPTIONS)
    outputs = [*page.history_outputs, picker.data, picker.problem, picker.note, *page.exports]

    def restore(value: Any) -> dict[Any, Any]:
        kept = parse_browser_state(value)
        changes: dict[Any, Any] = {page.history_state: gr.skip()}
        if kept.selected_problem is not None:
            changes[page.selected_problem] = kept.selected_problem
        for name in (*TEXT_FIELDS, "pool", *DECODING_FIELDS):
            if name in kept.fields:
                changes[fields[name]] = kept.fields[name]
        if "chips" in kept.fields:
            changes[page.form.chips] = components.chip_values(kept.fields["chips"])
        if "data" in kept.fields:
            shown = picker.selection_updates(kept.fields["data"], kept.fields.get("problem", ""), context.data_dir)
            changes |= dict(zip((picker.data, picker.problem, picker.note), shown, strict=True))
        if kept.history.runs:
            changes |= dict(zip(page.history_outputs[:4], _selected_run_updates(kept.history), strict=True))
            changes |= {button: gr.Button(visible=True) for button in page.exports}
        return changes

    def after(came_up: Any) -> None:
        filled = came_up.then(
            restore, page.storage_writer, outputs, js="() => [window.promptOrTune.readStoredState()]", **_EVENT_OPTIONS
        )
        # Only now: before, the fields hold the values of a new page.
        filled.then(None, list(fields.values()), None, js=start_saving, **_EVENT_OPTIONS)

    return after


def _store_selected_problem(problem: Problem | None) -> dict[str, Any]:
    return {"at": time.time_ns(), "chosen": asdict(problem) if problem else None}


def _selected_run_updates(history: History) -> list[Any]:
    """The run on the board: for memory, history, board and status."""
    return [history, history.items(), finished_view(history.selected), paragraph_html(verdict_text(history.selected))]


def paragraph_html(text: str) -> str:
    """A line of the page; escaped."""
    return f"<p>{escape(text)}</p>"


def error_html(error: object) -> str:
    """What went wrong, as the page shows it; escaped."""
    return f'<p class="error-message">{escape(str(error))}</p>'
