"""Train page: the form that starts a job, and the panel of all jobs below it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr
from gradio.context import Context as GradioContext

from jobs.api import JobService
from ui.access.guard import guard
from ui.context import Context
from ui.method_form import MethodForm
from ui.train.events import TrainFormHandlers
from ui.train.form import TrainForm, build_form
from ui.train.jobs_panel import build_jobs_panel
from ui.train.settings import ALL_SETTINGS

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
