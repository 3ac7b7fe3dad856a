"""The line that opens a Markdown fence: its language, and code that stands on the same line."""

from __future__ import annotations

import keyword
import re
from typing import NamedTuple, cast

from tasks.extract import marks

PYTHON = "python"
MARKDOWN = "markdown"

# A name such as `python`, `{.python}`, `{code-cell} ipython3` or `src/main.py`. Every part may be empty.
_NAME = re.compile(r"[ \t]*(?:\{code-cell\}[ \t]*)?(?P<brace>\{?)[ \t]*\.?(?P<name>[\w+#./\\-]*)")
_ATTRIBUTE = re.compile(
    r"""(?:[\w.:-]+=(?:"[^"\n]*"|'[^'\n]*'|[^\s"']+)    # title="a.py"
    | \{[^}\n]*\} | \[[^\]\n]*\]                          # {1,3-4}
    | [.#][\w-]+ | \d[\d,-]*                              # .numberLines
    | [\w/\\-]*[./\\][\w./\\-]+                           # src/a.py
    | [a-z]*(?:[Ll]ine|[Nn]umber)[A-Za-z]* | copy | exec | execute | editable | runnable | file | filename | code
    | script | input | solution | answer | main | program | example
    )(?:[\s,]+|\Z)""",
    re.VERBOSE,
)


class FenceInfo(NamedTuple):
    """What follows the characters of an opening fence.

    `language` is "python", "markdown", another known language in lower case, or "" for none or an unknown one.
    `code_offset` is where code begins on the same line; None: it begins on the next line.
    """

    language: str
    code_offset: int | None


def parse_fence_info(info: str) -> FenceInfo:
    """Read the rest of an opening line, such as `python title="a.py"`, `{python}` or `python x = 1`."""
    match = cast("re.Match[str]", _NAME.match(info))
    name, rest = match["name"], info[match.end() :]
    language = _known_language(name)
    if not (name or rest.strip()):
        return FenceInfo("", None)
    if language is None and (keyword.iskeyword(name) or not name):
        return FenceInfo("", 0)
    attributes = rest.strip().lstrip(":,;").removesuffix("}" if match["brace"] else "").strip(" \t,;")
    if _are_attributes(attributes):
        return FenceInfo(language or "", None)
    if language is None:
        return FenceInfo("", 0)
    return FenceInfo(language, len(info) - len(rest.lstrip(" \t")) if language == PYTHON else None)


def _known_language(name: str) -> str | None:
    lower = name.lower()
    if marks.PYTHON_LANGUAGES.match(name):
        return PYTHON
    if lower in marks.MARKDOWN_LANGUAGES:
        return MARKDOWN
    return lower if lower in marks.OTHER_LANGUAGES else None


def _are_attributes(text: str) -> bool:
    position = 0
    while position < len(text):
        match = _ATTRIBUTE.match(text, position)
        if match is None:
            return False
        position = match.end()
    return True
