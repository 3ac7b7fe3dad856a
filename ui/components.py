"""Components of the pages: Gradio's HTML component with a static template and a script each.

Two rules keep them safe. A text is never part of a template: Gradio renders the template with Handlebars and then runs
the result as a JavaScript template literal, so a `${...}` in a text inserted with `{{...}}` would be executed. And the
scripts insert texts as text nodes, except for HTML that the templates of ui/html.py escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import gradio as gr
from markupsafe import Markup

from ui.access.guard import action
from ui.html import diff_html, method_hint, method_label

if TYPE_CHECKING:
    from ui.compare.view import ComparisonView

# Options of events that answer at once: not queued, without a progress bar, not part of the API.
EVENT_OPTIONS: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
_comparing = Lock()
_COMPARING_SECONDS = 2.0
_SCRIPTS_DIR = Path(__file__).with_name("js")


def load_script(name: str) -> str:
    """Return the text of js/<name>.js."""
    return (_SCRIPTS_DIR / f"{name}.js").read_text(encoding="utf-8")


def paragraph_html(text: str) -> str:
    """Return a paragraph with the text escaped."""
    return Markup("<p>{}</p>").format(text)


def error_html(*errors: object) -> str:
    """Return a paragraph for each error or message, escaped; '' for empty ones."""
    paragraph = Markup('<p class="error-message">{}</p>')
    return Markup("").join(paragraph.format(str(error)) for error in errors if str(error))


@action("view pages")
def difference(pair: Any) -> str:
    """Compare two codes, {"mine", "theirs"}, as HTML; js/comparison.js calls it when a difference is opened.

    Any program can call it with any value: anything but texts counts as empty. One difference is computed at a time,
    so that many calls do not take more than one core, and ui/access/quota.py counts the calls of each visitor.
    """
    mine, theirs = (
        text if isinstance(text, str) else ""
        for text in (pair.get(side) if isinstance(pair, Mapping) else "" for side in ("mine", "theirs"))
    )
    if not _comparing.acquire(timeout=_COMPARING_SECONDS):
        return paragraph_html("Many differences are being compared: open this one again in a moment.")
    try:
        return diff_html(mine, theirs)
    finally:
        _comparing.release()


def comparison_view(value: ComparisonView, *, elem_id: str = "comparison") -> gr.HTML:
    """Return the component of a comparison; js/comparison.js draws its value."""
    template = (
        '<section class="comparison" aria-label="Answers"><div class="comparison-header"></div>'
        '<div class="cards" tabindex="0" role="group" aria-label="Answers, side by side"></div></section>'
    )
    return gr.HTML(
        value,
        html_template=template,
        js_on_load=load_script("comparison"),
        server_functions=[difference],
        apply_default_css=False,
        elem_id=elem_id,
    )


def method_chips(names: Sequence[str], *, elem_id: str = "chips") -> gr.HTML:
    """Return the list of the chosen methods, which can be removed; its value is made by `chip_values`."""
    return gr.HTML(
        chip_values(names),
        html_template='<ul class="chips" tabindex="-1" aria-label="Methods"></ul>',
        js_on_load=load_script("chips"),
        apply_default_css=False,
        elem_id=elem_id,
    )


def chip_values(names: Sequence[str]) -> list[dict[str, str]]:
    """Return the value of the chips of these methods."""
    return [{"name": name, "label": method_label(name), "hint": method_hint(name)} for name in names]


def chip_names(value: Any) -> list[str]:
    """Return the names of the methods in a value that the browser sent; anything but chips is ignored."""
    if not isinstance(value, list):
        return []
    return [str(chip["name"]) for chip in value if isinstance(chip, dict) and chip.get("name")]


def history_list() -> gr.HTML:
    """Return the list of runs, newest first; a click triggers `select` with {"index"}."""
    template = '<p class="muted">Your runs come here: a click shows one again.</p><ol class="history"></ol>'
    return gr.HTML(
        [], html_template=template, js_on_load=load_script("history"), apply_default_css=False, elem_id="history"
    )


def file_download() -> gr.HTML:
    """Return a component that saves a file in the browser: {"name", "type", "text" or "base64", "number"}."""
    return gr.HTML(None, html_template="", js_on_load=load_script("download"), visible="hidden")


def storage_writer() -> gr.HTML:
    """Return a component that writes its value {"at", ...} into the browser's storage (js/storage.js)."""
    return gr.HTML(None, html_template="", js_on_load=load_script("storage"), visible="hidden")


def live_region(value: str, *, elem_id: str, role: str = "status") -> gr.HTML:
    """Return a line that screen readers announce when it changes. Its value is HTML, escaped by the caller."""
    # An alert interrupts, a status waits for a pause.
    template = f'<div role="{role}" aria-live="{"assertive" if role == "alert" else "polite"}">${{value}}</div>'
    return gr.HTML(value, html_template=template, js_on_load=None, apply_default_css=False, elem_id=elem_id)
