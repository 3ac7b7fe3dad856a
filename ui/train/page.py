"""Train page: the form that starts a job, and the panel of all jobs with curve, verdict and adapter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr
from gradio.context import Context as GradioContext
from markupsafe import Markup

from errors import PromptOrTuneError
from jobs.api import JobService
from jobs.job import Job
from ui.access.guard import guard
from ui.components import error_html, live_region, load_script
from ui.context import Context
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
from ui.train.events import TrainFormHandlers
from ui.train.form import TrainForm, build_form
from ui.train.jobs_events import JobActions, panel_update
from ui.train.publish import build_publish
from ui.train.settings import ALL_SETTINGS

# A script that runs after an action; a note means that the action failed.
SAVE_ZIP_JS = "(note, file) => { if (!note && file) window.promptOrTune.downloadFile(file); }"
_BUTTONS = (
    ("open", "Open in Compare"),
    ("again", "Resume"),
    ("finish", "Make the adapter of the best checkpoint"),
    ("cancel", "Cancel"),
    ("download", "Download as zip"),
    ("delete", "Delete"),
)
TITLE = "Train"
# Previews wait for each other in PreviewClient; this many may wait there, the others in Gradio's queue.
MAX_PENDING_PREVIEWS = 24
_PREVIEW_EVENT_OPTIONS = {
    "show_progress": "hidden",
    "api_visibility": "private",
    "trigger_mode": "multiple",
    "concurrency_limit": MAX_PENDING_PREVIEWS,
    "concurrency_id": "train-previews",
}
_EVENT_OPTIONS = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
# Scrolls to the job that was just started.
_SCROLL_TO_JOBS_JS = """() => {
  if (document.querySelector("#train-start-note .started"))
    document.querySelector("#train-jobs")?.scrollIntoView({ block: "start" });
}"""


def loss_curve_component() -> gr.HTML:
    """Return the plot of the losses; its value is a ui.train.jobs_view.LossCurve with the job's id as "job"."""
    return gr.HTML(
        None,
        html_template='<div class="loss-curve" role="group" aria-label="Loss by step" hidden></div>',
        js_on_load=load_script("loss_curve"),
        apply_default_css=False,
        elem_id="train-job-curve",
    )


def delete_confirmation_html(job: Job, adapter: bool) -> Markup:
    """Return what a deletion removes and what stays; `adapter` says that the job has one."""
    deleted = "Its log, its scores" if adapter else "Its log, its checkpoints"
    remains = f" The adapter '{job.adapter}' stays, unless you delete it too." if adapter else ""
    text = f"Delete the job of '{job.adapter}'? {deleted} and its copy of the data are deleted with it.{remains}"
    return Markup('<p role="alert">{}</p>').format(text)


@dataclass(frozen=True)
class TrainPanel(JobPanel):
    """The panel with the link of the adapter's zip and the form that publishes it."""

    download: gr.DownloadButton
    publish: gr.Column


def build_jobs_panel(context: Context, form: MethodForm, selected_job: gr.State) -> None:
    """Build the panel in the current Blocks and wire its events.

    `selected_job` has the id of the selected job, '' for none; the form sets it when it starts a job.
    """
    job_actions = JobActions(context, JobService(context.home))
    panel = _build_components(context, selected_job)
    wire_poll(
        panel,
        job_actions,
        partial(panel_update, job_actions),
        lambda labels: {panel.publish: gr.Column(visible=bool(labels["download"]))},
        [panel.publish],
    )
    wire_buttons(panel, job_actions, delete_confirmation_html)
    _wire_adapter(panel, job_actions, form)


def _build_components(context: Context, selected_job: gr.State) -> TrainPanel:
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
                    buttons = {name: action_button("train", name, label) for name, label in _BUTTONS}
                    download = gr.DownloadButton("Save the zip", visible="hidden", elem_id="train-job-zip")
                action_note = live_region("", elem_id="train-job-note", role="alert")
                confirmation = build_confirmation("train", "job", "train-job-answers")
                parts |= {
                    "message": static_html("", "train-job-message"),
                    "failed": static_html("", "train-job-failed"),
                    "verdict": job_card_component("train-job-verdict"),
                }
                parts |= {"curve": loss_curve_component(), "log": log_component("train-job-log")}
                with gr.Column(visible=False, elem_id="train-job-publish") as publish:
                    build_publish(context, selected_job)
    poller = poll_component("train", "job")
    return TrainPanel(
        selected_job, poller, note, empty, layout, jobs, parts, buttons, actions, action_note, confirmation, download,
        publish,
    )  # fmt: skip


def _wire_adapter(panel: TrainPanel, job_actions: JobActions, form: MethodForm) -> None:
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
        [panel.selected, form.chips],
        [form.chips, form.adapter, form.reasons, panel.action_note],
        **EVENT_OPTIONS,
    )
    opened.then(None, panel.action_note, None, js=OPEN_COMPARE_JS, **EVENT_OPTIONS)
    packed = panel.buttons["download"].click(
        guard(job_actions.context.visitors, "download an adapter", download),
        panel.selected,
        [panel.download, panel.action_note],
        show_progress="hidden",
        api_visibility="private",
    )
    packed.then(None, [panel.action_note, panel.download], None, js=SAVE_ZIP_JS, **EVENT_OPTIONS)


def build_train(context: Context, tab: gr.Tab, form: MethodForm) -> None:
    """Build the page inside `tab` and wire its events. `form` is that of the Compare page, for 'Open in Compare'."""
    selected_job = gr.State("")
    with gr.Column(elem_id="train"):
        train_form = build_form(context, selected_job)
        build_jobs_panel(context, form, selected_job)
    _wire(train_form, TrainFormHandlers(context, train_form, JobService(context.home)), tab)


def _wire(form: TrainForm, handlers: TrainFormHandlers, tab: gr.Tab) -> None:
    outputs, inputs = form.outputs, form.inputs

    def looking(handler: Callable[..., Any], name: str = "look at rows") -> Any:
        return guard(handlers.context.visitors, name, handler, handlers.refuse)

    tab.select(handlers.restore_draft, [form.draft_key, *inputs], outputs, **_PREVIEW_EVENT_OPTIONS)
    form.file.upload(looking(handlers.upload), [form.file, *inputs], outputs, **_PREVIEW_EVENT_OPTIONS)
    gr.on(
        [form.use_dataset.click, form.dataset_name.submit],
        looking(handlers.select_dataset, "look at a Hub data set"),
        [form.dataset_name, *inputs],
        outputs,
        **_PREVIEW_EVENT_OPTIONS,
    )
    form.own_data.input(looking(handlers.select_dataset), [form.own_data, *inputs], outputs, **_PREVIEW_EVENT_OPTIONS)
    form.example.click(looking(handlers.load_example), inputs, outputs, **_PREVIEW_EVENT_OPTIONS)
    gr.on(
        [form.intent.input, form.code.input],
        looking(handlers.change_columns),
        inputs,
        outputs,
        **_PREVIEW_EVENT_OPTIONS,
    )
    fields = dict(zip((setting.name for setting in ALL_SETTINGS), form.fields, strict=True))
    gr.on(
        [form.technique.input, fields.pop("preset").input],
        looking(handlers.change_technique),
        inputs,
        outputs,
        **_PREVIEW_EVENT_OPTIONS,
    )
    gr.on(
        [field.input for field in fields.values()],
        looking(handlers.change_setting),
        inputs,
        outputs,
        **_PREVIEW_EVENT_OPTIONS,
    )
    form.remove_rows.click(looking(handlers.clear), None, outputs, **_EVENT_OPTIONS)
    gr.on(
        [form.target.location.input, form.target.flavor.input],
        handlers.change_location,
        inputs,
        outputs,
        **_EVENT_OPTIONS,
    )
    started = form.start.click(
        guard(handlers.context.visitors, "train", handlers.start, handlers.refuse_start),
        inputs,
        outputs,
        show_progress="hidden",
        api_visibility="private",
    )
    if GradioContext.root_block is not None:
        GradioContext.root_block.unload(handlers.close_session)
    started.then(None, None, None, js=_SCROLL_TO_JOBS_JS, **_EVENT_OPTIONS)
