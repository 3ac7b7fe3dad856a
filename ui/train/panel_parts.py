"""The panel's pieces: what draws the list, the curve and the log, the buttons, and the question before deleting."""

from __future__ import annotations

from html import escape

import gradio as gr

from jobs.job import Job
from ui.widgets import load_script

# What follows a press whose sentence stayed empty.
OPEN_COMPARE_JS = '(note) => { if (!note) window.peftArenaGo("compare"); }'
SAVE_ZIP_JS = "(note, file) => { if (!note && file) window.peftArenaSave(file); }"


def static_html(value: str, elem_id: str) -> gr.HTML:
    """HTML that was escaped where it was made."""
    return gr.HTML(value, apply_default_css=False, js_on_load=None, elem_id=elem_id)


def job_card_component(elem_id: str) -> gr.HTML:
    """HTML whose times are told in the visitor's own time zone."""
    return gr.HTML(
        "", html_template="<div></div>", js_on_load=load_script("job_card"), apply_default_css=False, elem_id=elem_id
    )


def job_list_component() -> gr.HTML:
    """All jobs; a click triggers `select` with {"id"}."""
    template = '<nav aria-label="Training jobs"><ol class="jobs"></ol></nav>'
    return gr.HTML(
        {"jobs": []},
        html_template=template,
        js_on_load=load_script("job_list"),
        apply_default_css=False,
        elem_id="train-job-list",
    )


def loss_curve_component() -> gr.HTML:
    """The losses by step; its value is ui.train.panel_curve.Curve with the job's id."""
    return gr.HTML(
        None,
        html_template='<div class="loss-curve" role="group" aria-label="Loss by step" hidden></div>',
        js_on_load=load_script("curve"),
        apply_default_css=False,
        elem_id="train-job-curve",
    )


def log_component() -> gr.HTML:
    """The log, folded. Its lines are asked for when it is opened; its value is {"job", "lines" or None}."""
    template = (
        '<details class="job-log"><summary>Log</summary><div><button type="button" class="copy">Copy</button>'
        '<pre tabindex="0" aria-label="Log of the job"></pre></div></details>'
    )
    return gr.HTML(
        None,
        html_template=template,
        js_on_load=load_script("job_log"),
        apply_default_css=False,
        elem_id="train-job-log",
    )


def poll_component() -> gr.HTML:
    """Triggers `tick` while somebody looks at the panel.

    Not a gr.Timer: that one ticks on in tabs and windows that nobody sees.
    """
    return gr.HTML(
        None,
        html_template="",
        js_on_load=load_script("job_pulse"),
        visible="hidden",
        apply_default_css=False,
        elem_id="train-pulse",
    )


def build_action_buttons() -> tuple[dict[str, gr.Button], gr.DownloadButton]:
    """What can be done with a job, in reading order; `panel_look.doing` says which of them stand."""
    made = {
        name: gr.Button(
            label,
            size="md",
            scale=0,
            min_width=96,
            variant="primary" if name in ("open", "again") else "secondary",
            visible=False,
            elem_id=f"train-job-{name}",
        )
        for name, label in (
            ("open", "Open in Compare"),
            ("again", "Resume"),
            ("finish", "Make the adapter of the best checkpoint"),
            ("cancel", "Cancel"),
            ("download", "Download as zip"),
            ("delete", "Delete"),
        )
    }
    return made, gr.DownloadButton("Save the zip", visible="hidden", elem_id="train-job-zip")


def build_delete_confirmation() -> tuple[gr.Column, gr.HTML, dict[str, gr.Button]]:
    """Asked before anything is deleted."""
    with gr.Column(visible=False, elem_id="train-job-question") as column:
        asked = static_html("", "train-job-asked")
        with gr.Row(elem_id="train-job-answers"):
            answers = {
                name: gr.Button(
                    label, size="md", scale=0, min_width=120, variant=variant, elem_id=f"train-delete-{name}"
                )
                for name, label, variant in (
                    ("job", "Delete the job", "stop"),
                    ("both", "Delete the job and the adapter", "stop"),
                    ("keep", "Keep it", "secondary"),
                )
            }
    return column, asked, answers


def delete_confirmation_html(job: Job, *, adapter: bool) -> str:
    """What will be gone, and what stays."""
    gone = "Its log, its scores" if adapter else "Its log, its checkpoints"
    kept = f" The adapter '{job.adapter}' stays, unless you delete it too." if adapter else ""
    text = f"Delete the job of '{job.adapter}'? {gone} and its copy of the data go with it.{kept}"
    return f'<p role="alert">{escape(text)}</p>'
