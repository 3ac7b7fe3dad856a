"""The page's own components: Gradio's HTML component with a static template and a small script each.

Two rules keep them safe. Texts never stand in a template: Gradio renders a template with Handlebars and then runs the
result as a JavaScript template literal, so a `${...}` in a text that came through `{{...}}` would be executed. And the
scripts put texts into the page as text nodes, except for HTML that ui/compare/view.py escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from ui.code_html import diff_html
from ui.compare.view import ComparisonView
from ui.labels import method_hint, method_label

_SCRIPTS_DIR = Path(__file__).with_name("js")


def load_script(name: str) -> str:
    """The text of js/<name>.js."""
    return (_SCRIPTS_DIR / f"{name}.js").read_text(encoding="utf-8")


def difference(pair: Mapping[str, Any]) -> str:
    """The page asks for this when a difference is opened: {"mine", "theirs"} to HTML."""
    return diff_html(str(pair.get("mine") or ""), str(pair.get("theirs") or ""))


def comparison_view(value: ComparisonView, *, elem_id: str = "comparison") -> gr.HTML:
    """The answers."""
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


def method_chips(names: Sequence[str]) -> gr.HTML:
    """The chosen methods; each chip can be removed. Its value is what `chip_values` makes."""
    return gr.HTML(
        chip_values(names),
        html_template='<ul class="chips" tabindex="-1" aria-label="Methods"></ul>',
        js_on_load=load_script("chips"),
        apply_default_css=False,
        elem_id="chips",
    )


def chip_values(names: Sequence[str]) -> list[dict[str, str]]:
    """The chips of these methods."""
    return [{"name": name, "label": method_label(name), "hint": method_hint(name)} for name in names]


def chip_names(value: Any) -> list[str]:
    """The names in the chips' value, as the browser sent it: anything that is no chip is dropped."""
    if not isinstance(value, list):
        return []
    return [str(chip["name"]) for chip in value if isinstance(chip, dict) and chip.get("name")]


def history_list() -> gr.HTML:
    """The session's runs, newest first; a click triggers `select` with {"index"}."""
    template = '<p class="muted">Your runs come here: a click shows one again.</p><ol class="history"></ol>'
    return gr.HTML(
        [], html_template=template, js_on_load=load_script("history"), apply_default_css=False, elem_id="history"
    )


def file_download() -> gr.HTML:
    """Saves a file in the browser when its value becomes {"name", "type", "text", "number"}."""
    return gr.HTML(None, html_template="", js_on_load=load_script("download"), visible="hidden")


def storage_writer() -> gr.HTML:
    """Hands its value to the browser's storage: {"at", ...}, see js/storage.js."""
    return gr.HTML(None, html_template="", js_on_load=load_script("storage"), visible="hidden")


def live_region(value: str, *, elem_id: str, role: str = "status") -> gr.HTML:
    """A line that screen readers speak when it changes. Its value is HTML: escape what goes in."""
    # An alert interrupts, a status waits for a pause.
    template = f'<div role="{role}" aria-live="{"assertive" if role == "alert" else "polite"}">${{value}}</div>'
    return gr.HTML(value, html_template=template, js_on_load=None, apply_default_css=False, elem_id=elem_id)
