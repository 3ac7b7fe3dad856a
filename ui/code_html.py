"""Code as escaped HTML: highlighted, growing, or as a difference. Everything that comes in is text, never markup."""

from __future__ import annotations

import difflib
import re
from functools import lru_cache
from html import escape

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

# Highlighting is linear but not free: a text beyond this is shown plain, and a difference is not computed.
MAX_HIGHLIGHTED = 40_000
MAX_DIFFED_LINES = 2_000
MAX_TEXT_LENGTH = 200_000
MAX_INDENT = 16
_LEXER = PythonLexer(stripnl=False, ensurenl=False)
_FORMATTER: HtmlFormatter[str] = HtmlFormatter(nowrap=True)
# Half a fence is one too: it is being written.
_OPEN_FENCE = re.compile(r"\A\s*`{1,3}(?:[\w+-]*[ \t]*\Z|(?<=```)[\w+-]*[ \t]*\n)")
_CLOSE_FENCE = re.compile(r"\n`{1,3}\s*\Z")
_TAG = re.compile(r"<[^>]*>")


def code_html(code: str) -> str:
    """Python with a class around each token, and a row around each line that knows how far it is indented."""
    return _code_lines(code) if len(code) <= MAX_HIGHLIGHTED else plain_html(code)


@lru_cache(maxsize=256)
def _code_lines(code: str, end: str = "") -> str:
    # Pygments escapes the text of every token, closes its tags at every line end, and ends the last line.
    lines = highlight(code, _LEXER, _FORMATTER).removesuffix("" if code.endswith("\n") else "\n").split("\n")
    rows = [_code_line(line, "\n") for line in lines[:-1]]
    return "".join(rows) + _code_line(lines[-1], end)


def _code_line(line: str, end: str) -> str:
    # A line too long for its column goes on below, further in than it began: Python stays readable.
    text = _TAG.sub("", line)
    indent = min(len(text) - len(text.lstrip(" ")), MAX_INDENT) + 2
    return f'<span class="row" style="--in:{indent}ch">{line}{end}</span>'


def plain_html(text: str) -> str:
    """Any text, escaped; its middle is left out where it is longer than a page can bear."""
    if len(text) <= MAX_TEXT_LENGTH:
        return escape(text)
    half = MAX_TEXT_LENGTH // 2
    left_out = f"\n\n[{len(text) - 2 * half:,} characters not shown here; the exports have them all]\n\n"
    return escape(text[:half] + left_out + text[-half:])


def streaming_html(text: str) -> str:
    """What a model has said so far, without the fence around it, and a caret where the next token goes."""
    shown = _CLOSE_FENCE.sub("", _OPEN_FENCE.sub("", text))
    caret = '<span class="caret" aria-hidden="true"></span>'
    return _code_lines(shown, caret) if len(shown) <= MAX_HIGHLIGHTED else plain_html(shown) + caret


def diff_html(mine: str, theirs: str) -> str:
    """Lines only in `theirs` as removed, lines only in `mine` as added, with signs as well as colours."""
    old, new = theirs.splitlines(), mine.splitlines()
    if old == new:
        return '<p class="muted">No difference.</p>'
    if max(len(old), len(new)) > MAX_DIFFED_LINES or len(mine) + len(theirs) > MAX_TEXT_LENGTH:
        return '<p class="muted">Too long to compare line by line.</p>'
    lines = difflib.ndiff(old, new) if max(len(old), len(new)) <= 200 else _unified_lines(old, new)
    return f'<pre class="code diff" tabindex="0"><code>{"".join(_diff_line(line) for line in lines)}</code></pre>'


def _unified_lines(old: list[str], new: list[str]) -> list[str]:
    # ndiff also looks for similar lines, which is cubic; long texts get the plain unified form.
    unified = difflib.unified_diff(old, new, lineterm="", n=3)
    return [f"{line[0]} {line[1:]}" for line in list(unified)[2:] if line[0] in "+- "]


def _diff_line(line: str) -> str:
    sign, text = line[0], escape(line[2:])
    if sign == "?":
        return ""
    kind = {"+": "add", "-": "del"}.get(sign, "same")
    word = {"+": "added: ", "-": "removed: "}.get(sign, "")
    spoken = f'<span class="visually-hidden">{word}</span>' if word else ""
    return f'<span class="line {kind}"><span class="sign" aria-hidden="true">{sign}</span>{spoken}{text}\n</span>'
