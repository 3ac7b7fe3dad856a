"""Tokens of Python code for the n-gram parts of CodeBLEU, the same on every Python.

They are the tokens of the lexer of Python 3.11, with which the stored runs were scored. From 3.12 on, the standard
library's `tokenize` splits f-strings, and splits or refuses code with errors in other places.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_PREFIX = r"(?:[bB][rR]?|[rR][bBfF]?|[fF][rR]?|[uU])?"
_DIGITS = r"[0-9](?:_?[0-9])*"
_EXPONENT = rf"[eE][-+]?{_DIGITS}"
_FLOAT = rf"(?:{_DIGITS}\.(?:{_DIGITS})?|\.{_DIGITS})(?:{_EXPONENT})?|{_DIGITS}{_EXPONENT}"
_OPERATORS = (
    "-> := ... **= //= >>= <<= != %= &= ** *= += -= // /= << <= == >= >> @= ^= |= "
    "% & ( ) * + , - . / : ; < = > @ [ ] ^ { | } ~"
)
_TOKEN = re.compile(
    rf"""[ \f\t]*(?:
        (?P<layout> \\\r?\n | \r?\n | \#[^\r\n]* | \Z )
        | (?P<triple> {_PREFIX}(?:'''|\"\"\") )
        | (?P<token>
            (?:{_DIGITS}|{_FLOAT})[jJ] | {_FLOAT}
            | 0[xX](?:_?[0-9a-fA-F])+ | 0[bB](?:_?[01])+ | 0[oO](?:_?[0-7])+ | 0(?:_?0)* | [1-9](?:_?[0-9])*
            | {"|".join(map(re.escape, _OPERATORS.split()))}
            | {_PREFIX}(?:'[^\n'\\]*(?:\\.[^\n'\\]*)*(?:'|\\\r?\n) | \"[^\n\"\\]*(?:\\.[^\n\"\\]*)*(?:\"|\\\r?\n))
            | \w+
        )
    )""",
    re.VERBOSE,
)
_STRING_END = {
    "'": re.compile(r"[^'\\]*(?:\\.[^'\\]*)*'"),
    '"': re.compile(r'[^"\\]*(?:\\.[^"\\]*)*"'),
    "'''": re.compile(r"[^'\\]*(?:(?:\\.|'(?!''))[^'\\]*)*'''"),
    '"""': re.compile(r'[^"\\]*(?:(?:\\.|"(?!""))[^"\\]*)*"""'),
}
_OPENING, _CLOSING = frozenset("([{"), frozenset(")]}")
_TAB_SIZE = 8

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


class _LexError(Exception):
    """The code has no tokens, or ends within a string or within brackets."""


def python_tokens(code: str) -> tuple[str, ...]:
    """Return the tokens of `code` in order, without comments and layout; code that does not lex is split by a pattern.

    Lines end at a line feed alone.
    """
    try:
        return tuple(_Lexer().tokens(code))
    except _LexError:
        return tuple(token for token in _FALLBACK_PATTERN.findall(code) if not token.startswith("#"))


class _Lexer:
    """The state between lines: open brackets, indentation, and the open string."""

    def __init__(self) -> None:
        self._depth = 0
        self._indents = [0]
        self._joined = False  # whether the last line ended in a backslash
        self._string = ""  # the beginning of a string that continues on the next line, or ""
        self._string_end = _STRING_END["'"]
        self._joined_string = False  # whether the string needs a backslash at the end of each line

    def tokens(self, code: str) -> Iterator[str]:
        for line in re.findall(r"[^\n]*\n|[^\n]+\Z", code):
            at = 0
            if self._string:
                end = self._string_end.match(line)
                if end is None:
                    self._string += line
                    if self._joined_string and not line.endswith(("\\\n", "\\\r\n")):
                        raise _LexError
                    continue
                yield self._string + end[0]
                self._string = ""
                at = end.end()
            elif not self._depth and not self._joined:
                at = _skip_blanks(line)
                if at == len(line):
                    return  # the last line, without a line feed
                if line[at] not in "#\r\n":
                    self._indent(line[:at])
            self._joined = False
            yield from self._line_tokens(line, at)
        if self._string or self._depth or self._joined:
            raise _LexError

    def _indent(self, blanks: str) -> None:
        column = len(blanks[blanks.rfind("\f") + 1 :].expandtabs(_TAB_SIZE))
        if column > self._indents[-1]:
            self._indents.append(column)
        elif column not in self._indents:
            raise _LexError
        del self._indents[self._indents.index(column) + 1 :]

    def _line_tokens(self, line: str, at: int) -> Iterator[str]:
        while at < len(line):
            found = _TOKEN.match(line, at)
            if found is None:
                raise _LexError
            at = found.end()
            if found["layout"] is not None:
                self._joined = found["layout"].startswith("\\")
            elif found["triple"] is not None:
                end = _STRING_END[found["triple"][-3:]].match(line, at)
                if end is None:
                    self._open_string(line[found.start("triple") :], found["triple"][-3:], joined=False)
                    return
                yield found["triple"] + end[0]
                at = end.end()
            elif found["token"].endswith("\n"):
                self._open_string(found["token"], found["token"].lstrip("bBrRuUfF")[0], joined=True)
                return
            else:
                token = found["token"]
                self._depth += (token in _OPENING) - (token in _CLOSING)
                yield token

    def _open_string(self, text: str, quote: str, *, joined: bool) -> None:
        self._string, self._string_end, self._joined_string = text, _STRING_END[quote], joined


def _skip_blanks(line: str) -> int:
    return len(line) - len(line.lstrip(" \t\f"))
