"""What a first visit reads: three lines, and one click that runs a real example."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import gradio as gr

COLUMNS_TEXT = (
    "zero-shot gets no help; ICL sees eight fixed examples; RAG sees the eight examples nearest to your words; the "
    "last one is trained for the task with a small add-on, called an adapter."
)
WELCOME_LINES = (
    (
        "What this is",
        "A small language model writes Python from one sentence, in several ways at once, side by side.",
    ),
    ("The four columns", COLUMNS_TEXT),
    ("What to do", "Ask for a piece of Python below, compare the answers, and see which way suits your kind of code."),
)
_WELCOME_JS = "() => window.peftArenaWelcome({})"


def welcome_html(lines: Sequence[tuple[str, str]] = WELCOME_LINES) -> str:
    """The three lines."""
    items = "".join(f"<p><strong>{escape(title)}.</strong> {escape(text)}</p>" for title, text in lines)
    return f'<section class="welcome" aria-label="What this is">{items}</section>'


def build_welcome(*, example: bool) -> gr.Button:
    """Draws it, hidden once the browser has seen a run (js/page.js). Returns the button that runs the example."""
    with gr.Column(elem_id="welcome"):
        gr.HTML(welcome_html(), apply_default_css=False, js_on_load=None)
        with gr.Row(elem_id="welcome-actions"):
            run = gr.Button(
                "Run a real example", variant="primary", size="md", scale=0, min_width=170, visible=example,
                elem_id="run-example",
            )  # fmt: skip
            hide = gr.Button("Hide this", size="md", scale=0, min_width=100, elem_id="hide-welcome")
    hide.click(None, None, None, js=_WELCOME_JS.format("false"), api_visibility="private")
    return run


def build_show_welcome_button() -> None:
    """The button that shows it again."""
    again = gr.Button("Show the introduction", size="sm", scale=0, min_width=170, elem_id="show-welcome")
    again.click(None, None, None, js=_WELCOME_JS.format("true"), api_visibility="private")
