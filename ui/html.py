"""HTML of the pages: Jinja2 templates with autoescape, and code that is highlighted, streaming, or compared."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

_ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
)


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
