"""Text rules for generated answers: stop strings, the prefix that is final, and merging of equal candidates.

Every backend and the API share these rules, so that a streamed prefix is always a prefix of the finished answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from serve.types import Candidate
from tasks.prompt import INSTRUCTION, RESPONSE

# A text line that begins with one of these starts another turn and is not part of the answer (see tasks/extract.py).
_TURN_MARKERS = (INSTRUCTION, RESPONSE, "<|im_start|>", "<|im_end|>")


def find_stop(text: str, stops: Sequence[str], begin: int = 0) -> int | None:
    """Return the index in `text` at which the first stop string begins, None without one.

    Text before `begin` has been searched already: stop strings that end before it are not looked for again.
    """
    found = [text.find(stop, max(0, begin - len(stop) + 1)) for stop in stops]
    return min((index for index in found if index >= 0), default=None)


def stable_prefix(text: str, stops: Sequence[str] = (), *, raw: bool = False) -> str:
    """Return the part of an unfinished answer that no further token can remove.

    Left out are a suffix that may be the beginning of a stop string and, unless the answer is `raw` text, a last text
    line that is, or may become, the marker of another turn.
    """
    end = min((_partial_stop_start(text, stop) for stop in stops), default=len(text))
    if not raw:
        line_start = text.rfind("\n") + 1
        line = text[line_start:].lstrip(" \t")
        if any(marker.startswith(line) or line.startswith(marker) for marker in _TURN_MARKERS):
            end = min(end, line_start)
    return text[:end]


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
