"""The Train page."""

from __future__ import annotations

import gradio as gr

from ui.context import Context
from ui.method_form import MethodForm

TITLE = "Train"


def build_train(context: Context, tab: gr.Tab, form: MethodForm) -> None:  # noqa: ARG001
    """Draws the page inside `tab` and wires it."""
    with gr.Column(elem_id="train"):
        gr.HTML(
            "<h1>Can it learn your kind of code?</h1>", apply_default_css=False, js_on_load=None, elem_classes="title"
        )
