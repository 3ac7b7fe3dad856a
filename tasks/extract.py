"""Code extraction from completions: the end of an answer, the code in it, and a syntax check.

Works on any text: with or without Markdown fences, with prose around the code, with a repeated prompt, or with a
further example that the model generates after its answer. Valid Python means a non-empty program for `ast.parse` of the
running Python; comments alone are empty.
"""

from __future__ import annotations

import ast
import re
import textwrap
from typing import NamedTuple

from common.syntax import parse_python
from tasks.prompt import INSTRUCTION, RESPONSE, PromptStyle


def is_valid_python(code: str) -> bool:
    """Whether `code` is syntactically valid and has at least one statement. Never raises."""
    tree = syntax_tree(code)
    return tree is not None and bool(tree.body)


def syntax_tree(code: str) -> ast.Module | None:
    """Parse `code` after stripping it; None where it is not valid. Never raises.

    CPython raises MemoryError or RecursionError for deep nesting, SyntaxError or ValueError for NUL bytes, and
    UnicodeEncodeError, a ValueError, for lone surrogates.
    """
    try:
        return parse_python(code.strip())
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


# A fence is opened or closed by a separate line.
_FENCE_OPEN = re.compile(r"^[ \t]*```[ \t]*[\w+-]*[ \t]*(?:\n|\Z)", re.MULTILINE)
_FENCE_CLOSE = re.compile(r"^[ \t]*```[ \t]*(?=\n|\Z)|(?<=\S)```[ \t]*(?=\n|\Z)", re.MULTILINE)
_NEXT_TURN = re.compile(
    rf"^[ \t]*(?:{re.escape(INSTRUCTION)}|{re.escape(RESPONSE)}|<\|im_(?:start|end)\|>)", re.MULTILINE
)
_MAX_LINES = 80
_SINGLE_WORD = re.compile(r"[A-Z][\w'’-]*[.:!,]?")
_CODE_START = re.compile(
    r"(?:def|class|for|while|if|elif|else|try|except|finally|with|async|return|@|import|from)\b|.*[\[({:,\\]$|[\])}]"
)


def answer_end(text: str, style: PromptStyle) -> int | None:
    """Return the index in `text` where the answer ends; None while that is not known.

    An answer ends at the fence that closes its code, and where a further example or turn begins.
    """
    start = len(text) - len(_without_repeated_prompt(text))
    turn = _NEXT_TURN.search(text, _skip_blank(text, start))
    limit = turn.start() if turn else len(text)
    body = start if style.prefill else None
    opening = _FENCE_OPEN.search(text, start, limit)
    if opening and (body is None or not text[start : opening.start()].strip()):
        body = opening.end()
    if body is not None:
        close = _FENCE_CLOSE.search(text, _skip_blank(text, body), limit)
        # Not without the end of the line: "```" at the end of the text may become "```python" with the next token.
        if close and (close.end() < len(text) or style.prefill or opening):
            return close.end()
    return turn.start() if turn else None


class ExtractedCode(NamedTuple):
    """The code of an answer, and in words which rule chose it."""

    code: str
    reason: str


def extract_code(text: str, style: PromptStyle) -> str:
    """Return the code in a completion: the first fenced block, or the rest without prompt, turns and prose.

    Text without code is returned stripped, so that a person sees what the model generated.
    """
    return extract_code_with_reason(text, style).code


def extract_code_with_reason(text: str, style: PromptStyle) -> ExtractedCode:
    """Return the code that `extract_code` takes from a completion, and which of its rules chose it."""
    end = answer_end(text, style)
    answer = text if end is None else text[:end]
    body = _without_repeated_prompt(answer)
    opening = _FENCE_OPEN.search(body)
    if opening and not (style.prefill and body[: opening.start()].strip()):
        rest = body[opening.end() :]
        code, source = _dedent(_until_fence(rest)), f"the first {_language(opening.group())}code block of the answer"
        rule = source if _FENCE_CLOSE.search(rest) else f"{source}, which is not closed"
    elif style.prefill:
        code, source = _dedent(_until_fence(body)), "the code block that the prompt opened"
        rule = source if _FENCE_CLOSE.search(body) else f"{source}, up to the end of the answer"
    else:
        (code, rule), source = _without_prose(_dedent(body)), "the answer"
    if not code:
        return ExtractedCode(code, f"nothing: {source} is empty")
    if len(body) < len(answer):
        rule += "; the prompt, which the answer repeats, is left out"
    if _NEXT_TURN.match(text, len(answer)):
        rule += "; what follows the answer, a further example or turn, is left out"
    return ExtractedCode(code, rule)


def _language(fence: str) -> str:
    """The language that an opening fence names, as a word before "code block"."""
    name = fence.strip().strip("`").strip()
    return "Python " if name.lower() in {"python", "python3", "py"} else f"'{name}' " if name else ""


def _without_repeated_prompt(text: str) -> str:
    """Drop `### Instruction: ... ### Response:` where the text begins with a repeated prompt."""
    stripped = text.lstrip()
    if stripped.startswith(INSTRUCTION) and RESPONSE in stripped:
        return stripped.split(RESPONSE, 1)[1]
    return stripped.removeprefix(RESPONSE) if stripped.startswith(RESPONSE) else text


def _skip_blank(text: str, start: int) -> int:
    while start < len(text) and text[start].isspace():
        start += 1
    return start


def _until_fence(text: str) -> str:
    close = _FENCE_CLOSE.search(text)
    return text[: close.start()] if close else text


def _dedent(text: str) -> str:
    return textwrap.dedent(text.strip("\n")).rstrip().lstrip("\n")


def _without_prose(text: str) -> ExtractedCode:
    """Return the longest block of lines that is Python; the text itself where it is Python, or no block is."""
    text = text.strip()
    lines = text.splitlines()
    whole = "the whole answer: it has no code block"
    if is_valid_python(text) or not 1 < len(lines) <= _MAX_LINES:
        return ExtractedCode(text, whole)
    for start in range(min(len(lines), 8)):
        if _is_prose(lines[start]) or lines[start][0].isspace():
            continue
        for end in range(len(lines), start, -1):
            block = "\n".join(lines[start:end])
            if is_valid_python(block) and not all(_is_prose(line) for line in lines[start:end]):
                reason = f"the first run of lines that is Python ({end - start} of {len(lines)} lines)"
                return ExtractedCode(block.strip("\n"), f"{reason}: the answer has no code block")
    return ExtractedCode(text, f"{whole} and no run of lines that is Python")


def _is_prose(line: str) -> bool:
    """Whether a line is prose. A single word such as 'Sure' parses as a name, but counts as prose."""
    line = line.strip()
    if not line or _SINGLE_WORD.fullmatch(line):
        return True
    return not is_valid_python(line) and _CODE_START.match(line) is None
