"""Advise page: the question, the form that starts an advice, and the panel of all advice below it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from markupsafe import Markup

from advise.options import DEFAULT_MINUTES, MAX_MINUTES, MIN_MINUTES
from errors import PromptOrTuneError
from jobs.api import JobService
from jobs.job import Job
from ui.access.guard import action, guard
from ui.advise.data import DEFAULT_DATA, data_names
from ui.advise.endpoints import build_endpoints
from ui.advise.events import BUTTONS, MAX_SEED, AdviceActions, panel_update, winner
from ui.components import error_html, file_download, live_region
from ui.context import Context
from ui.data.add import add_rows, added_html
from ui.method_form import MethodForm, add_adapter_updates
from ui.own_data import may_use_own
from ui.train.jobs_events import PanelUpdate, failed_poll_state
from ui.train.jobs_panel import (
    INTERNAL_ERROR,
    OPEN_COMPARE_JS,
    job_card_component,
    job_list_component,
    log_component,
    poll_component,
    static_html,
)

TITLE = "Advise"
HEADER_HTML = Markup(
    "<h1>Prompt, retrieve or fine-tune?</h1>"
    '<p class="lead">Give your rows and a time. The program chooses examples for prompts and settings for trainings on '
    "validation rows, asks the best of each way the test rows, and says which way to take, or that these rows do not "
    "show a difference.</p>"
)
READING = "Reading the rows, and looking for pairs that resemble each other ..."
_EVENT_OPTIONS = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
_POLL_JS = "() => window.promptOrTune.pollJobs?.()"
_PRIMARY = ("open", "again")
_log = logging.getLogger(__name__)
_ActionFn = Callable[[gr.Request, str | None], Mapping[Any, Any]]


@dataclass(frozen=True)
class AdviseForm:
    """Components of the form."""

    data: gr.Dropdown
    minutes: gr.Number
    seed: gr.Number
    file: gr.File
    report: gr.HTML
    start: gr.Button
    note: gr.HTML


@dataclass(frozen=True)
class AdvicePanel:
    """Components of the panel that events read and change."""

    selected: gr.State
    poller: gr.HTML
    note: gr.HTML
    empty: gr.HTML
    layout: gr.Row
    jobs: gr.HTML
    parts: Mapping[str, gr.HTML]
    buttons: Mapping[str, gr.Button]
    actions: gr.Row
    action_note: gr.HTML
    confirmation: gr.Column
    confirmation_text: gr.HTML
    confirmation_buttons: Mapping[str, gr.Button]
    download: gr.HTML


def build_advise(context: Context, tab: gr.Tab, form: MethodForm) -> None:
    """Build the page inside `tab`, wire its events and add its endpoints.

    `form` is that of the Compare page, for 'Open the winner in Compare'.
    """
    actions = AdviceActions(context, JobService(context.home))
    selected = gr.State("")
    with gr.Column(elem_id="advise"):
        advise_form = _build_form()
        panel = _build_panel(selected)
    _wire_form(advise_form, panel, actions, tab)
    _wire_poll(panel, actions)
    _wire_buttons(panel, actions)
    _wire_result(panel, actions, form)
    build_endpoints(actions)


def _build_form() -> AdviseForm:
    static_html(HEADER_HTML, "advise-head")
    with gr.Row(elem_id="advise-rows"):
        with gr.Column(scale=3, min_width=260, elem_id="advise-fields"):
            with gr.Row(elem_id="advise-main"):
                data = gr.Dropdown(
                    [DEFAULT_DATA], value=DEFAULT_DATA, label="Rows", min_width=180, elem_id="advise-data"
                )
                minutes = gr.Number(
                    DEFAULT_MINUTES,
                    label="Minutes",
                    minimum=MIN_MINUTES,
                    maximum=MAX_MINUTES,
                    min_width=110,
                    elem_id="advise-minutes",
                )
            with gr.Accordion("More", open=False, elem_id="advise-more"):
                seed = gr.Number(
                    42, label="Seed", info="The same seed makes the same choices again.", precision=0, minimum=0,
                    maximum=MAX_SEED, elem_id="advise-seed",
                )  # fmt: skip
            with gr.Row(elem_id="advise-begin"):
                start = gr.Button(
                    "Plan and run", variant="primary", size="lg", scale=0, min_width=180, elem_id="advise-start"
                )
                note = live_region("", elem_id="advise-start-note", role="alert")
        file = gr.File(
            label="Or your own rows, in a file",
            type="filepath",
            height=150,
            scale=2,
            min_width=260,
            visible=False,
            elem_id="advise-file",
        )
    report = live_region("", elem_id="advise-added")
    return AdviseForm(data, minutes, seed, file, report, start, note)


def _build_panel(selected: gr.State) -> AdvicePanel:
    with gr.Column(elem_id="advise-jobs"):
        static_html("<h2>Advice</h2>", "advise-jobs-title")
        note = live_region("", elem_id="advise-jobs-note", role="alert")
        empty = static_html('<p class="muted">Looking for advice ...</p>', "advise-jobs-empty")
        with gr.Row(elem_id="advise-jobs-columns", visible=False) as layout:
            jobs = job_list_component("advise-job-list", "Advice, newest first")
            with gr.Column(elem_id="advise-job", min_width=0):
                parts = {
                    "head": job_card_component("advise-job-head"),
                    "line": live_region("", elem_id="advise-job-line"),
                }
                with gr.Row(elem_id="advise-job-actions") as actions:
                    buttons = {name: _action_button(name, label) for name, label in BUTTONS.items()}
                action_note = live_region("", elem_id="advise-job-note", role="alert")
                confirmation, text, answers = _build_confirmation()
                parts |= {
                    "message": static_html("", "advise-job-message"),
                    "failed": static_html("", "advise-job-failed"),
                }
                with gr.Row(elem_id="advise-job-folds"):
                    parts |= {
                        "plan": job_card_component("advise-job-plan"),
                        "curves": job_card_component("advise-job-curves"),
                        "log": log_component("advise-job-log"),
                    }
                parts["report"] = job_card_component("advise-job-report")
    return AdvicePanel(
        selected, poll_component("advise", "advice"), note, empty, layout, jobs, parts, buttons, actions, action_note,
        confirmation, text, answers, file_download(),
    )  # fmt: skip


def _action_button(name: str, label: str) -> gr.Button:
    variant = "primary" if name in _PRIMARY else "secondary"
    return gr.Button(
        label, size="md", scale=0, min_width=96, variant=variant, visible=False, elem_id=f"advise-job-{name}"
    )


def _build_confirmation() -> tuple[gr.Column, gr.HTML, dict[str, gr.Button]]:
    choices = (
        ("job", "Delete the advice", "stop"),
        ("both", "Delete the advice and the adapter", "stop"),
        ("keep", "Keep it", "secondary"),
    )
    with gr.Column(visible=False, elem_id="advise-delete-confirm") as column:
        text = static_html("", "advise-delete-text")
        with gr.Row(elem_id="advise-delete-answers"):
            buttons = {
                name: gr.Button(
                    label, size="md", scale=0, min_width=120, variant=variant, elem_id=f"advise-delete-{name}"
                )
                for name, label, variant in choices
            }
    return column, text, buttons


# Form


def _wire_form(form: AdviseForm, panel: AdvicePanel, actions: AdviceActions, tab: gr.Tab) -> None:
    context = actions.context

    @action("view pages")
    def open_page(name: str | None, request: gr.Request) -> dict[Any, Any]:
        visitor = context.visitors.identify(request)
        names, denied = data_names(context, visitor), actions.start_denied_reason(visitor)
        return {
            form.data: gr.Dropdown(choices=names, value=name if name in names else names[0]),
            form.file: gr.File(visible=denied is None and may_use_own(context, visitor)),
            form.start: gr.Button(interactive=denied is None),
            form.note: error_html(denied or ""),
        }

    def upload(path: str | None, request: gr.Request) -> Iterator[dict[Any, Any]]:
        if not path:
            yield {form.report: gr.skip()}
            return
        yield {form.report: Markup('<p class="muted">{}</p>').format(READING), form.note: ""}
        visitor = context.visitors.identify(request)
        try:
            added = add_rows(context, visitor, Path(path))
        except PromptOrTuneError as error:
            yield {form.report: error_html(str(error)), form.file: None}
            return
        yield {
            form.report: added_html(added),
            form.file: None,
            form.data: gr.Dropdown(choices=data_names(context, visitor), value=added.info.name),
        }

    def start(data: str | None, minutes: float | None, seed: float | None, request: gr.Request) -> dict[Any, Any]:
        try:
            job = actions.start(request, data, minutes, seed)
        except PromptOrTuneError as error:
            return {form.note: error_html(str(error))}
        return {form.note: "", panel.selected: job.id}

    def refuse(reason: str, _: Sequence[Any]) -> dict[Any, Any]:
        return {form.note: error_html(reason)}

    tab.select(open_page, form.data, [form.data, form.file, form.start, form.note], **_EVENT_OPTIONS)
    form.file.upload(
        guard(context.visitors, "use own data sets", upload, refuse),
        form.file,
        [form.report, form.note, form.file, form.data],
        show_progress="hidden",
        api_visibility="private",
    )
    # This event uses the queue: only there does Gradio notice that a State changed, which triggers the poll.
    form.start.click(
        guard(context.visitors, "train", start, refuse),
        [form.data, form.minutes, form.seed],
        [form.note, panel.selected],
        show_progress="hidden",
        api_visibility="private",
    )


# Panel


def _wire_poll(panel: AdvicePanel, actions: AdviceActions) -> None:
    """Wire the one event that updates the whole panel: two updates can then never overtake each other."""

    def show_advice(selected: str | None, request: gr.Request, event: gr.EventData) -> dict[Any, Any]:
        poll = event._data if isinstance(event._data, dict) else {}
        try:
            visitor = actions.context.visitors.identify(request)
            return _component_updates(panel, panel_update(actions, visitor, selected, poll), selected)
        except PromptOrTuneError as error:
            return {panel.note: error_html(str(error)), panel.poller: failed_poll_state(poll)}
        except Exception:  # noqa: BLE001 - the page must survive any bug, which is logged
            _log.exception("The advice could not be shown.")
            return {panel.note: error_html(INTERNAL_ERROR), panel.poller: failed_poll_state(poll)}

    outputs = [
        panel.selected, panel.poller, panel.note, panel.empty, panel.layout, panel.jobs, *panel.parts.values(),
        *panel.buttons.values(), panel.actions, panel.confirmation,
    ]  # fmt: skip
    gr.on(
        [panel.poller.tick, panel.selected.change],
        guard(actions.context.visitors, "view pages", show_advice),
        panel.selected,
        outputs,
        trigger_mode="always_last",
        **_EVENT_OPTIONS,
    )

    def choose_advice(event: gr.EventData) -> tuple[Any, str]:
        return str(event._data.get("id") or "") if isinstance(event._data, dict) else gr.skip(), ""

    # This event uses the queue, as the start does.
    panel.jobs.select(
        guard(actions.context.visitors, "view pages", choose_advice),
        None,
        [panel.selected, panel.action_note],
        show_progress="hidden",
        api_visibility="private",
    )


def _component_updates(panel: AdvicePanel, update: PanelUpdate, selected: str | None) -> dict[Any, Any]:
    """Return the updates of the components whose values changed."""
    changed = update.changed
    updates: dict[Any, Any] = {panel.poller: update.poll_state}
    if "note" in changed:
        updates[panel.note] = error_html(changed["note"])
    if update.job != (selected or ""):
        updates[panel.selected] = update.job
    if "empty" in changed:
        updates |= {panel.empty: changed["empty"], panel.layout: gr.Row(visible=not changed["empty"])}
    if "list" in changed:
        updates[panel.jobs] = changed["list"]
    for name, component in panel.parts.items():
        if name in changed:
            updates[component] = changed[name]
    if "doing" in changed:
        updates |= {
            panel.buttons[name]: gr.Button(value=label, visible=bool(label)) for name, label in changed["doing"].items()
        }
        updates |= {
            panel.actions: gr.Row(visible=any(changed["doing"].values())),
            panel.confirmation: gr.Column(visible=False),
        }
    return updates


def delete_text(job: Job, *, adapter: bool) -> Markup:
    """Return what a deletion removes and what stays; `adapter` says that the advice made one."""
    remains = f" The adapter '{job.adapter}' stays, unless you delete it too." if adapter else ""
    text = f"Delete the advice on '{job.data_name}'? Its result, its answers and its trainings go with it.{remains}"
    return Markup('<p role="alert">{}</p>').format(text)


def _wire_buttons(panel: AdvicePanel, actions: AdviceActions) -> None:
    """Wire the buttons that change an advice: each acts on the server, and then the browser polls."""

    def click_handler(act: _ActionFn) -> Callable[..., dict[Any, Any]]:
        def click_advice(selected: str | None, request: gr.Request) -> dict[Any, Any]:
            try:
                return {panel.action_note: "", **act(request, selected)}
            except PromptOrTuneError as error:
                return {panel.action_note: error_html(str(error))}
            except Exception:  # noqa: BLE001 - as above
                _log.exception("An action on an advice failed.")
                return {panel.action_note: error_html(INTERNAL_ERROR)}

        return click_advice

    def without_updates(act: Callable[[gr.Request, str | None], None]) -> _ActionFn:
        def run(request: gr.Request, selected: str | None) -> Mapping[Any, Any]:
            act(request, selected)
            return {}

        return run

    def confirm(request: gr.Request, selected: str | None) -> Mapping[Any, Any]:
        job = actions.require_job(request, selected, "delete a job")
        adapter = actions.job_service.adapter_folder(job.id) is not None
        return {
            panel.confirmation: gr.Column(visible=True),
            panel.confirmation_text: delete_text(job, adapter=adapter),
            panel.confirmation_buttons["both"]: gr.Button(visible=adapter),
        }

    def delete(*, adapter: bool) -> _ActionFn:
        def run(request: gr.Request, selected: str | None) -> Mapping[Any, Any]:
            actions.delete(request, selected, adapter=adapter)
            return {panel.confirmation: gr.Column(visible=False), panel.selected: ""}

        return run

    def keep(_request: gr.Request, _selected: str | None) -> Mapping[Any, Any]:
        return {panel.confirmation: gr.Column(visible=False)}

    def refuse(reason: str, _: Sequence[Any]) -> dict[Any, Any]:
        return {panel.action_note: error_html(reason)}

    answers = panel.confirmation_buttons
    asked = [panel.confirmation, panel.confirmation_text, answers["both"]]
    deleted = [panel.confirmation, panel.selected]
    clicks: list[tuple[gr.Button, str, _ActionFn, list[Any]]] = [
        (panel.buttons["cancel"], "change a job", without_updates(actions.cancel), []),
        (panel.buttons["again"], "change a job", without_updates(actions.resume), []),
        (panel.buttons["delete"], "delete a job", confirm, asked),
        (answers["job"], "delete a job", delete(adapter=False), deleted),
        (answers["both"], "delete a job", delete(adapter=True), deleted),
        (answers["keep"], "view pages", keep, [panel.confirmation]),
    ]
    for button, name, act, outputs in clicks:
        handler = guard(actions.context.visitors, name, click_handler(act), refuse)
        clicked = button.click(handler, panel.selected, [panel.action_note, *outputs], **_EVENT_OPTIONS)
        clicked.then(None, None, None, js=_POLL_JS, **_EVENT_OPTIONS)


def _wire_result(panel: AdvicePanel, actions: AdviceActions, form: MethodForm) -> None:
    """Wire the buttons of a result: open the winner in Compare, download the report and the result."""

    def open_winner(selected: str | None, chips: Any, request: gr.Request) -> list[Any]:
        try:
            return [*_winner_updates(actions, actions.result(request, selected), chips), ""]
        except PromptOrTuneError as error:
            return [gr.skip(), gr.skip(), gr.skip(), error_html(str(error))]

    def save_report(selected: str | None, request: gr.Request) -> list[Any]:
        return _download(actions, request, selected, "html")

    def save_result(selected: str | None, request: gr.Request) -> list[Any]:
        return _download(actions, request, selected, "json")

    def refuse(reason: str, _: Sequence[Any]) -> list[Any]:
        return [gr.skip(), gr.skip(), gr.skip(), error_html(reason)]

    def refuse_download(reason: str, _: Sequence[Any]) -> list[Any]:
        return [gr.skip(), error_html(reason)]

    visitors = actions.context.visitors
    opened = panel.buttons["open"].click(
        guard(visitors, "see a job", open_winner, refuse),
        [panel.selected, form.chips],
        [form.chips, form.adapter, form.reasons, panel.action_note],
        **_EVENT_OPTIONS,
    )
    opened.then(None, panel.action_note, None, js=OPEN_COMPARE_JS, **_EVENT_OPTIONS)
    for name, handler in (("page", save_report), ("json", save_result)):
        panel.buttons[name].click(
            guard(visitors, "see a job", handler, refuse_download),
            panel.selected,
            [panel.download, panel.action_note],
            **_EVENT_OPTIONS,
        )


def _winner_updates(actions: AdviceActions, found: tuple[Job, dict[str, Any]], chips: Any) -> list[Any]:
    """Return the updates of the Compare page's form that add the recommended method."""
    method = winner(found[1])
    if method is None:
        raise PromptOrTuneError("This advice recommends no method that could be opened.")
    adapter = (found[1].get("recommendation") or {}).get("adapter")
    loader = actions.context.engine_loader
    if loader.state().phase != "ready":
        raise PromptOrTuneError("The model is not ready yet: the top of the page shows how far it is.")
    updates = add_adapter_updates(loader.engine(), chips, adapter or "", method)
    if adapter in updates[2]:
        raise PromptOrTuneError(f"'{adapter}' cannot be used here: {updates[2][adapter]}")
    return updates


def _download(actions: AdviceActions, request: gr.Request, selected: str | None, kind: str) -> list[Any]:
    """Return the file that the browser saves."""
    from advise.report import render_page

    try:
        job, result = actions.result(request, selected)
    except PromptOrTuneError as error:
        return [gr.skip(), error_html(str(error))]
    text = render_page(result) if kind == "html" else json.dumps(result, indent=1, ensure_ascii=False)
    type_ = "text/html" if kind == "html" else "application/json"
    # The number makes two equal values differ.
    return [{"name": f"advice-{job.data_name}.{kind}", "type": type_, "text": text, "number": time.time_ns()}, ""]
