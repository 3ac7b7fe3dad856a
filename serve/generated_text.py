"""Text rules for generated answers: stop strings, the prefix that is final, and merging of equal candidates.

Every backend and the API share these rules, so that a streamed prefix is always a prefix of the finished answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from serve.types import Candidate
from tasks.extract import END_MARKS, find_mark

_FIRST_CHARACTERS = frozenset(mark[0] for mark in END_MARKS)
_LONGEST_MARK = max(map(len, END_MARKS))


def find_stop(text: str, stops: Sequence[str], begin: int = 0) -> int | None:
    """Return the index in `text` at which the first stop string begins, None without one.

    Text before `begin` has been searched already: stop strings that end before it are not looked for again.
    """
    found = [text.find(stop, max(0, begin - len(stop) + 1)) for stop in stops]
    return min((index for index in found if index >= 0), default=None)


def stable_prefix(text: str, stops: Sequence[str] = (), *, raw: bool = False) -> str:
    """Return the part of an unfinished answer that no further token can remove.

    Left out is a suffix that may be the beginning of a stop string. Unless the answer is `raw` text, so are the
    beginning of a mark that ends the answer, and the last line from such a mark on, which may turn out to be in a
    string.
    """
    end = min((_partial_stop_start(text, stop) for stop in stops), default=len(text))
    if raw:
        return text[:end]
    line_start = text.rfind("\n") + 1
    mark = find_mark(text, line_start)
    if not _FIRST_CHARACTERS.isdisjoint(text[-_LONGEST_MARK:]):
        end = min(end, *(_partial_stop_start(text, end_mark) for end_mark in END_MARKS))
    end = end if mark is None else min(end, mark)
    # A mark at the beginning of a line includes the blanks before it.
    return text[:line_start] if line_start < end and not text[line_start:end].strip() else text[:end]


def _partial_stop_start(text: str, stop: str) -> int:
    """Return where the longest suffix of `text` begins that is a prefix of `stop`; len(text) without one."""
    start = max(0, len(text) - len(stop) + 1)
    while (start := text.find(stop[0], start)) >= 0:
        if stop.startswith(text[start:]):
            return start
        start += 1
    return len(text)


def dedupe_candidates(candidates: Sequence[Candidate], raw: bool = False) -> tuple[Candidate, ...]:
    """Merge candidates with equal code into the first of them and add up their counts.

    Blanks around the code do not matter, except in `raw` text.
    """
    unique: dict[str, Candidate] = {}
    for candidate in candidates:
        code = candidate.code if raw else candidate.code.strip()
        first = unique.get(code)
        unique[code] = replace(first, count=first.count + 1) if first else candidate
    return tuple(unique.values())
