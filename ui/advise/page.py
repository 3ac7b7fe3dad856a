"""Advise page: the question, the form that starts an advice, and the panel of all advice below it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from markupsafe import Markup

from advise.folder import DEFAULT_MINUTES, MAX_MINUTES, MIN_MINUTES
from errors import PromptOrTuneError
from jobs.api import JobService
from jobs.job import Job
from ui.access.guard import action, guard, may_use_own
from ui.advise.events import (
    BUTTONS,
    DEFAULT_DATA,
    MAX_SEED,
    AdviceActions,
    build_endpoints,
    data_names,
    panel_update,
    winner,
)
from ui.components import error_html, file_download, live_region
from ui.context import Context
from ui.data.add import add_rows, added_html
from ui.form_fields import MethodForm, add_adapter_updates
from ui.job_panel import (
    EVENT_OPTIONS,
    OPEN_COMPARE_JS,
    JobPanel,
    action_button,
    build_confirmation,
    job_card_component,
    job_list_component,
    log_component,
    poll_component,
    static_html,
    wire_buttons,
    wire_poll,
)

TITLE = "Advise"
HEADER_HTML = Markup(
    "<h1>Prompt, retrieve or fine-tune?</h1>"
    '<p class="lead">Give your rows and a time. The program chooses examples for prompts and settings for trainings on '
    "validation rows, asks the best of each way the test rows, and says which way to take, or that these rows do not "
    "show a difference.</p>"
)
READING = "Reading the rows, and looking for pairs that resemble each other ..."


@dataclass(frozen=True)
class AdviseForm:
    """Components of the form."""

    data: gr.Dropdown
    minutes: gr.Number
    seed: gr.Number
    memory: gr.Number
    file: gr.File
    report: gr.HTML
    start: gr.Button
    note: gr.HTML


@dataclass(frozen=True)
class AdvicePanel(JobPanel):
    """The panel with the component that saves a file."""

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
    wire_poll(panel, actions, partial(panel_update, actions))
    wire_buttons(panel, actions, delete_text)
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
                memory = gr.Number(
                    0, label="Memory in GB", info="The most that a training may take; 0 for all that is free.",
                    minimum=0, elem_id="advise-memory",
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
    return AdviseForm(data, minutes, seed, memory, file, report, start, note)


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
                    buttons = {name: action_button("advise", name, label) for name, label in BUTTONS.items()}
                action_note = live_region("", elem_id="advise-job-note", role="alert")
                confirmation = build_confirmation("advise", "advice", "advise-delete-answers")
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
        confirmation, file_download(),
    )  # fmt: skip


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

    def start(
        data: str | None, minutes: float | None, seed: float | None, memory: float | None, request: gr.Request
    ) -> dict[Any, Any]:
        try:
            job = actions.start(request, data, minutes, seed, memory)
        except PromptOrTuneError as error:
            return {form.note: error_html(str(error))}
        return {form.note: "", panel.selected: job.id}

    def refuse(reason: str, _: Sequence[Any]) -> dict[Any, Any]:
        return {form.note: error_html(reason)}

    tab.select(open_page, form.data, [form.data, form.file, form.start, form.note], **EVENT_OPTIONS)
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
        [form.data, form.minutes, form.seed, form.memory],
        [form.note, panel.selected],
        show_progress="hidden",
        api_visibility="private",
    )


# Panel


def delete_text(job: Job, adapter: bool) -> Markup:
    """Return what a deletion removes and what stays; `adapter` says that the advice made one."""
    remains = f" The adapter '{job.adapter}' stays, unless you delete it too." if adapter else ""
    text = f"Delete the advice on '{job.data_name}'? Its result, its answers and its trainings go with it.{remains}"
    return Markup('<p role="alert">{}</p>').format(text)


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
        **EVENT_OPTIONS,
    )
    opened.then(None, panel.action_note, None, js=OPEN_COMPARE_JS, **EVENT_OPTIONS)
    for name, handler in (("page", save_report), ("json", save_result)):
        panel.buttons[name].click(
            guard(visitors, "see a job", handler, refuse_download),
            panel.selected,
            [panel.download, panel.action_note],
            **EVENT_OPTIONS,
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
