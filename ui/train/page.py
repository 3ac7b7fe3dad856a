"""The Train page: rows, what they would teach, a job that learns them; below it all jobs."""

from __future__ import annotations

import gradio as gr
from gradio.context import Context as Building

from jobs.api import JobService
from ui.context import Context
from ui.method_form import MethodForm
from ui.train import settings
from ui.train.events import TrainFormHandlers
from ui.train.form import TrainForm, build_form
from ui.train.jobs_panel import build_jobs_panel

TITLE = "Train"
# Looks wait for one another behind the page; so many may wait before Gradio's queue takes over.
MAX_PENDING_PREVIEWS = 24
_PREVIEW_EVENT_OPTIONS = {
    "show_progress": "hidden",
    "api_visibility": "private",
    "trigger_mode": "multiple",
    "concurrency_limit": MAX_PENDING_PREVIEWS,
    "concurrency_id": "train-looks",
}
_EVENT_OPTIONS = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
# The job that has just begun is shown.
_SCROLL_TO_JOBS_JS = """() => {
  if (document.querySelector("#train-start-note .started"))
    document.querySelector("#train-jobs")?.scrollIntoView({ block: "start" });
}"""


def build_train(context: Context, tab: gr.Tab, form: MethodForm) -> None:
    """Draws the page inside `tab` and wires it."""
    chosen = gr.State("")
    with gr.Column(elem_id="train"):
        drawn = build_form(context, chosen)
        build_jobs_panel(context, tab, form, chosen)
    _wire(drawn, TrainFormHandlers(context, drawn, JobService(context.home)), tab)


def _wire(form: TrainForm, handlers: TrainFormHandlers, tab: gr.Tab) -> None:
    outputs, filled = form.outputs, form.inputs
    tab.select(handlers.restore_draft, [form.draft_key, *filled], outputs, **_PREVIEW_EVENT_OPTIONS)
    form.file.upload(handlers.upload, [form.file, *filled], outputs, **_PREVIEW_EVENT_OPTIONS)
    gr.on(
        [form.use_dataset.click, form.dataset_name.submit],
        handlers.select_dataset,
        [form.dataset_name, *filled],
        outputs,
        **_PREVIEW_EVENT_OPTIONS,
    )
    form.example.click(handlers.load_example, filled, outputs, **_PREVIEW_EVENT_OPTIONS)
    gr.on([form.intent.input, form.code.input], handlers.change_columns, filled, outputs, **_PREVIEW_EVENT_OPTIONS)
    fields = dict(zip((each.name for each in settings.ALL_SETTINGS), form.fields, strict=True))
    gr.on(
        [form.technique.input, fields.pop("preset").input],
        handlers.change_technique,
        filled,
        outputs,
        **_PREVIEW_EVENT_OPTIONS,
    )
    gr.on([each.input for each in fields.values()], handlers.change_setting, filled, outputs, **_PREVIEW_EVENT_OPTIONS)
    form.remove_rows.click(handlers.clear, None, outputs, **_EVENT_OPTIONS)
    gr.on(
        [form.target.location.input, form.target.flavor.input],
        handlers.change_location,
        filled,
        outputs,
        **_EVENT_OPTIONS,
    )
    begun = form.start.click(handlers.start, filled, outputs, show_progress="hidden", api_visibility="private")
    if Building.root_block is not None:
        Building.root_block.unload(handlers.close_session)
    begun.then(None, None, None, js=_SCROLL_TO_JOBS_JS, **_EVENT_OPTIONS)
