"""The Train page: rows, what they would teach, a job that learns them; below it all jobs."""

from __future__ import annotations

import gradio as gr
from gradio.context import Context as Building

from jobs.board import JobBoard
from ui.context import Context
from ui.method_form import MethodForm
from ui.train import settings_form
from ui.train.form import Form, build_form
from ui.train.form_events import FormDesk
from ui.train.panel import build_panel

TITLE = "Train"
# Looks wait for one another behind the page; so many may wait before Gradio's queue takes over.
MOST_LOOKS = 24
_LOOKING = {
    "show_progress": "hidden",
    "api_visibility": "private",
    "trigger_mode": "multiple",
    "concurrency_limit": MOST_LOOKS,
    "concurrency_id": "train-looks",
}
_QUIET = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
# The job that has just begun is shown.
_TO_THE_JOBS = """() => {
  if (document.querySelector("#train-start-note .started"))
    document.querySelector("#train-jobs")?.scrollIntoView({ block: "start" });
}"""


def build_train(context: Context, tab: gr.Tab, form: MethodForm) -> None:
    """Draws the page inside `tab` and wires it."""
    chosen = gr.State("")
    with gr.Column(elem_id="train"):
        drawn = build_form(context, chosen)
        build_panel(context, tab, form, chosen)
    _wire(drawn, FormDesk(context, drawn, JobBoard(context.home)), tab)


def _wire(form: Form, desk: FormDesk, tab: gr.Tab) -> None:
    outputs, filled = form.outputs, form.filled
    tab.select(desk.opened, [form.shown, *filled], outputs, **_LOOKING)
    form.file.upload(desk.upload, [form.file, *filled], outputs, **_LOOKING)
    gr.on([form.use_named.click, form.named.submit], desk.name, [form.named, *filled], outputs, **_LOOKING)
    form.example.click(desk.example, filled, outputs, **_LOOKING)
    gr.on([form.intent.input, form.code.input], desk.remap, filled, outputs, **_LOOKING)
    fields = dict(zip((each.name for each in settings_form.ALL), form.fields, strict=True))
    gr.on([form.technique.input, fields.pop("preset").input], desk.rechoose, filled, outputs, **_LOOKING)
    gr.on([each.input for each in fields.values()], desk.retune, filled, outputs, **_LOOKING)
    form.forget.click(desk.forget, None, outputs, **_QUIET)
    gr.on([form.where.place.input, form.where.flavor.input], desk.place, filled, outputs, **_QUIET)
    begun = form.start.click(desk.start, filled, outputs, show_progress="hidden", api_visibility="private")
    if Building.root_block is not None:
        Building.root_block.unload(desk.left)
    begun.then(None, None, None, js=_TO_THE_JOBS, **_QUIET)
