"""The jobs' half of the Train page: all jobs, the chosen one live, and what a person may do with it."""

from __future__ import annotations

import gradio as gr

from ui.context import Context
from ui.method_form import MethodForm


def build_panel(context: Context, tab: gr.Tab, form: MethodForm, chosen: gr.State) -> None:  # noqa: ARG001
    """Draws the jobs inside the current Blocks and wires them.

    `chosen` holds the id of the shown job, '' for none: whoever starts a job sets it, and the panel follows.
    """
    with gr.Column(elem_id="train-jobs"):
        gr.HTML("<h2>Training jobs</h2>", apply_default_css=False, js_on_load=None, elem_id="train-jobs-title")
