"""Events of the Compare page: a run from the click to its end, the history, and the state in the browser's storage.

State of the Compare page in the storage of the browser, validated when it is read back. js/page.js stores it, so that
no other visitor sees it and the server stores nothing. Its values are untrusted.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

import gradio as gr
from pydantic import TypeAdapter, ValidationError

from errors import PromptOrTuneError
from tasks.datasets.registry import DATASETS, TRAINING_DATASETS
from tasks.methods import MAX_INTENT_CHARS
from tasks.problem import Problem
from ui import components
from ui.access.guard import action, data_choices, may_use_own, own_allowed, own_names, pool_choices
from ui.compare.comparison import (
    CUSTOM_PROBLEM_ID,
    MAX_COLUMNS,
    Comparison,
    QuestionFields,
    build_problem,
    check_request,
    make_comparison,
)
from ui.compare.decoding_form import DECODING_MODES, DecodingForm, decoding_values, read_sampling_params
from ui.compare.steps import MAX_WAITING, ComparisonUpdate, run_comparison
from ui.compare.verdict import HISTORY_LENGTH, History, verdict_text
from ui.compare.view import finished_view
from ui.components import chip_names
from ui.context import Context
from ui.form_fields import DEFAULT_DATA, MethodForm, ProblemPicker
from ui.test_bench import Record, record_problem, records_to_csv

TEXT_FIELDS = ("intent", "reference", "tests")
DECODING_FIELDS = ("mode", "candidates", "max_new_tokens", "temperature", "top_p", "seed")
# In the order of the components in ComparePage.stored_fields.
STORED_FIELDS = (*TEXT_FIELDS, "chips", "data", "problem", "pool", *DECODING_FIELDS)
_MAX_NAME_LENGTH = 200
_RUN_ADAPTER: TypeAdapter[list[Record]] = TypeAdapter(list[Record])
_PROBLEM_ADAPTER = TypeAdapter(Problem)
_log = logging.getLogger(__name__)
INTERNAL_ERROR = "Something went wrong on our side; the log has the details. Nothing you typed is lost."
QUESTION_CHANGED = (
    "You changed the words of the test problem, so its reference and its tests are no longer used. "
    "To score the answers, give your own under 'Reference, tests and options'."
)


@dataclass(frozen=True)
class BrowserState:
    """The valid fields by name, the selected test problem, and the runs."""

    fields: Mapping[str, Any]
    selected_problem: Problem | None
    history: History


def parse_browser_state(value: Any, own_names: Sequence[str] = ()) -> BrowserState:
    """Parse {"fields", "chosen", "runs", "shown"} of the browser; invalid parts are left out.

    `own_names` are the data sets that this visitor may use beside those that everybody has.
    """
    state = value if isinstance(value, dict) else {}
    return BrowserState(
        _parse_fields(state.get("fields"), own_names),
        _parse_problem(state.get("chosen")),
        _parse_history(state.get("runs"), state.get("shown")),
    )


def _parse_fields(value: Any, own_names: Sequence[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {}
    fields: dict[str, Any] = {name: value[name] for name in TEXT_FIELDS if isinstance(value.get(name), str)}
    chips = value.get("chips")
    if isinstance(chips, list) and all(isinstance(chip, dict) and isinstance(chip.get("name"), str) for chip in chips):
        fields["chips"] = [name for name in chip_names(chips) if len(name) <= _MAX_NAME_LENGTH][:MAX_COLUMNS]
    known = {"data": (*DATASETS, *own_names), "pool": (*TRAINING_DATASETS, *own_names)}
    fields |= {name: value[name] for name, names in known.items() if value.get(name) in names}
    if isinstance(value.get("problem"), str):
        fields["problem"] = value["problem"]
    decoding = [value.get(name) for name in DECODING_FIELDS]
    if decoding[0] not in {name for _, name in DECODING_MODES}:
        return fields
    try:
        read_sampling_params(*decoding)  # type: ignore[arg-type]  # this is the check of their types
    except (PromptOrTuneError, TypeError, ValueError):
        return fields
    return fields | dict(zip(DECODING_FIELDS, decoding, strict=True))


def _parse_problem(value: Any) -> Problem | None:
    try:
        problem = _PROBLEM_ADAPTER.validate_python(value) if value is not None else None
    except ValidationError:
        return None
    texts = (problem.id, problem.intent, problem.reference or "", problem.prompt) if problem else ()
    return problem if all(len(text) <= MAX_INTENT_CHARS for text in texts) else None


def _parse_history(value: Any, selected: Any) -> History:
    stored = value[:HISTORY_LENGTH] if isinstance(value, list) else []
    runs = tuple(run for run in map(_parse_run, stored) if run)
    return History(runs, next((run for run in runs if run[0]["created"] == selected), runs[0] if runs else ()))


def _parse_run(value: Any) -> tuple[Record, ...]:
    """Return the records of a run; () if the page cannot show or export them, as after an update of the program."""
    try:
        run = tuple(_RUN_ADAPTER.validate_python(value, strict=True))
        History((run,)).items(), verdict_text(run), records_to_csv(run), finished_view(run), record_problem(run[0])
    except (ValidationError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
        _log.info("A run in the storage of a browser cannot be shown (%s).", type(error).__name__)
        return ()
    return run


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
        """The fields that are restored after a refresh, by the names of ui/compare/events.py."""
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
