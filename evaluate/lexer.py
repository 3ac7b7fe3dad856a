"""The tokens of a piece of Python, for the n-gram parts of CodeBLEU.

The `codebleu` package splits at blanks, so `print(sum(x))` is one token and has no 2-grams. Here the tokens are those
of Python's own lexer without comments, line ends and indentation. Code that does not lex is split by a pattern.
"""

from __future__ import annotations

import io
import re
import tokenize
import warnings
from collections.abc import Iterator

_LAYOUT_TOKENS = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}
# Python 3.12 lexes inside f-strings and 3.14 inside t-strings; both are one token here, as in 3.11, so that a score
# doesn't depend on the interpreter.
_STRING_START_TOKENS = {getattr(tokenize, name, None) for name in ("FSTRING_START", "TSTRING_START")} - {None}
_STRING_END_TOKENS = {getattr(tokenize, name, None) for name in ("FSTRING_END", "TSTRING_END")} - {None}

_FALLBACK_PATTERN = re.compile(
    r"""
    \#[^\n]*                                        # a comment, left out below
    | [A-Za-z]{0,2}(?:\"{3}.*?(?:\"{3}|\Z)|'{3}.*?(?:'{3}|\Z))
    | [A-Za-z]{0,2}(?:"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?)
    | [^\W\d]\w*
    | \d[\w.]*
    | \*\*=? | //=? | <<=? | >>=? | -> | := | \.\.\. | [-+*/%@&|^=<>!]=
    | \S
    """,
    re.VERBOSE | re.DOTALL,
)


def python_tokens(code: str) -> tuple[str, ...]:
    """The tokens of `code` in order, without comments and layout; empty for a text that has nothing else."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return tuple(_tokenize(code))
    except (tokenize.TokenError, SyntaxError, ValueError):
        return tuple(token for token in _FALLBACK_PATTERN.findall(code) if not token.startswith("#"))


def _tokenize(code: str) -> Iterator[str]:
    lines = io.StringIO(code).readlines()  # not splitlines(): the lexer's lines end at a line feed alone
    depth, start = 0, (1, 0)
    for kind, string, first, last, _ in tokenize.generate_tokens(iter(lines).__next__):
        if kind == tokenize.ERRORTOKEN:
            raise tokenize.TokenError
        if kind in _STRING_START_TOKENS:
            depth += 1
            start = first if depth == 1 else start
        elif kind in _STRING_END_TOKENS:
            depth -= 1
            if depth == 0:
                yield _source_between(lines, start, last)
        elif depth == 0 and kind not in _LAYOUT_TOKENS:
            yield string


def _source_between(lines: list[str], start: tuple[int, int], end: tuple[int, int]) -> str:
    (first, left), (last, right) = start, end
    if first == last:
        return lines[first - 1][left:right]
    return "".join([lines[first - 1][left:], *lines[first : last - 1], lines[last - 1][:right]])
