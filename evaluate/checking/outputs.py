"""Whether a program printed what it should.

Both texts are compared line by line. Blanks at the end of a line and empty lines at the end are forgiven; nothing else
is: the order of lines, and the blanks before and between the words of a line, count. Words (what stands between blanks)
must be the same letter by letter, but for decimals: where the expected word is a number with a point or an exponent,
any number within 1e-6 of it is right, absolute or, beyond 1, relative: |got - expected| <= 1e-6 * max(1, |expected|).
"""

from __future__ import annotations

import math
import re

FLOAT_TOLERANCE = 1e-6
_NUMBER_PATTERN = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_INTEGER_PATTERN = re.compile(r"[+-]?\d+", re.ASCII)
_WORD_SEPARATOR = re.compile(r"(\s+)")


def comparable_lines(text: str) -> list[str]:
    """The lines that are compared: without blanks at their ends, and without empty lines at the end of the text."""
    lines = [line.rstrip() for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def first_difference(expected: str, got: str) -> int | None:
    """The number (from 1) of the first line that is not what it should be, or None where both are the same."""
    wanted, printed = comparable_lines(expected), comparable_lines(got)
    for number, (left, right) in enumerate(zip(wanted, printed, strict=False), start=1):
        if left != right and not _lines_match(left, right):
            return number
    return None if len(wanted) == len(printed) else min(len(wanted), len(printed)) + 1


def _lines_match(expected: str, got: str) -> bool:
    left, right = _WORD_SEPARATOR.split(expected), _WORD_SEPARATOR.split(got)
    return len(left) == len(right) and all(a == b or _words_match(a, b) for a, b in zip(left, right, strict=True))


def _words_match(expected: str, got: str) -> bool:
    if _INTEGER_PATTERN.fullmatch(expected) or not (
        _NUMBER_PATTERN.fullmatch(expected) and _NUMBER_PATTERN.fullmatch(got)
    ):
        return False
    wanted, printed = float(expected), float(got)
    return math.isfinite(wanted) and abs(printed - wanted) <= FLOAT_TOLERANCE * max(1.0, abs(wanted))
