"""Scanner of answers: one pass that finds thinking, code blocks with their languages, and the end of the turn.

`answer_end`, which ends generation, and `extract_code` read an answer through this scanner, so that both see the same
blocks. Fences and marks inside of Python strings are text of the program. Time is linear in the text.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

from tasks.extract import marks
from tasks.extract.bare_code import REST_OF_LONG_STRING, SHORT_STRING, is_all_prose
from tasks.prompt import INSTRUCTION, RESPONSE, PromptStyle

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


@dataclass(frozen=True, eq=False)
class Block:
    """A block of code: a fence, a pair of tags, or the fence that the prompt opened.

    `language` is "python", another language in lower case, or "" where none is named. The block begins with its opening
    at `begin`; its content is `text[start:end]`. `closed_at` is the index behind what closes it; None: not closed.
    `closer` is what closes it: the characters of a fence, or a closing tag ("": only the end of the turn).
    """

    language: str
    begin: int
    start: int
    end: int = -1
    closed_at: int | None = None
    closer: str = "```"
    from_prompt: bool = False
    is_quoted: bool = False

    @property
    def is_fence(self) -> bool:
        """Whether a Markdown fence opened the block."""
        return self.closer[:1] in ("`", "~")

    @property
    def may_be_python(self) -> bool:
        """Whether the block is named Python, or not named."""
        return self.language in (PYTHON, "")


_CODE_CLOSERS = {re.compile(pattern): closer for pattern, closer in marks.CODE_TAGS}
_OTHER_CLOSERS = marks.OTHER_TAGS | marks.TOOL_CALL_TAGS
_CLOSING_TAGS = sorted({*_OTHER_CLOSERS.values(), *_CODE_CLOSERS.values()} - {""})


def _alternatives(literals: Iterable[str]) -> str:
    return "|".join(map(re.escape, literals))


# The order matters: at one index the first alternative wins.
_TOKEN = re.compile(
    # The first group only makes the search fast: a token begins with one of these characters, or a line.
    r"(?:(?=[`~<\[◁\\#'\"])|(?=assistantfinal)|^)(?:"
    + "|".join(
        (
            r"^(?P<margin>[ \t]*+(?:>[ \t]*+)*+(?:(?:[-*+]|\d{1,3}[.)])[ \t]++)?)(?P<line_fence>`{3,}|~{3,})",
            r"^[ \t]*(?P<quote_fence>'{3}|\"{3})(?:python3?|py)[ \t\r]*$",
            r"(?P<inline_fence>`{3,})",
            r"(?P<inline_code>`[^`\n]+`|``[^`\n]+``)",
            rf"(?P<think>{marks.THINKING_OPENERS})",
            rf"(?P<end_think>{marks.THINKING_CLOSERS})",
            rf"(?P<turn>{marks.TURN})",
            rf"(?P<answer>{marks.ANSWER_TAGS})",
            rf"(?P<end_answer>{marks.ANSWER_CLOSING_TAGS})",
            rf"(?P<tag>{'|'.join(pattern for pattern, _ in marks.CODE_TAGS)})",
            rf"(?P<other_tag>{_alternatives(_OTHER_CLOSERS)})",
            rf"(?P<end_tag>{_alternatives(_CLOSING_TAGS)})",
            r"(?P<triple>(?<!\\)(?:\"{3}|'{3}))",
            rf"(?P<string>{SHORT_STRING})",
            r"(?P<comment>(?:^|(?<=[ \t]))#)",
        )
    )
    + ")",
    re.MULTILINE,
)
# What counts in a comment.
_MARK = re.compile(
    rf"(?P<end_think>{marks.THINKING_CLOSERS})|(?P<turn>{marks.TURN})|(?P<end_tag>{_alternatives(_CLOSING_TAGS)})",
    re.MULTILINE,
)
# What may follow a closing fence on its line.
_ENDING = re.compile(
    rf"{marks.THINKING_CLOSERS}|{marks.TURN}|{marks.ANSWER_CLOSING_TAGS}|{_alternatives(_CLOSING_TAGS)}", re.MULTILINE
)
_END_OF_THINKING = re.compile(rf"(?P<end_think>{marks.THINKING_CLOSERS})", re.MULTILINE)
_END_MARK = re.compile(rf"{marks.TURN}|{marks.ANSWER_CLOSING_TAGS}", re.MULTILINE)
_CLOSED_STRING = re.compile(r"'(?:[^'\\]|\\.)*+'|\"(?:[^\"\\]|\\.)*+\"")
_OPEN_QUOTE = re.compile(r"(?<![\w\\])(?:[rRbBfFuU]{1,2})?['\"]")
_ONE_LINE_FENCE = re.compile(r"(?P<content>[^`\n]+)`{3,}")
_NEXT_OPENING = re.compile(rf"\s*(?:`{{3,}}|~{{3,}}|{'|'.join(pattern for pattern, _ in marks.CODE_TAGS)})")
_JSON = re.compile(r"\s*[\[{]")
_WORDS = ("string", "inline_code", "triple", "comment")


class Scanner:
    """Reads one answer; `blocks` yields its blocks of code in the order in which they are closed.

    `start` is where the answer begins: behind a repeated prompt, leading marks and thinking. `end` is where another
    turn begins, or None. `is_thinking` says that the text ends inside of its thinking. All three are valid when
    `blocks` is exhausted; blocks that begin before `start` are then no part of the answer.

    With `complete` no more text will follow. Without it, the scanner stops where more text can change what it read: an
    opening line without its end, or a mark in a string that is not closed yet.
    """

    def __init__(self, text: str, style: PromptStyle, *, complete: bool) -> None:
        self.text = text
        self._text_end = len(text.rstrip())
        self.start = prompt_end(text)
        self.end: int | None = None
        self.is_thinking = False
        self._style = style
        self._complete = complete
        self._open: Block | None = None
        self._closed: list[Block] = []
        self._in_answer_tag = False
        self._has_block = False
        self._inner_tag = -1
        self._unclosed_strings: set[str] = set()
        self._line_end = -1

    @property
    def limit(self) -> int:
        """Where the answer ends: at another turn, else at the end of the text."""
        return len(self.text) if self.end is None else self.end

    def blocks(self) -> Iterator[Block]:
        """Yield the blocks; the last one may not be closed."""
        position: int | None = self._begin(self.start)
        if position is not None and self._style.opens_thinking:
            position = self._skip_thinking(position)
        while position is not None and self.end is None:
            match = _TOKEN.search(self.text, position)
            if match is None:
                break
            position = self._read(match)
            yield from self._closed
            self._closed.clear()
        if self._open is not None and not self.is_thinking:
            yield replace(self._open, end=self.limit)

    def _begin(self, position: int) -> int:
        """Begin the answer at `position`, behind marks that repeat the end of the prompt; return where."""
        while (match := marks.LEADING_MARKS.match(self.text, position)) is not None:
            position = match.end()
        self.start, self._has_block = position, False
        self._open = Block(PYTHON, position, position, from_prompt=True) if self._style.prefill else None
        return position

    # Each `_read` method returns the index at which to go on, or None where the rest is undecided.

    def _read(self, match: re.Match[str]) -> int | None:
        kind = match.lastgroup or ""
        if kind == "comment" and self._reads_python:
            line_end = self._find_line_end(match.end())
            mark = _MARK.search(self.text, match.end(), line_end)
            if mark is None:
                return line_end
            match, kind = mark, mark.lastgroup or ""
        if kind in _WORDS:
            return self._read_word(kind, match)
        if kind in ("line_fence", "inline_fence", "quote_fence"):
            return self._read_fence(kind, match)
        ends_answer = kind in ("turn", "end_think") or (kind == "end_answer" and self._in_answer_tag)
        if ends_answer and self._may_be_in_string(match):
            return None
        if kind == "think":
            return self._read_thinking(match)
        if kind == "end_think":
            return self._read_end_of_thinking(match)
        if kind == "turn":
            return self._read_turn(match)
        return self._read_tag(kind, match)

    def _read_turn(self, match: re.Match[str]) -> int | None:
        is_first = not self.text[self.start : match.start()].strip()
        if is_first and not self._complete and self._find_line_end(match.end()) == len(self.text):
            return None  # it may become the mark that begins the answer, such as "<|im_start|>assistant"
        self.end = match.start()
        return match.end()

    @property
    def _reads_python(self) -> bool:
        return self._open is None or self._open.may_be_python

    def _read_word(self, kind: str, match: re.Match[str]) -> int | None:
        if kind == "inline_code":
            return match.end() if self._open is None else match.start() + 1
        if kind != "triple" or not self._reads_python:
            return match.end()
        quotes = match.group()
        if self._open is not None and self._open.closer == quotes:
            return self._close(match.start(), match.end())
        if quotes not in self._unclosed_strings:
            rest = REST_OF_LONG_STRING[quotes].match(self.text, match.end())
            if rest is not None:
                return rest.end()
            self._unclosed_strings.add(quotes)
        return match.end() if self._complete else None

    def _read_fence(self, kind: str, match: re.Match[str]) -> int | None:
        opened = self._open
        if kind == "quote_fence":
            if opened is None:
                self._open = Block(PYTHON, match.start(), match.end(), closer=match[kind])
            return match.end()
        fence = match[kind]
        if kind == "inline_fence" and self._may_be_in_string(match):
            return None
        if opened is None:
            return self._read_opening(kind, match)
        if not opened.is_fence or fence[0] != opened.closer[0] or len(fence) < len(opened.closer):
            return match.end()
        line_end = self._find_line_end(match.end())
        rest = self.text[match.end() : line_end].strip()
        content = self.text[opened.start : match.start()]
        if opened.from_prompt and is_all_prose(content):
            return self._read_opening(kind, match)
        if kind == "inline_fence":
            if rest and _ENDING.match(rest) is None:
                return match.end()
            # An open quote before the fence left it undecided up to the end of the line.
            is_late = self._follows_open_quote(match)
            return self._close(match.start(), line_end if is_late else match.end())
        if rest and "`" not in rest and _ENDING.match(rest) is None:
            info = parse_fence_info(rest)
            if info.code_offset is None and (info.language or " " not in rest):
                self._close(match.start(), match.start())
                return self._read_opening(kind, match)
        return self._close(match.start(), match.end())

    def _read_opening(self, kind: str, match: re.Match[str]) -> int | None:
        line_end = self._find_line_end(match.end())
        begin, fence = match.start(), match[kind]
        one_line = _ONE_LINE_FENCE.match(self.text, match.end()) if fence[0] == "`" else None
        if one_line is not None:
            info = parse_fence_info(one_line["content"])
            offset = info.code_offset or 0
            if info.code_offset is None and info.language == PYTHON:  # "x=1" is no attribute here
                offset = len(one_line["content"].split()[0])
            self._open = Block(info.language, begin, match.end() + offset, closer=fence)
            return self._close(one_line.end("content"), one_line.end())
        if line_end == len(self.text) and not self._complete:
            return None
        rest = self.text[match.end() : line_end]
        info = parse_fence_info(rest)
        if info.language == MARKDOWN or "`" in rest:
            return line_end
        if kind == "inline_fence" and (info.code_offset is not None or (rest.strip() and not info.language)):
            return match.end()
        start = min(line_end + 1, len(self.text)) if info.code_offset is None else match.end() + info.code_offset
        is_quoted = kind == "line_fence" and ">" in (match["margin"] or "")
        self._open = Block(info.language, begin, start, closer=fence, is_quoted=is_quoted)
        return max(start - 1, match.end())  # a fence may stand at the beginning of the next line

    def _read_tag(self, kind: str, match: re.Match[str]) -> int | None:
        opened = self._open
        if kind == "end_answer":
            if self._in_answer_tag:
                self.end = match.start()
        elif kind == "end_tag":
            if opened is not None and match.group() == opened.closer:
                return self._close(match.start(), match.end())
        elif opened is not None:
            pass
        elif kind == "answer":
            if not self._has_block:
                self._in_answer_tag = True
                return self._begin(match.end())
        elif kind == "other_tag" and (match.group() not in marks.TOOL_CALL_TAGS or _JSON.match(self.text, match.end())):
            language = "json" if match.group() in marks.TOOL_CALL_TAGS else "tag"
            self._open = Block(language, match.start(), match.end(), closer=_OTHER_CLOSERS[match.group()])
        elif kind == "tag" and self._begins_code(match):
            inner = _NEXT_OPENING.match(self.text, match.end())
            if inner is not None:  # a tag around a fence or another tag
                self._inner_tag = inner.end()
                return match.end()
            closer = next(closer for pattern, closer in _CODE_CLOSERS.items() if pattern.fullmatch(match.group()))
            self._open = Block(PYTHON, match.start(), match.end(), closer=closer)
        return match.end()

    def _read_thinking(self, match: re.Match[str]) -> int | None:
        opened = self._open
        if opened is not None and not (opened.from_prompt and not self.text[opened.start : match.start()].strip()):
            return match.end()
        return self._skip_thinking(match.end())

    def _skip_thinking(self, position: int) -> int | None:
        end = _END_OF_THINKING.search(self.text, position)
        if end is None:
            self.is_thinking, self.start = True, len(self.text)
            return None
        return self._begin(end.end())

    def _read_end_of_thinking(self, match: re.Match[str]) -> int:
        """Drop what stands before the end of thinking that was never opened, as some templates open it themselves."""
        line_end = self._find_line_end(match.end())
        is_alone = self._begins_line(match.start()) or not self.text[match.end() : line_end].strip()
        is_tag = match.group().startswith("</")
        if (is_tag and not is_alone) or match.end() >= self._text_end:
            return match.end()
        return self._begin(match.end())

    def _close(self, end: int, closed_at: int) -> int:
        if self._open is not None:
            self._closed.append(replace(self._open, end=end, closed_at=closed_at))
            self._open, self._has_block = None, True
        return closed_at

    def _may_be_in_string(self, match: re.Match[str]) -> bool:
        """Whether a string that more text may close begins before `match` on the last line of an unfinished answer."""
        if self._complete or not self._reads_python or self._find_line_end(match.end()) < len(self.text):
            return False
        return self._follows_open_quote(match)

    def _follows_open_quote(self, match: re.Match[str]) -> bool:
        window = self.text[max(0, match.start() - _MAX_INDENT * 10) : match.start()]
        line = _CLOSED_STRING.sub("", window.rpartition("\n")[2])
        return _OPEN_QUOTE.search(line) is not None

    def _find_line_end(self, position: int) -> int:
        if self._line_end < position:
            index = self.text.find("\n", position)
            self._line_end = len(self.text) if index < 0 else index
        return self._line_end

    def _begins_code(self, match: re.Match[str]) -> bool:
        """Whether an opening tag begins a block: on a line of its own, or a token that no sentence has."""
        return match.end() == self._inner_tag or match.group().startswith("<|") or self._begins_line(match.start())

    def _begins_line(self, position: int) -> bool:
        """Whether only blanks precede `position` on its line."""
        before = self.text[max(0, position - _MAX_INDENT) : position]
        return not before.rpartition("\n")[2].strip() and ("\n" in before or position <= _MAX_INDENT)


_MAX_INDENT = 200


def prompt_end(text: str) -> int:
    """Return where the answer begins in a text that may repeat `### Instruction: ... ### Response:` first."""
    begin = len(text) - len(text.lstrip())
    if text.startswith(INSTRUCTION, begin):
        response = text.find(RESPONSE, begin)
        return 0 if response < 0 else response + len(RESPONSE)
    return begin + len(RESPONSE) if text.startswith(RESPONSE, begin) else 0


def find_mark(text: str, begin: int) -> int | None:
    """Return the index from `begin` on of the first mark that ends an answer, in a string or not; None without one."""
    match = _END_MARK.search(text, begin)
    return match.start() if match else None


_END_CHARACTER = re.compile(r"[`~<\[◁\\#]|'{3}|\"{3}")


def may_have_ended(text: str, begin: int) -> bool:
    """Whether an answer that had not ended at `text[:begin]` may have ended: a quick check before `answer_end`.

    What ends an answer is on the lines of the new text, or, where the end of a line decides, on the line before.
    """
    line = text.rfind("\n", 0, begin) + 1
    return _END_CHARACTER.search(text, text.rfind("\n", 0, max(line - 1, 0)) + 1) is not None
