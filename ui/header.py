"""The line above all pages: the product, and which model answers (or how far its loading is)."""

from __future__ import annotations

from html import escape

import gradio as gr

from ui.context import Context
from ui.labels import base_label
from ui.login import build_login, is_login_available
from ui.visitors import Visitor

LOADING_POLL_SECONDS = 0.7


def header_html(context: Context) -> str:
    """The header as it is now; everything that names the model is escaped."""
    state = context.engine_loader.state()
    if state.phase == "ready":
        text, bar = base_label(context.engine_loader.engine().base), ""
    elif state.phase == "failed":
        text, bar = state.message, ""
    else:
        text = state.message
        share = f' style="width:{state.fraction:.0%}"' if state.fraction is not None else ' class="unknown"'
        bar = f'<span class="progress" aria-hidden="true"><span{share}></span></span>'
    return (
        '<header class="top"><p class="product">Peft Arena</p>'
        f'<p class="model {state.phase}" role="status" aria-live="polite">'
        f'<span class="dot" aria-hidden="true"></span><span class="model-text">{escape(text)}</span>{bar}</p></header>'
    )


def account_html(visitor: Visitor) -> str:
    """Who is logged in, with the way out; '' for nobody."""
    if not visitor.name or is_login_available():  # the button of a Space says it itself
        return ""
    return f'<p class="account">Logged in as {escape(visitor.name)} · <a href="logout">Log out</a></p>'


def build_header(context: Context) -> tuple[gr.HTML, gr.HTML, gr.Timer]:
    """The header, the line for who is logged in, and the timer that ticks while the model is being loaded."""
    shown = gr.HTML(header_html(context), elem_id="top", apply_default_css=False, js_on_load=None)
    account = gr.HTML("", elem_id="account", apply_default_css=False, js_on_load=None)
    build_login("top-login")
    timer = gr.Timer(LOADING_POLL_SECONDS)
    return shown, account, timer
