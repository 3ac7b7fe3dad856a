"""Code extraction: the end of an answer, the code in it, and a syntax check.

The code of an answer is chosen in this order (docs/evaluation.md has examples):

1. Thinking, a repeated prompt, and what follows the end of the turn are left out.
2. Code blocks: fences of any form, tags of the model families, the fence that the prompt opened (tasks/extract/scan.py
   finds them, tasks/extract/choice.py chooses and joins).
3. Code in the JSON of a tool call.
4. Runs of lines that are Python, chosen like blocks without a language.
5. Code between backticks within a sentence.
6. Blocks of other languages; then the text itself, so that a person sees what the model generated.

Code is taken whole. Where an answer was cut, the code stays cut, and the reason says so.
"""

from __future__ import annotations

import re
import textwrap
from typing import NamedTuple

from tasks.extract.bare_code import (
    HEADING,
    LABEL,
    Run,
    find_runs,
    is_all_prose,
    is_prose,
    is_valid_python,
    repair,
    replace_spaces,
    syntax_tree,
)
from tasks.extract.choice import ANSWERS, Candidate, Choice, Shape, choose, describe
from tasks.extract.marks import END_MARKS, OPENS_THINKING, code_in_json
from tasks.extract.scan import PYTHON, Block, Scanner, find_mark, may_have_ended, prompt_end
from tasks.prompt import PromptStyle

# Increase when other code can be read from the same text: stored answers are then read again (evaluate/inspection.py).
EXTRACTION_VERSION = 2

__all__ = [
    "END_MARKS",
    "EXTRACTION_VERSION",
    "ExtractedCode",
    "answer_end",
    "extract_code",
    "extract_code_with_reason",
    "find_mark",
    "is_valid_python",
    "may_have_ended",
    "prompt_opens_thinking",
    "syntax_tree",
]

_CDATA = re.compile(r"\A\s*<!\[CDATA\[(.*?)(?:\]\]>)?\s*\Z", re.DOTALL)
_LANGUAGE_LINE = re.compile(r"(?:python3?|py)[ \t]*\n", re.IGNORECASE)
# "prints" on a line of its own before a block.
_WORD_LINE = re.compile(r"(?:\A|(?<=\n))(?!(?:pass|break|continue|return|else|try|finally)\b)\w+[.:]?[ \t]*\n?\Z")
_INLINE_CODE = re.compile(r"``([^`\n]+)``|`([^`\n]+)`|<code>([^<\n]+)</code>")
_MAX_NESTING = 3
_PYTHON_SHAPES = (Shape.PROGRAM, Shape.EXPRESSION, Shape.LITERAL, Shape.IMPORTS, Shape.STUB)
_NO_PREFILL = PromptStyle("json", "plain")


def answer_end(text: str, style: PromptStyle) -> int | None:
    """Return the index in `text`, which may go on, where the answer ends; None while that is not known.

    An answer ends behind its first closed block that is Python and more than imports, a signature or commands, and
    where another turn begins. Blocks within thinking, and of other languages, do not end it.
    """
    scanner = Scanner(text, style, complete=False)
    for block in scanner.blocks():
        if block.closed_at is not None and _ends_answer(block, text):
            return block.closed_at
    return scanner.end


def prompt_opens_thinking(prompt: str) -> bool:
    """Whether a rendered prompt ends where thinking begins, so that the answer begins within its thinking."""
    return OPENS_THINKING.search(prompt, max(0, len(prompt) - 60)) is not None


class ExtractedCode(NamedTuple):
    """The code of an answer, and in words which rule chose it."""

    code: str
    reason: str


def extract_code(text: str, style: PromptStyle) -> str:
    """Return the code in a complete answer; text without code is returned stripped."""
    return extract_code_with_reason(text, style).code


def extract_code_with_reason(text: str, style: PromptStyle) -> ExtractedCode:
    """Return the code that `extract_code` takes from an answer, and which of its rules chose it."""
    scanner = Scanner(text, style, complete=True)
    blocks = [block for block in scanner.blocks() if block.begin >= scanner.start]
    blocks = [block for block in blocks if block.begin >= scanner.start]
    if scanner.is_thinking:
        return ExtractedCode("", "nothing: the answer was cut inside of its thinking")
    answer = _Answer(text[: scanner.limit], scanner.start, blocks)
    code, reason = answer.extract()
    if not code:
        return ExtractedCode(code, f"nothing: {reason} is empty")
    if scanner.start > prompt_end(text) and text[prompt_end(text) : scanner.start].strip():
        reason += "; thinking, and marks before the answer, are left out"
    if prompt_end(text) and text[: prompt_end(text)].strip():
        reason += "; the prompt, which the answer repeats, is left out"
    if scanner.end is not None and text[scanner.end :].strip():
        reason += "; what follows the answer, a further example or turn, is left out"
    return ExtractedCode(code, reason)


def _ends_answer(block: Block, text: str) -> bool:
    if not block.may_be_python:
        return False
    shape = describe(_block_code(block, text)).shape
    return shape in ANSWERS if block.language == PYTHON else shape is Shape.PROGRAM


def _block_code(block: Block, text: str) -> str:
    content = _normalize(text[block.start : block.end])
    if block.is_quoted:
        content = re.sub(r"(?m)^[ \t]*>[ \t]?", "", content)
    if not block.is_fence:
        content = code_in_json(content) or _CDATA.sub(r"\1", content)
    code = _dedent(content)
    if not block.language:
        code = _LANGUAGE_LINE.sub("", code, count=1) if _LANGUAGE_LINE.match(code) else code
    return repair(code)


def _normalize(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n").removeprefix("\ufeff")


def _dedent(text: str) -> str:
    return textwrap.dedent(text.strip("\n")).rstrip().lstrip("\n")


class _Answer:
    """The answer `text[start:]` with its blocks; `nesting` is the number of JSON objects around it."""

    def __init__(self, text: str, start: int, blocks: list[Block], nesting: int = 0) -> None:
        self._text = text
        self._nesting = nesting
        self._start = start
        self._blocks = blocks

    def extract(self) -> ExtractedCode:
        """Return the code by the order of preference, and the rule."""
        chosen = choose(self._block_candidates())
        if chosen is not None and not _may_be_output(chosen):
            return ExtractedCode(chosen.code, _describe_blocks(chosen))
        if self._nesting < _MAX_NESTING:
            for content in (self._text[self._start :], *(self._text[b.start : b.end] for b in self._blocks)):
                if code := code_in_json(content):
                    inner = _extract_from_json(code, self._nesting + 1)
                    return ExtractedCode(inner, "the code in a JSON object of the answer")
        bare = self._extract_bare()
        if chosen is not None and (bare is None or describe(bare.code).shape is not Shape.PROGRAM):
            return ExtractedCode(chosen.code, _describe_blocks(chosen))
        others = [block for block in self._blocks if self._text[block.start : block.end].strip()]
        if bare is not None or not self._blocks:
            return bare or self._whole()
        if not others and self._outside().strip():
            return self._whole()
        if not others:
            return ExtractedCode("", f"the first {_name(self._blocks[0])} of the answer")
        best = next((b for b in others if describe(_block_code(b, self._text)).shape is Shape.PROGRAM), others[0])
        reason = f"the first {_name(best)} of the answer{_cut(best.closed_at is not None)}"
        return ExtractedCode(_block_code(best, self._text), reason)

    def _block_candidates(self) -> list[Candidate]:
        candidates: list[Candidate] = []
        behind = self._start
        for block in self._blocks:
            if block.may_be_python:
                candidates.append(
                    Candidate(
                        _block_code(block, self._text),
                        len(candidates) + 1,
                        _name(block),
                        block.language == PYTHON,
                        block.closed_at is not None,
                        self._text[behind : block.begin],
                    )
                )
                behind = block.end if block.closed_at is None else block.closed_at
        return candidates

    def _extract_bare(self) -> ExtractedCode | None:
        """Return the code outside of all blocks; None where no line is Python."""
        text = replace_spaces(_normalize(self._outside())).rstrip("\n")
        lines = text.split("\n")
        first, end = _without_outer_prose(lines)
        inner = _dedent("\n".join(lines[first:end]))
        if describe(inner).shape in _PYTHON_SHAPES and not is_all_prose(inner):
            is_whole = (first, end) == (0, len(lines)) and not self._blocks
            return ExtractedCode(inner, _WHOLE if is_whole else _describe_run(end - first, len(lines)))
        runs = find_runs(lines)
        candidates = [
            Candidate(
                repair(run.code), number, "run", is_named_python=True, prose_before=_lines_before(lines, runs, number)
            )
            for number, run in enumerate(runs, 1)
        ]
        if chosen := choose(candidates):
            count = sum(runs[part.number - 1].end - runs[part.number - 1].first for part in chosen.parts)
            return ExtractedCode(chosen.code, _describe_run(count, len(lines)))
        label = LABEL.match(text.strip())
        if label and describe(labelled := text.strip()[label.end() :].strip("` ")).shape is Shape.PROGRAM:
            return ExtractedCode(labelled, f"what follows the label {label.group().strip()!r}")
        inline = [next(filter(None, groups)).strip() for groups in _INLINE_CODE.findall(text)]
        is_all = len(inline) == 1 and _INLINE_CODE.fullmatch(text.strip()) is not None
        programs = [code for code in inline if is_all or describe(code).shape is Shape.PROGRAM]
        if programs:
            return ExtractedCode(max(programs, key=len), "the code between backticks: the answer has no code block")
        return None

    def _outside(self) -> str:
        pieces, behind = [], self._start
        for block in self._blocks:
            pieces.append(_WORD_LINE.sub("", self._text[behind : block.begin]))
            behind = len(self._text) if block.closed_at is None else block.closed_at
        return "\n\n".join([*pieces, self._text[behind:]])

    def _whole(self) -> ExtractedCode:
        text = _dedent(_normalize(self._text[self._start :])).strip()
        return ExtractedCode(text, f"{_WHOLE} and no run of lines that is Python" if text else "the answer")


_WHOLE = "the whole answer: it has no code block"


def _extract_from_json(text: str, nesting: int) -> str:
    scanner = Scanner(text, _NO_PREFILL, complete=True)
    blocks = list(scanner.blocks())
    return _Answer(text[: scanner.limit], scanner.start, blocks, nesting).extract().code


def _may_be_output(choice: Choice) -> bool:
    """Whether a block without a language is a value only, as a program prints it."""
    return not choice.main.is_named_python and choice.main.info.shape in (Shape.LITERAL, Shape.EXPRESSION)


def _without_outer_prose(lines: list[str]) -> tuple[int, int]:
    """Return the first line, and the end, without blank lines, prose and the name of the language around the code."""
    first, end = 0, len(lines)
    while first < end and (not lines[first].strip() or is_prose(lines[first])):
        first += 1
    if first + 1 < end and _LANGUAGE_LINE.fullmatch(lines[first].strip() + "\n"):
        first += 1
    while end > first and (not lines[end - 1].strip() or is_prose(lines[end - 1])):
        end -= 1
    while first < end < len(lines) and HEADING.match(lines[end - 1]):
        end -= 1
    return first, end


def _lines_before(lines: list[str], runs: list[Run], number: int) -> str:
    begin = runs[number - 2].end if number > 1 else 0
    return "\n".join(lines[begin : runs[number - 1].first])


def _describe_run(count: int, total: int) -> str:
    return f"the first run of lines that is Python ({count} of {total} lines): the answer has no code block"


def _describe_blocks(choice: Choice) -> str:
    main = choice.main
    if main.name == _FROM_PROMPT:
        rule = f"the {main.name}{'' if main.is_closed else ', up to the end of the answer'}"
    else:
        rule = f"the {_ordinal(main.number)} {main.name} of the answer{_cut(main.is_closed)}"
    others = [part.number for part in choice.parts if part is not main]
    if others:
        rule += f", joined with {' and '.join(f'the {_ordinal(number)}' for number in others)}"
    return rule


def _cut(is_closed: bool) -> str:
    return "" if is_closed else ", which is not closed"


def _ordinal(number: int) -> str:
    names = ("first", "second", "third", "fourth", "fifth")
    return names[number - 1] if number <= len(names) else f"{number}th"


_FROM_PROMPT = "code block that the prompt opened"


def _name(block: Block) -> str:
    if block.from_prompt:
        return _FROM_PROMPT
    if block.language == PYTHON:
        return "Python code block"
    return f"'{block.language}' code block" if block.language else "code block"
