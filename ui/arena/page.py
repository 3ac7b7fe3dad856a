"""The Arena page."""

from __future__ import annotations

import gradio as gr

from ui.context import Context

TITLE = "Arena"


def build_arena(context: Context, tab: gr.Tab) -> None:  # noqa: ARG001
    """Draws the page inside `tab` and wires it."""
    with gr.Column(elem_id="arena"):
        gr.HTML(
            "<h1>Which answer would you pick, not knowing whose it is?</h1>",
            apply_default_css=False,
            js_on_load=None,
            elem_classes="title",
        )
