"""Repairs of code that is Python but for the way in which it is written down.

Examples are prompts of an interactive session, line numbers, HTML entities, no-break spaces. A repair is applied only
where the code is not valid as it stands and is valid afterwards.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable

from tasks.extract.bare_code import trim_trailing_prose
from tasks.extract.syntax import STRING, is_valid_python

_STRING_OR_SPACE = re.compile(
    rf"{STRING}|(?P<space>[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000])"
    r"|(?P<invisible>[\u200b\u200c\u200d\u2060\ufeff\u00ad]+)"
)
_STRING_OR_ENTITY = re.compile(rf"{STRING}|(?P<entity>&(?:lt|gt|amp|quot|apos|nbsp|#\d{{1,4}}|#x[\da-f]{{1,4}});)")
_TYPOGRAPHIC_QUOTES = str.maketrans("“”„‟‘’‚‛", "\"\"\"\"''''")
_PROMPT = re.compile(
    r"[ \t]*(?:(?P<first>>>>|In \[\d+\]:)|(?P<next>\.{3}:?|[ \t]+\.{3}:))(?:[ \t](?P<code>.*)|[ \t]*)\Z"
)
_NOTEBOOK_PROMPT = re.compile(r"\s*In \[\d+\]:")
_NUMBERED = re.compile(r"[ \t]*(?P<number>\d{1,5})(?:[ \t]*[:.|)│][ \t]?|[ \t]|\Z)(?P<code>.*)\Z")
_MAGIC = re.compile(r"[ \t]*[!%?]{1,2}\s*\w|[ \t]*\$ \w|(?:pip3?|conda) install \S")
_CELL = re.compile(r"(?m)^(?:In \[\d+\]:|#%%.*)[ \t]?")


def repair(code: str) -> str:
    """Return valid Python for `code` where one of the repairs gives it, else `code` itself."""
    code = _unescape_html(code)
    if _NOTEBOOK_PROMPT.match(code):  # "In [1]: x" is valid as it stands: an annotation
        code = read_session(code)
    if is_valid_python(code):
        return code
    current = code
    for attempt in _REPAIRS:
        changed = attempt(current)
        if changed != current:
            if is_valid_python(changed):
                return changed.strip("\n").rstrip()
            if attempt in (replace_spaces, trim_trailing_prose):
                current = changed
    return code


def replace_spaces(code: str) -> str:
    """Replace spaces of other kinds, such as no-break spaces, and remove invisible characters, outside of strings."""
    if code.isascii():
        return code
    return _STRING_OR_SPACE.sub(lambda m: " " if m["space"] else "" if m["invisible"] else m.group(), code)


def read_session(code: str) -> str:
    """Return the input of an interactive session: what follows `>>> ` and `... `, without what was printed."""
    lines = code.split("\n")
    matches = [_PROMPT.match(line) for line in lines]
    first = next((match for match in matches if match), None)
    if first is None or not first["first"]:
        return code
    entered: list[str] = []
    is_input = False
    for match in matches:
        is_input = match is not None and (bool(match["first"]) or is_input)
        if match is not None and is_input:
            entered.append(match["code"] or "")
    return "\n".join(entered).strip("\n")


def _remove_magics(code: str) -> str:
    """Remove shell and magic commands of notebooks, and their prompts."""
    lines = [line for line in _CELL.sub("", code).split("\n") if not _MAGIC.match(line)]
    return "\n".join(lines)


def _remove_line_numbers(code: str) -> str:
    lines = [line for line in code.split("\n") if line.strip()]
    matches = [match for line in lines if (match := _NUMBERED.match(line))]
    if len(matches) < max(2, len(lines)):
        return code
    first = int(matches[0]["number"])
    if [int(match["number"]) for match in matches] != list(range(first, first + len(matches))):
        return code
    return "\n".join(match["code"] for match in matches)


def _apply_diff(code: str) -> str:
    """Return what a diff adds and keeps."""
    lines = [line for line in code.split("\n") if not line.startswith(("+++", "---", "@@", "diff ", "index "))]
    if not lines or not any(line.startswith("+") for line in lines):
        return code
    if not all(line[:1] in ("+", "-", " ", "") for line in lines):
        return code
    return "\n".join(line[1:] for line in lines if not line.startswith("-"))


def _unescape_newlines(code: str) -> str:
    if "\n" in code.strip() or "\\n" not in code:
        return code
    return code.replace("\\n", "\n").replace("\\t", "\t").replace('\\"', '"')


def _unescape_html(code: str) -> str:
    """Replace HTML entities outside of strings, where that gives Python: `x &lt; y` is valid as it stands."""
    if "&" not in code or not any(match["entity"] for match in _STRING_OR_ENTITY.finditer(code)):
        return code
    unescaped = html.unescape(code)
    return unescaped if is_valid_python(unescaped) else code


def _remove_partial_fence(code: str) -> str:
    return re.sub(r"\n[ \t]*`{1,2}\Z", "", code)


def _replace_quotes(code: str) -> str:
    return code.translate(_TYPOGRAPHIC_QUOTES)


_REPAIRS: tuple[Callable[[str], str], ...] = (
    replace_spaces,
    read_session,
    trim_trailing_prose,
    _remove_partial_fence,
    _remove_magics,
    _remove_line_numbers,
    _apply_diff,
    _unescape_newlines,
    _replace_quotes,
)
