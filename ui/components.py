"""Components and HTML of several pages: templates with autoescape, scripts, highlighted code, differences, labels.

Two rules keep them safe. A text is never part of a template: Gradio renders the template with Handlebars and then runs
the result as a JavaScript template literal, so a `${...}` in a text inserted with `{{...}}` would be executed. And the
scripts insert texts as text nodes, except for HTML that Jinja2 escaped.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import gradio as gr
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from adapters.manifest import UNKNOWN
from common.format import quantization_label
from models.source import BaseIdentity
from ui.access.guard import action

if TYPE_CHECKING:
    from ui.compare.view import ComparisonView

_ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
)
_SELECTION_LABELS = {"icl": "fixed", "rag": "nearest"}
_DEVICE_LABELS = {"cpu": "CPU", "cuda": "GPU"}
# Options of events that answer at once: not queued, without a progress bar, not part of the API.
EVENT_OPTIONS: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
_comparing = Lock()
_COMPARING_SECONDS = 2.0
_SCRIPTS_DIR = Path(__file__).with_name("js")


def render(template: str, **values: Any) -> Markup:
    """Render `template` (a path relative to ui/) with `values`; text is escaped, Markup is inserted as it is."""
    return Markup(_ENVIRONMENT.get_template(template).render(**values))  # noqa: S704 - the template escapes


# Highlighting is linear but slow: longer texts stay plain, and no difference of them is computed.
MAX_HIGHLIGHTED = 40_000
MAX_DIFFED_LINES = 1_000
# Looking for similar lines compares each with each, character by character.
MAX_SIMILAR_LINES, MAX_SIMILAR_CHARS = 40, 4_000
MAX_DIFFED_CHARS = 100_000
TOO_LONG_TO_COMPARE = Markup('<p class="muted">Too long to compare line by line.</p>')
MAX_TEXT_LENGTH = 200_000
MAX_INDENT = 16
_LEXER = PythonLexer(stripnl=False, ensurenl=False)
_FORMATTER: HtmlFormatter[str] = HtmlFormatter(nowrap=True)
# The opening fence may be incomplete while the model writes it.
_OPEN_FENCE = re.compile(r"\A\s*`{1,3}(?:[\w+-]*[ \t]*\Z|(?<=```)[\w+-]*[ \t]*\n)")
_CLOSE_FENCE = re.compile(r"\n`{1,3}\s*\Z")
_TAG = re.compile(r"<[^>]*>")
_CARET = Markup('<span class="caret" aria-hidden="true"></span>')


def code_html(code: str) -> Markup:
    """Highlight Python: a class for each token, and a row for each line with its indentation."""
    return _code_lines(code) if len(code) <= MAX_HIGHLIGHTED else plain_html(code)


@lru_cache(maxsize=256)
def _code_lines(code: str, end: str = "") -> Markup:
    # Pygments escapes the text of every token, closes its tags at every line end, and ends the last line.
    lines = highlight(code, _LEXER, _FORMATTER).removesuffix("" if code.endswith("\n") else "\n").split("\n")
    rows = [_code_line(line, "\n") for line in lines[:-1]]
    return Markup("".join([*rows, _code_line(lines[-1], end)]))  # noqa: S704 - Pygments has escaped it


def _code_line(line: str, end: str) -> str:
    # CSS wraps a long line and indents its continuation deeper than its start.
    text = _TAG.sub("", line)
    indent = min(len(text) - len(text.lstrip(" ")), MAX_INDENT) + 2
    return f'<span class="row" style="--in:{indent}ch">{line}{end}</span>'


def plain_html(text: str) -> Markup:
    """Escape any text; the middle of one over MAX_TEXT_LENGTH is left out."""
    if len(text) <= MAX_TEXT_LENGTH:
        return escape(text)
    half = MAX_TEXT_LENGTH // 2
    left_out = f"\n\n[{len(text) - 2 * half:,} characters not shown here; the exports have them all]\n\n"
    return escape(text[:half] + left_out + text[-half:])


def streaming_html(text: str) -> Markup:
    """Highlight the output of a model so far, without the Markdown fence around it, with a caret at its end."""
    code = _CLOSE_FENCE.sub("", _OPEN_FENCE.sub("", text))
    return _code_lines(code, _CARET) if len(code) <= MAX_HIGHLIGHTED else plain_html(code) + _CARET


def diff_html(mine: str, theirs: str) -> Markup:
    """Compare line by line: lines only in `theirs` are removed, lines only in `mine` are added.

    The length is checked before the texts are taken apart.
    """
    if len(mine) + len(theirs) > MAX_DIFFED_CHARS:
        return TOO_LONG_TO_COMPARE
    old, new = theirs.splitlines(), mine.splitlines()
    if old == new:
        return Markup('<p class="muted">No difference.</p>')
    lines_count, chars_count = max(len(old), len(new)), len(mine) + len(theirs)
    if lines_count > MAX_DIFFED_LINES:
        return TOO_LONG_TO_COMPARE
    is_short = lines_count <= MAX_SIMILAR_LINES and chars_count <= MAX_SIMILAR_CHARS
    lines = difflib.ndiff(old, new) if is_short else _unified_lines(old, new)
    return render("diff.html.jinja", lines=_marked_lines(lines))


def _unified_lines(old: list[str], new: list[str]) -> list[str]:
    unified = difflib.unified_diff(old, new, lineterm="", n=len(old) if len(old) <= 200 else 3)
    return [f"{line[0]} {line[1:]}" for line in list(unified)[2:] if line[0] in "+- "]


def _marked_lines(lines: Iterable[str]) -> Iterator[tuple[str, str, str, str]]:
    """Yield (CSS class, sign, text for screen readers, text) of each line of a diff."""
    classes, spoken = {"+": "add", "-": "del"}, {"+": "added: ", "-": "removed: "}
    for line in lines:
        sign = line[0]
        if sign != "?":  # a line of hints to the line above
            yield classes.get(sign, "same"), sign, spoken.get(sign, ""), line[2:]


def method_label(name: str) -> str:
    """Return the label of a method name: 'lora-conala + RAG 8' for `lora-conala+rag-8`."""
    return " + ".join(re.sub(r"^(icl|rag)-(\d+)", lambda m: f"{m[1].upper()} {m[2]}", part) for part in name.split("+"))


def method_hint(name: str) -> str:
    """Describe a method in a short phrase: 'no examples, no training', 'trained adapter · 8 nearest examples'."""
    phrases = []
    for part in name.split("+"):
        match = re.match(r"(icl|rag)-(\d+)", part)
        if match:
            count = int(match[2])
            phrases.append(f"{count} {_SELECTION_LABELS[match[1]]} example{'' if count == 1 else 's'}")
        else:
            phrases.append("no examples, no training" if part == "zero-shot" else "trained adapter")
    return " · ".join(phrases)


def base_label(base: BaseIdentity) -> str:
    """Return 'SmolLM2-135M-Instruct · NF4 · CPU', 'base · vLLM at 127.0.0.1:8000'."""
    return model_label(base.id, base.quantization, base.device)


def model_label(base_id: str, quantization: str, device: str) -> str:
    """Return the same from the fields of a record; unknown ones are left out."""
    name = base_id.rstrip("/").rsplit("/", 1)[-1] or base_id
    kind = device.split(":", 1)[0]
    labels = (name, quantization_label(quantization), _DEVICE_LABELS.get(kind, device))
    return " · ".join(part for part in labels if part != UNKNOWN)


def decoding_label(decoding: Mapping[str, Any]) -> str:
    """Return 'greedy', 'beam search, 10 candidates', 'sampling, 3 candidates, temperature 0.6, top-p 0.95, seed 0'."""
    mode, count = decoding["mode"], decoding["candidates"]
    if mode == "greedy":
        return "greedy"
    candidates = f"{count} candidate{'' if count == 1 else 's'}"
    if mode == "beam":
        return f"beam search, {candidates}"
    sampling = f"temperature {decoding['temperature']:g}, top-p {decoding['top_p']:g}, seed {decoding['seed']}"
    return f"sampling, {candidates}, {sampling}"


def format_date(created: str) -> str:
    """Return '22 November 2025' for an ISO time."""
    when = datetime.fromisoformat(created)
    return f"{when.day} {when:%B %Y}"


def format_time(created: str) -> str:
    """Return '14:05' for an ISO time, in the server's time zone."""
    return f"{datetime.fromisoformat(created).astimezone():%H:%M}"


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
