"""Events of the Compare page: a run from the click to its end, the history, and the restored browser state."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

import gradio as gr

from errors import PromptOrTuneError
from tasks.problem import Problem
from ui import components
from ui.access.guard import action
from ui.compare.browser_state import DECODING_FIELDS, STORED_FIELDS, TEXT_FIELDS, parse_browser_state
from ui.compare.comparison import (
    CUSTOM_PROBLEM_ID,
    Comparison,
    QuestionFields,
    build_problem,
    check_request,
    make_comparison,
)
from ui.compare.decoding_form import DecodingForm, decoding_values, read_sampling_params
from ui.compare.endpoints import MAX_WAITING
from ui.compare.steps import ComparisonUpdate, run_comparison
from ui.compare.verdict import History, verdict_text
from ui.compare.view import finished_view
from ui.context import Context
from ui.method_form import MethodForm
from ui.own_data import data_choices, may_use_own, own_allowed, own_names, pool_choices
from ui.problem_picker import DEFAULT_DATA, ProblemPicker
from ui.records import Record, record_problem

INTERNAL_ERROR = "Something went wrong on our side; the log has the details. Nothing you typed is lost."
QUESTION_CHANGED = (
    "You changed the words of the test problem, so its reference and its tests are no longer used. "
    "To score the answers, give your own under 'Reference, tests and options'."
)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ComparePage:
    """The components that events read and change.

    `storage_writer` writes runs and the selected test problem into the storage of the browser (js/storage.js).
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
        """The components that an earlier run fills when it is selected."""
        return [
            self.history_state, self.history_list, self.answers_view, self.status, self.selected_problem, self.intent,
            self.options.reference, self.options.tests, self.form.chips, self.options.pool,
            *self.options.decoding_components,
        ]  # fmt: skip

    @property
    def stored_fields(self) -> dict[str, gr.components.Component]:
        """The fields that are restored after a refresh, by the names of ui/compare/browser_state.py."""
        options = self.options
        fields = (
            self.intent, options.reference, options.tests, self.form.chips, self.picker.data, self.picker.problem,
            options.pool, *options.decoding_components,
        )  # fmt: skip
        return dict(zip(STORED_FIELDS, fields, strict=True))


def wire_run(page: ComparePage, context: Context, triggers: Sequence[Callable[..., Any]]) -> None:
    """Start a run on each of `triggers`; Stop cancels all runs of the window."""
    inputs = [
        page.intent, page.options.reference, page.options.tests, page.selected_problem, page.form.chips,
        page.history_state, page.options.pool, *page.options.decoding_components,
    ]  # fmt: skip
    outputs = [
        page.note, page.run, page.stop, page.status, page.answers_view, page.history_list, page.history_state,
        *page.exports, page.selected_problem, page.options.reference, page.options.tests, page.storage_writer,
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
        # Run is shown again only now: Gradio silently drops a click before the event has ended.
        running.then(_reset_buttons, None, [page.run, page.stop], **components.EVENT_OPTIONS)

    @action("compare")
    def stop(request: gr.Request) -> None:
        context.cancel_registry.cancel(request.session_hash or "")

    page.stop.click(stop, None, None, **components.EVENT_OPTIONS)


def _run_handler(page: ComparePage, context: Context) -> Any:
    """Return the generator behind Run; every yield updates the components that changed."""

    @action("compare")
    def run(
        request: gr.Request,
        intent: str,
        reference: str,
        tests: str,
        selected_problem: Problem | None,
        chips: Any,
        history: History,
        *values: Any,
    ) -> Iterator[dict[Any, Any]]:
        fields = QuestionFields(intent or "", reference, tests, selected_problem)
        with ExitStack() as stack:
            try:
                visitor, methods = context.visitors.identify(request), components.chip_names(chips)
                check_request(fields.intent, fields.reference, methods)
                # Before the quota: a run whose events nobody reads takes nothing from it.
                cancel = stack.enter_context(context.cancel_registry.register(request.session_hash or ""))
                stack.enter_context(context.visitors.quota.reserve(visitor.id, len(methods), visitor.address))
                comparison = _make_comparison(fields, methods, values, own=may_use_own(context, visitor))
                comparison = replace(comparison, owner=visitor.id, address=visitor.address)
            except PromptOrTuneError as error:
                yield {page.note: components.error_html(error)}
                return
            yield _run_started_updates(page, fields)
            try:
                for update in run_comparison(context, comparison, cancel):
                    changes, history = _apply_update(page, update, history)
                    yield changes
            except PromptOrTuneError as error:
                yield {page.status: components.error_html(error)}
            except Exception:  # noqa: BLE001 - the page stays usable; the error is logged with its traceback
                _log.exception("A comparison failed.")
                yield {page.status: components.error_html(INTERNAL_ERROR)}

    return run


@action("view pages")
def _reset_buttons() -> list[Any]:
    return [gr.Button(visible=True), gr.Button(visible=False)]


def _make_comparison(fields: QuestionFields, methods: Sequence[str], values: Sequence[Any], *, own: bool) -> Comparison:
    pool, *decoding = values
    return make_comparison(
        build_problem(fields),
        methods,
        read_sampling_params(*decoding),
        pool,
        tests_text=fields.tests or "",
        own=own,
    )


def _run_started_updates(page: ComparePage, fields: QuestionFields) -> dict[Any, Any]:
    changes: dict[Any, Any] = {
        page.note: "",
        page.run: gr.Button(visible=False),
        page.stop: gr.Button(visible=True),
    }
    stored: dict[str, Any] = {"at": time.time_ns(), "begun": True}
    if fields.stale_reference or fields.stale_tests:
        changes |= {page.note: components.paragraph_html(QUESTION_CHANGED), page.selected_problem: None}
        stored["chosen"] = None
        changes |= {page.options.reference: ""} if fields.stale_reference else {}
        changes |= {page.options.tests: ""} if fields.stale_tests else {}
    return changes | {page.storage_writer: stored}


def _apply_update(page: ComparePage, update: ComparisonUpdate, history: History) -> tuple[dict[Any, Any], History]:
    changes: dict[Any, Any] = {page.status: components.paragraph_html(update.status)}
    if update.make_view is not None:
        changes[page.answers_view] = update.make_view()
    if update.records:
        history = history.with_run(update.records)
        changes |= {page.history_state: history, page.history_list: history.items()}
        changes |= {button: gr.Button(visible=True) for button in page.exports}
        changes[page.storage_writer] = {"at": time.time_ns(), "run": list(update.records)}
    return changes, history


def wire_history(page: ComparePage) -> None:
    """Restore a run and its fields on a click in the history."""

    @action("view pages")
    def restore(history: History, event: gr.EventData) -> list[Any]:
        index = event._data.get("index") if isinstance(event._data, dict) else None
        if not isinstance(index, int) or not 0 <= index < len(history.runs):
            return [gr.skip()] * (len(page.history_outputs) + 1)
        history = history.select(index)
        first: Record = history.selected[0]
        problem = record_problem(first)
        selected = None if problem.id == CUSTOM_PROBLEM_ID else problem
        return [
            *_selected_run_updates(history), selected, first["intent"],
            first["reference"] or "", first["tests_text"],
            components.chip_values([record["method"] for record in history.selected]), first["pool"],
            *decoding_values(first["decoding"]), _store_selected_problem(selected) | {"shown": first["created"]},
        ]  # fmt: skip

    page.history_list.select(
        restore, page.history_state, [*page.history_outputs, page.storage_writer], **components.EVENT_OPTIONS
    )


def wire_browser_state(page: ComparePage, context: Context, selection_events: Sequence[Any]) -> Callable[[Any], None]:
    """Store the fields in the browser when they change, and the selected problem after each of `selection_events`.

    Returns a function that restores all of it and the runs after the load event of the page.
    """
    fields = page.stored_fields
    picker = page.picker
    save, start_saving = (
        f"(...values) => window.promptOrTune.{function}({json.dumps(STORED_FIELDS)}, values)"
        for function in ("saveFields", "startSavingFields")
    )
    gr.on(
        [field.change for field in fields.values()],
        None,
        list(fields.values()),
        None,
        js=save,
        **components.EVENT_OPTIONS,
    )
    for event in selection_events:
        event.then(_store_selected_problem, page.selected_problem, page.storage_writer, **components.EVENT_OPTIONS)
    outputs = [*page.history_outputs, picker.data, picker.problem, picker.note, *page.exports]

    @action("view pages")
    def restore_fields(value: Any, request: gr.Request) -> dict[Any, Any]:
        own = own_allowed(context, request)
        state = parse_browser_state(value, own_names(own=own))
        changes: dict[Any, Any] = {page.history_state: gr.skip()}
        if own:  # the lists of the page as it was built have what everybody has
            changes[picker.data] = gr.Dropdown(choices=data_choices(context.data_dir, own=True))
        if state.selected_problem is not None:
            changes[page.selected_problem] = state.selected_problem
        for name in (*TEXT_FIELDS, "pool", *DECODING_FIELDS):
            if name in state.fields:
                changes[fields[name]] = state.fields[name]
        if own:
            pools = pool_choices(context.data_dir, own=True)
            changes[page.options.pool] = gr.Dropdown(choices=pools, value=state.fields.get("pool", DEFAULT_DATA))
        if "chips" in state.fields:
            changes[page.form.chips] = components.chip_values(state.fields["chips"])
        if "data" in state.fields:
            selected = state.fields["data"], state.fields.get("problem", "")
            updates = picker.selection_updates(*selected, context.data_dir, own=own)
            changes |= dict(zip((picker.data, picker.problem, picker.note), updates, strict=True))
        if state.history.runs:
            changes |= dict(zip(page.history_outputs[:4], _selected_run_updates(state.history), strict=True))
            changes |= {button: gr.Button(visible=True) for button in page.exports}
        return changes

    def restore_after(page_loaded: Any) -> None:
        filled = page_loaded.then(
            restore_fields,
            page.storage_writer,
            outputs,
            js="() => [window.promptOrTune.readStoredState()]",
            **components.EVENT_OPTIONS,
        )
        # Only now: before, the fields hold the values of a new page.
        filled.then(None, list(fields.values()), None, js=start_saving, **components.EVENT_OPTIONS)

    return restore_after


@action("view pages")
def _store_selected_problem(problem: Problem | None) -> dict[str, Any]:
    return {"at": time.time_ns(), "chosen": asdict(problem) if problem else None}


def _selected_run_updates(history: History) -> list[Any]:
    """Return updates for history state, history list, answers and status that show the selected run."""
    status = components.paragraph_html(verdict_text(history.selected))
    return [history, history.items(), finished_view(history.selected), status]
