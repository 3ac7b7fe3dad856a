"""Code without a fence: which lines of a text are prose, and the runs of lines that are Python.

A line is prose only where it reads like a sentence and is no Python. A line that is neither, such as a statement with
an error, belongs to the run around it, so that broken or cut code is never reduced to its valid lines.
"""

from __future__ import annotations

import ast
import keyword
import re
import textwrap
from enum import Enum, auto
from typing import NamedTuple

from tasks.extract.syntax import REST_OF_LONG_STRING, SHORT_STRING, is_valid_python, syntax_tree


class LineKind(Enum):
    """What a line is; UNKNOWN is neither prose nor valid Python."""

    BLANK = auto()
    CODE = auto()
    PROSE = auto()
    UNKNOWN = auto()


class Run(NamedTuple):
    """Consecutive lines of code: their text without common indentation, and which lines they are (end excluded)."""

    code: str
    first: int
    end: int


_WORD = re.compile(
    r"""[("'“‘*_`\[]*[^\W\d_]+(?:[-'’/.][^\W\d_]+)*(?:['’]s)?[.,:;!?)"'”’*_`…\]]*\Z""",
)
_CONTRACTION = re.compile(r"[A-Za-z]+['’](?:s|t|re|ll|ve|d|m)[.,:;!?]*\Z")
_SINGLE_WORD = re.compile(r"[*_]*[A-Z][\w'’-]*[*_]*[.:!,?]*[*_]*\Z")
_BULLET = re.compile(
    r"(?:[-*+•]|\d{1,3}[.)])[ \t]+\S|\*\*\w|[-=*_~]{3,}\Z|\|.*\|\Z|>[ \t]+\S|<!--|</?\w+>\Z|\.\.[ \t][\w-]+::"
)
_NEVER_PROSE = (">>>", "#", "@", '"""', "'''", "print ", "exec ", "In [")
_OPERATORS = frozenset(("=", "==", "!=", "+=", "-=", "*=", "/=", "->", ":=", "<", ">", "<=", ">=", "+", "%", "|", "&"))
LABEL = re.compile(
    r"[*_]*(?:Answer|Solution|Code|Python|Result|Output|Input|Example|Explanation|Note|Usage|Returns?|A)[*_]*[ \t]?:"
    r"[*_]*(?=[ \t])"
)
_HEADER = re.compile(
    r"(?:async[ \t]+)?(?:def|class|if|elif|else|for|while|try|except|finally|with|match|case)\b.*:[ \t]*(?:#.*)?\Z"
)
_ASSIGNMENT = re.compile(r"[\w.]+(?:\[[^\]\n]*\])?(?:[ \t]*,[ \t]*[\w.]+)*[ \t]*(?:[-+*/%|&^@]|//|\*\*|>>|<<)?=(?!=)")
HEADING = re.compile(r"#{2,6}[ \t]+\S")
_BRACKETS = re.compile(rf"\"{{3}}|'{{3}}|{SHORT_STRING}|#[^\n]*|[\[\]{{}}()]")
_PROMPT = re.compile(r"[ \t]*(?:>>>|In \[\d+\]:)(?:[ \t]|\Z)")


def find_runs(lines: list[str]) -> list[Run]:
    """Return the runs of code in a text, in order; each has at least one line that is Python."""
    kinds = classify_lines(lines)
    runs: list[Run] = []
    first: int | None = None
    for index, kind in enumerate([*kinds, LineKind.PROSE]):
        if kind is LineKind.PROSE:
            if first is not None and LineKind.CODE in kinds[first:index]:
                runs.append(_make_run(lines, kinds, first, index))
            first = None
        elif kind is not LineKind.BLANK and first is None:
            first = index
    return runs


def classify_lines(lines: list[str]) -> list[LineKind]:
    """Return the kind of each line. Lines in brackets, strings and indented suites have the kind of their statement."""
    kinds = [LineKind.BLANK] * len(lines)
    statements = _Statements(lines)
    index, suite_indent, in_session = 0, -1, False
    while index < len(lines):
        line = lines[index]
        if not line.strip():
            in_session = False
            index += 1
            continue
        in_session = in_session or _PROMPT.match(line) is not None
        if in_session:  # what a session prints follows its input up to a blank line
            kinds[index] = LineKind.CODE
            index += 1
            continue
        end = index + 1
        in_suite = _indent(line) > suite_indent >= 0
        if not in_suite:
            suite_indent = -1
        if in_suite:
            end = statements.end(index)
            kind = LineKind.CODE
        elif is_prose(line):
            kind = LineKind.PROSE
        elif _HEADER.match(line.strip()) and statements.has_suite(index):
            kind, suite_indent = LineKind.CODE, _indent(line)
        elif line.lstrip().startswith(("#", "@")):
            kind = LineKind.CODE
        else:
            end = statements.end(index)
            kind = LineKind.CODE if _is_code(lines[index:end]) else LineKind.UNKNOWN
            if kind is LineKind.CODE and _HEADER.match(lines[end - 1].strip()):
                suite_indent = _indent(line)
            elif kind is LineKind.UNKNOWN and _HEADER.match(" ".join(lines[index:end]).strip()):
                kind, suite_indent = LineKind.CODE, _indent(line)
        kinds[index:end] = [kind] * (end - index)
        index = end
    return kinds


def is_all_prose(text: str) -> bool:
    """Whether a text is not blank and each of its lines is blank or prose."""
    lines = [line for line in text.split("\n") if line.strip()]
    return bool(lines) and all(map(is_prose, lines))


def is_prose(line: str) -> bool:
    """Whether a line reads like prose and is not Python. A capitalized word such as "Sure" parses, but is prose."""
    text = line.strip()
    if not text or text.startswith(_NEVER_PROSE) or (len(text) > 10_000 and " " not in text[:200]):
        return False
    if _SINGLE_WORD.match(text) and text not in ("True", "False", "None"):
        return True
    if not (_BULLET.match(text) or LABEL.match(text) or _is_sentence(text) or _is_other_script(text)):
        return False
    tree = syntax_tree(_complete_header(text) if _HEADER.match(text) else text)
    return tree is None or _reads_like_prose(tree, text)


def _complete_header(text: str) -> str:
    """Return a statement with the first line of a suite, so that it is valid where the line is."""
    first = text.split(maxsplit=1)[0].rstrip(":")
    before = {"except": "try: pass\n", "finally": "try: pass\n", "elif": "if x: pass\n", "else": "if x: pass\n"}
    if first == "case":
        return f"match x:\n {text} pass"
    return f"{text}\n case _: pass" if first == "match" else f"{before.get(first, '')}{text} pass"


def trim_trailing_prose(code: str) -> str:
    """Return `code` without the prose at its end, where what remains is Python; else `code` itself."""
    lines = code.split("\n")
    end = len(lines)
    while end and (not lines[end - 1].strip() or is_prose(lines[end - 1])):
        end -= 1
    trimmed = "\n".join(lines[:end])
    return trimmed if end < len(lines) and is_valid_python(trimmed) else code


def _is_sentence(text: str) -> bool:
    tokens = text.split()
    words = sum(_WORD.match(token) is not None for token in tokens)
    first = tokens[0].lower() if tokens[0].islower() else ""
    if _ASSIGNMENT.match(text):
        return False
    if len(tokens) > 1 and any(map(_CONTRACTION.match, tokens)):
        return True
    if len(tokens) < 2 or not _WORD.match(tokens[0]) or words < 0.6 * len(tokens):
        return False
    if keyword.iskeyword(first) or first in ("match", "case", "type"):
        return len(tokens) >= 4 and words == len(tokens)
    if not _OPERATORS.isdisjoint(tokens):
        return words >= 0.75 * len(tokens) and len(tokens) >= 6
    return len(tokens) > 2 or tokens[0][0].isupper() or text[-1] in ".:!?"


def _is_other_script(text: str) -> bool:
    """Whether a line is mostly in a script other than Latin, as comments and strings of a program may be."""
    letters = sum(character.isalpha() and ord(character) > 0x2FF for character in text)
    return letters > 0.3 * len(text) and "#" not in text and not (set(text) & set("\"'="))


def _reads_like_prose(tree: ast.Module, text: str) -> bool:
    """Whether valid Python is prose all the same, as "Output: 5" and "Python is fun" are."""
    if len(tree.body) != 1:
        return False
    statement = tree.body[0]
    if isinstance(statement, ast.AnnAssign):
        return isinstance(statement.target, ast.Name) and text[0].isupper()
    if not isinstance(statement, ast.Expr) or not (text[0].isupper() or ord(text[0]) > 0x2FF):
        return False
    simple = (ast.Name, ast.Compare, ast.BoolOp, ast.BinOp, ast.UnaryOp, ast.Tuple)
    other = (ast.expr_context, ast.cmpop, ast.boolop, ast.operator, ast.unaryop)
    return all(isinstance(node, simple + other) for node in ast.walk(statement.value))


def _is_code(lines: list[str]) -> bool:
    source = textwrap.dedent("\n".join(lines)).strip()
    if source.endswith(":") and _HEADER.match(source.split("\n")[-1].strip()):
        source += " pass"
    return is_valid_python(source)


def _make_run(lines: list[str], kinds: list[LineKind], first: int, end: int) -> Run:
    while kinds[end - 1] is LineKind.BLANK or HEADING.match(lines[end - 1]):
        if end - 1 == first:
            break
        end -= 1
    return Run(textwrap.dedent("\n".join(lines[first:end])).strip("\n").rstrip(), first, end)


def _indent(line: str) -> int:
    expanded = line.expandtabs(8)
    return len(expanded) - len(expanded.lstrip())


class _Statements:
    """Where the statements of a text end, with brackets and strings over several lines."""

    def __init__(self, lines: list[str]) -> None:
        self._lines = lines
        self._next_indent = self._find_next_indents()
        self._is_unbalanced = False

    def has_suite(self, index: int) -> bool:
        """Whether a line that is more indented, or nothing at all, follows the line."""
        following = self._next_indent[index + 1]
        return following is None or following > _indent(self._lines[index])

    def end(self, first: int) -> int:
        """Return the index behind the last line of the statement that begins at the line `first`.

        Where brackets or a string are never closed it is one line, and so is every later statement: the text is read
        to its end once only.
        """
        depth, index, quotes = 0, first, ""
        while index < len(self._lines):
            depth, quotes = _balance(self._lines[index], depth, quotes)
            is_continued = self._lines[index].endswith("\\") and not quotes
            index += 1
            if self._is_unbalanced or (depth <= 0 and not quotes and not is_continued):
                return index
        if index > first + 1:
            self._is_unbalanced = True
        return first + 1

    def _find_next_indents(self) -> list[int | None]:
        indents: list[int | None] = [None] * (len(self._lines) + 1)
        for index in range(len(self._lines) - 1, -1, -1):
            line = self._lines[index]
            indents[index] = _indent(line) if line.strip() else indents[index + 1]
        return indents


def _balance(line: str, depth: int, quotes: str) -> tuple[int, str]:
    """Return the depth of brackets, and the quotes of the open string ("": none), behind a line."""
    position = 0
    while True:
        if quotes:
            rest = REST_OF_LONG_STRING[quotes].match(line, position)
            if rest is None:
                return depth, quotes
            position, quotes = rest.end(), ""
        match = _BRACKETS.search(line, position)
        if match is None:
            return depth, quotes
        bracket, position = match.group(), match.end()
        if bracket in REST_OF_LONG_STRING:
            quotes = bracket
        elif bracket in "([{":
            depth += 1
        elif bracket in ")]}":
            depth -= 1
