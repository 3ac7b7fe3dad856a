"""Jobs panel of the Train page: the list of all jobs, the selected job with its curve and log, and its buttons.

The browser polls while the panel is visible (js/job_poll.js) and sends digests of what it has; the answer carries the
parts that changed since. All state comes from the disk, so a refresh or another browser gets the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from markupsafe import Markup

from errors import PromptOrTuneError
from jobs.api import JobService
from jobs.job import Job
from ui.access.guard import guard
from ui.components import error_html, live_region, load_script
from ui.context import Context
from ui.method_form import MethodForm, add_adapter_updates
from ui.train.jobs_events import JobActions, PanelUpdate, failed_poll_state, panel_update
from ui.train.publish import build_publish

# Scripts that run after an action; a note means that the action failed.
OPEN_COMPARE_JS = '(note) => { if (!note) window.promptOrTune.openTab("compare"); }'
SAVE_ZIP_JS = "(note, file) => { if (!note && file) window.promptOrTune.downloadFile(file); }"
INTERNAL_ERROR = "Something went wrong on our side; the log has the details. The jobs go on."
_EVENT_OPTIONS = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
_BUTTONS = (
    ("open", "Open in Compare"),
    ("again", "Resume"),
    ("finish", "Make the adapter of the best checkpoint"),
    ("cancel", "Cancel"),
    ("download", "Download as zip"),
    ("delete", "Delete"),
)
_log = logging.getLogger(__name__)
_ActionFn = Callable[[gr.Request, str | None], Mapping[Any, Any]]


def static_html(value: str, elem_id: str) -> gr.HTML:
    """Return a component for HTML without a script; texts in `value` must be escaped."""
    return gr.HTML(value, apply_default_css=False, js_on_load=None, elem_id=elem_id)


def job_card_component(elem_id: str) -> gr.HTML:
    """Return a component for HTML whose times are shown in the visitor's time zone."""
    return gr.HTML(
        "", html_template="<div></div>", js_on_load=load_script("job_card"), apply_default_css=False, elem_id=elem_id
    )


def job_list_component(elem_id: str, label: str) -> gr.HTML:
    """Return the list of all jobs; a click triggers `select` with {"id"}. `label` is not escaped."""
    template = f'<nav aria-label="{label}"><ol class="jobs"></ol></nav>'
    return gr.HTML(
        {"jobs": []},
        html_template=template,
        js_on_load=load_script("job_list"),
        apply_default_css=False,
        elem_id=elem_id,
    )


def loss_curve_component() -> gr.HTML:
    """Return the plot of the losses; its value is a ui.train.jobs_view.LossCurve with the job's id as "job"."""
    return gr.HTML(
        None,
        html_template='<div class="loss-curve" role="group" aria-label="Loss by step" hidden></div>',
        js_on_load=load_script("loss_curve"),
        apply_default_css=False,
        elem_id="train-job-curve",
    )


def log_component(elem_id: str) -> gr.HTML:
    """Return the folded log; its value is {"job", "lines"}, with None for lines until it is opened."""
    template = (
        '<details class="job-log"><summary>Log</summary><div><button type="button" class="copy">Copy</button>'
        '<pre tabindex="0" aria-label="Log of the job"></pre></div></details>'
    )
    return gr.HTML(
        None,
        html_template=template,
        js_on_load=load_script("job_log"),
        apply_default_css=False,
        elem_id=elem_id,
    )


def poll_component(page: str, parameter: str) -> gr.HTML:
    """Return a component that triggers `tick` while the panel of this tab is visible.

    The id of the selected job is the `parameter` of the URL. The panel is #<page>-jobs, the log #<page>-job-log.
    A gr.Timer would also tick in hidden tabs and windows.
    """
    return gr.HTML(
        None,
        html_template="",
        js_on_load=load_script("job_poll"),
        visible="hidden",
        apply_default_css=False,
        elem_id=f"{page}-poller",
        page=page,
        parameter=parameter,
    )


def build_action_buttons() -> tuple[dict[str, gr.Button], gr.DownloadButton]:
    """Build the buttons in reading order, all hidden, and the link of the zip; `button_labels` shows them."""
    buttons = {
        name: gr.Button(
            label,
            size="md",
            scale=0,
            min_width=96,
            variant="primary" if name in ("open", "again") else "secondary",
            visible=False,
            elem_id=f"train-job-{name}",
        )
        for name, label in _BUTTONS
    }
    return buttons, gr.DownloadButton("Save the zip", visible="hidden", elem_id="train-job-zip")


def build_delete_confirmation() -> tuple[gr.Column, gr.HTML, dict[str, gr.Button]]:
    """Build the question that is asked before a job is deleted: its column, its text and its buttons."""
    with gr.Column(visible=False, elem_id="train-delete-confirm") as column:
        text = static_html("", "train-delete-text")
        with gr.Row(elem_id="train-job-answers"):
            buttons = {
                name: gr.Button(
                    label, size="md", scale=0, min_width=120, variant=variant, elem_id=f"train-delete-{name}"
                )
                for name, label, variant in (
                    ("job", "Delete the job", "stop"),
                    ("both", "Delete the job and the adapter", "stop"),
                    ("keep", "Keep it", "secondary"),
                )
            }
    return column, text, buttons


def delete_confirmation_html(job: Job, *, adapter: bool) -> Markup:
    """Return what a deletion removes and what stays; `adapter` says that the job has one."""
    deleted = "Its log, its scores" if adapter else "Its log, its checkpoints"
    remains = f" The adapter '{job.adapter}' stays, unless you delete it too." if adapter else ""
    text = f"Delete the job of '{job.adapter}'? {deleted} and its copy of the data are deleted with it.{remains}"
    return Markup('<p role="alert">{}</p>').format(text)


@dataclass(frozen=True)
class JobsPanel:
    """Components that events read and change."""

    selected_job: gr.State
    poller: gr.HTML
    note: gr.HTML
    empty: gr.HTML
    layout: gr.Row
    jobs: gr.HTML
    parts: Mapping[str, gr.HTML]
    buttons: Mapping[str, gr.Button]
    actions: gr.Row
    confirmation: gr.Column
    confirmation_text: gr.HTML
    confirmation_buttons: Mapping[str, gr.Button]
    action_note: gr.HTML
    download: gr.DownloadButton
    publish: gr.Column


def build_jobs_panel(context: Context, form: MethodForm, selected_job: gr.State) -> None:
    """Build the panel in the current Blocks and wire its events.

    `selected_job` has the id of the selected job, '' for none; the form sets it when it starts a job.
    """
    job_actions = JobActions(context, JobService(context.home))
    panel = _build_components(context, selected_job)
    _wire_poll(panel, job_actions)
    _wire_buttons(panel, job_actions)
    _wire_adapter(panel, job_actions, form)


def _build_components(context: Context, selected_job: gr.State) -> JobsPanel:
    with gr.Column(elem_id="train-jobs"):
        gr.HTML("<h2>Training jobs</h2>", apply_default_css=False, js_on_load=None, elem_id="train-jobs-title")
        note = live_region("", elem_id="train-jobs-note", role="alert")
        empty = static_html('<p class="muted">Looking for jobs ...</p>', "train-jobs-empty")
        with gr.Row(elem_id="train-jobs-columns", visible=False) as layout:
            jobs = job_list_component("train-job-list", "Training jobs")
            with gr.Column(elem_id="train-job", min_width=0):
                parts = {
                    "head": job_card_component("train-job-head"),
                    "line": live_region("", elem_id="train-job-line"),
                }
                with gr.Row(elem_id="train-job-actions") as actions:
                    buttons, download = build_action_buttons()
                action_note = live_region("", elem_id="train-job-note", role="alert")
                confirmation, confirmation_text, confirmation_buttons = build_delete_confirmation()
                parts |= {
                    "message": static_html("", "train-job-message"),
                    "failed": static_html("", "train-job-failed"),
                    "verdict": job_card_component("train-job-verdict"),
                }
                parts |= {"curve": loss_curve_component(), "log": log_component("train-job-log")}
                with gr.Column(visible=False, elem_id="train-job-publish") as publish:
                    build_publish(context, selected_job)
    poller = poll_component("train", "job")
    return JobsPanel(
        selected_job, poller, note, empty, layout, jobs, parts, buttons, actions, confirmation, confirmation_text,
        confirmation_buttons, action_note, download, publish,
    )  # fmt: skip


def _wire_poll(panel: JobsPanel, job_actions: JobActions) -> None:
    """Wire the one event that updates the whole panel: two updates can then never overtake each other."""

    def show(selected_job: str | None, request: gr.Request, event: gr.EventData) -> dict[Any, Any]:
        poll = event._data if isinstance(event._data, dict) else {}
        try:
            visitor = job_actions.context.visitors.identify(request)
            return _component_updates(panel, panel_update(job_actions, visitor, selected_job, poll), selected_job)
        except PromptOrTuneError as error:
            return {panel.note: error_html(str(error)), panel.poller: failed_poll_state(poll)}
        except Exception:  # noqa: BLE001 - the page must survive any bug, which is logged
            _log.exception("The jobs could not be shown.")
            return {panel.note: error_html(INTERNAL_ERROR), panel.poller: failed_poll_state(poll)}

    visitors = job_actions.context.visitors
    outputs = [
        panel.selected_job, panel.poller, panel.note, panel.empty, panel.layout, panel.jobs, *panel.parts.values(),
        *panel.buttons.values(), panel.actions, panel.publish, panel.confirmation,
    ]  # fmt: skip
    gr.on(
        [panel.poller.tick, panel.selected_job.change],
        guard(visitors, "view pages", show),
        panel.selected_job,
        outputs,
        trigger_mode="always_last",
        **_EVENT_OPTIONS,
    )

    def choose(event: gr.EventData) -> tuple[Any, str]:
        return str(event._data.get("id") or "") if isinstance(event._data, dict) else gr.skip(), ""

    # This event uses the queue: only there does Gradio notice that a State changed, which triggers other events.
    panel.jobs.select(
        guard(visitors, "view pages", choose),
        None,
        [panel.selected_job, panel.action_note],
        show_progress="hidden",
        api_visibility="private",
    )


def _component_updates(panel: JobsPanel, update: PanelUpdate, selected_job: str | None) -> dict[Any, Any]:
    """Return the updates of the components whose values changed."""
    changed = update.changed
    updates: dict[Any, Any] = {panel.poller: update.poll_state}
    if "note" in changed:
        updates[panel.note] = error_html(changed["note"]) if changed["note"] else ""
    if update.job != (selected_job or ""):
        updates[panel.selected_job] = update.job
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
        updates |= {panel.actions: gr.Row(visible=any(changed["doing"].values())), panel.confirmation: _hidden_column()}
        updates[panel.publish] = gr.Column(visible=bool(changed["doing"]["download"]))
    return updates


def _wire_buttons(panel: JobsPanel, job_actions: JobActions) -> None:
    """Wire the buttons: each acts on the server, and then the browser polls."""

    def click_handler(act: _ActionFn) -> Callable[..., dict[Any, Any]]:
        def click(selected_job: str | None, request: gr.Request) -> dict[Any, Any]:
            try:
                return {panel.action_note: "", **act(request, selected_job)}
            except PromptOrTuneError as error:
                return {panel.action_note: error_html(str(error))}
            except Exception:  # noqa: BLE001 - as above
                _log.exception("An action on a job failed.")
                return {panel.action_note: error_html(INTERNAL_ERROR)}

        return click

    def without_updates(act: Callable[[gr.Request, str | None], None]) -> _ActionFn:
        def run(request: gr.Request, selected_job: str | None) -> Mapping[Any, Any]:
            act(request, selected_job)
            return {}

        return run

    def confirm(request: gr.Request, selected_job: str | None) -> Mapping[Any, Any]:
        job = job_actions.require_job(request, selected_job, "delete a job")
        adapter = job_actions.job_service.adapter_folder(job.id) is not None
        return {
            panel.confirmation: gr.Column(visible=True),
            panel.confirmation_text: delete_confirmation_html(job, adapter=adapter),
            panel.confirmation_buttons["both"]: gr.Button(visible=adapter),
        }

    def delete(*, adapter: bool) -> _ActionFn:
        def run(request: gr.Request, selected_job: str | None) -> Mapping[Any, Any]:
            job_actions.delete(request, selected_job, adapter=adapter)
            return {panel.confirmation: _hidden_column(), panel.selected_job: ""}

        return run

    def refuse(reason: str, _: Sequence[Any]) -> dict[Any, Any]:
        return {panel.action_note: error_html(reason)}

    clicks: list[tuple[gr.Button, str, _ActionFn, list[Any]]] = [
        (panel.buttons["cancel"], "change a job", without_updates(job_actions.cancel), []),
        (panel.buttons["again"], "change a job", without_updates(job_actions.resume), []),
        (panel.buttons["finish"], "change a job", without_updates(job_actions.finish), []),
        (
            panel.buttons["delete"],
            "delete a job",
            confirm,
            [panel.confirmation, panel.confirmation_text, panel.confirmation_buttons["both"]],
        ),
        (
            panel.confirmation_buttons["job"],
            "delete a job",
            delete(adapter=False),
            [panel.confirmation, panel.selected_job],
        ),
        (
            panel.confirmation_buttons["both"],
            "delete a job",
            delete(adapter=True),
            [panel.confirmation, panel.selected_job],
        ),
        (
            panel.confirmation_buttons["keep"],
            "view pages",
            lambda _request, _selected_job: {panel.confirmation: _hidden_column()},
            [panel.confirmation],
        ),
    ]
    for button, action, act, outputs in clicks:
        handler = guard(job_actions.context.visitors, action, click_handler(act), refuse)
        clicked = button.click(handler, panel.selected_job, [panel.action_note, *outputs], **_EVENT_OPTIONS)
        clicked.then(None, None, None, js="() => window.promptOrTune.pollJobs?.()", **_EVENT_OPTIONS)


def _wire_adapter(panel: JobsPanel, job_actions: JobActions, form: MethodForm) -> None:
    """Wire the buttons of a finished adapter: open it in Compare, download it."""

    def open_in_compare(selected_job: str | None, chips: Any, request: gr.Request) -> list[Any]:
        try:
            job = job_actions.require_job(request, selected_job, "see a job")
            if job_actions.context.engine_loader.state().phase != "ready":
                raise PromptOrTuneError("The model is not ready yet: the top of the page shows how far it is.")
            updates = add_adapter_updates(job_actions.context.engine_loader.engine(), chips, job.adapter)
            if job.adapter in updates[2]:
                raise PromptOrTuneError(f"'{job.adapter}' cannot be used here: {updates[2][job.adapter]}")
        except PromptOrTuneError as error:
            return [gr.skip(), gr.skip(), gr.skip(), error_html(str(error))]
        return [*updates, ""]

    def download(selected_job: str | None, request: gr.Request) -> list[Any]:
        try:
            return [gr.DownloadButton(value=job_actions.pack_zip(request, selected_job)), ""]
        except PromptOrTuneError as error:
            return [gr.skip(), error_html(str(error))]

    def refuse(reason: str, _: Sequence[Any]) -> list[Any]:
        return [gr.skip(), gr.skip(), gr.skip(), error_html(reason)]

    opened = panel.buttons["open"].click(
        guard(job_actions.context.visitors, "see a job", open_in_compare, refuse),
        [panel.selected_job, form.chips],
        [form.chips, form.adapter, form.reasons, panel.action_note],
        **_EVENT_OPTIONS,
    )
    opened.then(None, panel.action_note, None, js=OPEN_COMPARE_JS, **_EVENT_OPTIONS)
    packed = panel.buttons["download"].click(
        guard(job_actions.context.visitors, "download an adapter", download),
        panel.selected_job,
        [panel.download, panel.action_note],
        show_progress="hidden",
        api_visibility="private",
    )
    packed.then(None, [panel.action_note, panel.download], None, js=SAVE_ZIP_JS, **_EVENT_OPTIONS)


def _hidden_column() -> Any:
    return gr.Column(visible=False)
