"""Code without a fence: which lines are prose, which runs of lines are Python, and repairs of how it is written.

A line is prose only where it reads like a sentence and is no Python. A line that is neither, such as a statement with
an error, belongs to the run around it, so that broken or cut code is never reduced to its valid lines.

Repairs of code that is Python but for the way in which it is written down. Examples are prompts of an interactive
session, line numbers, HTML entities, no-break spaces. A repair is applied only where the code is not valid as it stands
and is valid afterwards.
"""

from __future__ import annotations

import ast
import html
import keyword
import re
import textwrap
from collections.abc import Callable
from enum import Enum, auto
from typing import NamedTuple

from common.parsing import parse_python

# A string on one line, from its quote on. An apostrophe behind a letter ("don't") begins no string, a prefix may.
SHORT_STRING = (
    r"(?:(?<![\w\\])|(?<=\b[rRbBfFuU])|(?<=\b[rRbBfF]{2}))(?!\"{3}|'{3})"
    r"(?:'(?:[^'\\\n]|\\.)*+'|\"(?:[^\"\\\n]|\\.)*+\")"
)
# What follows the quotes that open a string over several lines, up to those that close it.
REST_OF_LONG_STRING = {
    '"""': re.compile(r'(?:[^"\\]|\\.|"(?!""))*+"""', re.DOTALL),
    "'''": re.compile(r"(?:[^'\\]|\\.|'(?!''))*+'''", re.DOTALL),
}
STRING = rf"(?s:{'|'.join(opening + rest.pattern for opening, rest in REST_OF_LONG_STRING.items())})|{SHORT_STRING}"
_STRING_OR_SPACE = re.compile(
    rf"{STRING}|(?P<space>[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000])"
    r"|(?P<invisible>[\u200b\u200c\u200d\u2060\ufeff\u00ad]+)"
)
_STRING_OR_ENTITY = re.compile(rf"{STRING}|(?P<entity>&(?:lt|gt|amp|quot|apos|nbsp|#\d{{1,4}}|#x[\da-f]{{1,4}});)")
_TYPOGRAPHIC_QUOTES = str.maketrans("“”„‟‘’‚‛", "\"\"\"\"''''")
_PROMPT_LINE = re.compile(
    r"[ \t]*(?:(?P<first>>>>|In \[\d+\]:)|(?P<next>\.{3}:?|[ \t]+\.{3}:))(?:[ \t](?P<code>.*)|[ \t]*)\Z"
)
_NOTEBOOK_PROMPT = re.compile(r"\s*In \[\d+\]:")
_NUMBERED = re.compile(r"[ \t]*(?P<number>\d{1,5})(?:[ \t]*[:.|)│][ \t]?|[ \t]|\Z)(?P<code>.*)\Z")
_MAGIC = re.compile(r"[ \t]*[!%?]{1,2}\s*\w|[ \t]*\$ \w|(?:pip3?|conda) install \S")
_CELL = re.compile(r"(?m)^(?:In \[\d+\]:|#%%.*)[ \t]?")


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
    matches = [_PROMPT_LINE.match(line) for line in lines]
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
