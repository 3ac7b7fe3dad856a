"""Publishing a finished adapter to the Hugging Face Hub, from the page."""

from __future__ import annotations

import gradio as gr

from ui.context import Context


def build_publish(context: Context, chosen: gr.State) -> None:  # noqa: ARG001
    """Draws the form inside the current Blocks and wires it. `chosen` holds the id of the shown job, '' for none."""
    with gr.Accordion("Publish on the Hugging Face Hub", open=False, elem_id="train-publish"):
        gr.HTML("<p>Publishing is being set up.</p>", apply_default_css=False, js_on_load=None)
