"""End of answer, code extraction, syntax check.

From what a model said back to code: where the answer is over, and which part of it is the code.

Both work on any text: with or without Markdown fences, with chatter around the code, with the prompt repeated, or
with a further example that the model invents after its answer.

Whether an answer is Python at all.

Definition: the text is a non-empty program by `ast.parse` of the Python that runs this. Comments alone are empty.
"""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from typing import NamedTuple

from tasks.prompt import INSTRUCTION, RESPONSE, PromptStyle


def is_valid_python(code: str) -> bool:
    """Whether `code` is syntactically right and holds at least one statement. Never raises."""
    tree = syntax_tree(code)
    return tree is not None and bool(tree.body)


def syntax_tree(code: str) -> ast.Module | None:
    """The syntax tree of `code` after stripping it, or None where there is none. Never raises.

    CPython refuses nesting that it cannot hold with MemoryError or RecursionError, NUL bytes with SyntaxError or
    ValueError and lone surrogates with UnicodeEncodeError, a ValueError.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(code.strip())
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


# A fence is opened or closed by a line of its own.
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
    """The index in `text` behind which nothing belongs to the answer; None while that is not clear.

    The answer is over at the fence that closes its code, and where a further example or turn begins.
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
        # The line end is waited for: "```" at the very end may become "```python" with the next token.
        if close and (close.end() < len(text) or style.prefill or opening):
            return close.end()
    return turn.start() if turn else None


class ExtractedCode(NamedTuple):
    """The code of an answer, and in words which rule chose it."""

    code: str
    reason: str


def extract_code(text: str, style: PromptStyle) -> str:
    """The code in a completion: the first fenced block, or what is left when prompt, turns and prose are cut.

    Text without any code in it is returned stripped, so that a person can read the answer.
    """
    return extract_code_with_reason(text, style).code


def extract_code_with_reason(text: str, style: PromptStyle) -> ExtractedCode:
    """The code that `extract_code` takes from a completion, and which of its rules chose that code."""
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
    """Drops `### Instruction: ... ### Response:` where the text begins with the prompt said again."""
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
    """The longest run of lines that is Python, where the whole is not; the text itself where there is none."""
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
    """Whether a line is a sentence and not code: a lone word parses as a name, and 'Sure' must not win."""
    line = line.strip()
    if not line or _SINGLE_WORD.fullmatch(line):
        return True
    return not is_valid_python(line) and _CODE_START.match(line) is None
