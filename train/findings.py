"""What a person should know of their rows before they train on them: repeated, contradicting, unparsable, leaking."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tasks.problem import Example
from tasks.syntax import parses
from train.data import Part
from train.split import code_key, intent_key

# Places named of each finding; all of them are counted.
SHOWN = 10

Place = Callable[[Example], str]


@dataclass(frozen=True)
class Finding:
    """How many rows something is true of, and the first of them, each in a sentence or with its place."""

    count: int
    shown: tuple[str, ...] = ()


@dataclass(frozen=True)
class Spread:
    """Of some lengths in tokens: the median, the length that 95 % do not exceed, the longest, and the sum."""

    median: int
    most: int
    longest: int
    total: int


@dataclass(frozen=True)
class Leak:
    """Validation rows whose intent, or whose code, is a training row's too; `rows` counts those with either."""

    rows: int
    intents: int
    codes: int
    shown: tuple[str, ...] = ()


def finding(sentences: Iterable[str]) -> Finding:
    """Counts all and keeps the first."""
    found = list(sentences)
    return Finding(len(found), tuple(found[:SHOWN]))


def spread(lengths: Sequence[int]) -> Spread:
    """The spread of at least one length."""
    return Spread(int(statistics.median(lengths)), quantile(lengths, 0.95), max(lengths), sum(lengths))


def quantile(lengths: Sequence[int], share: float) -> int:
    """The smallest of the lengths that at least this share of them does not exceed (nearest rank)."""
    return sorted(lengths)[max(0, math.ceil(share * len(lengths)) - 1)]


def duplicates(examples: Sequence[Example], place: Place) -> Finding:
    """Rows with intent and code of an earlier one."""
    first: dict[tuple[str, str], Example] = {}
    found = []
    for example in examples:
        earlier = first.setdefault((example.intent, example.code), example)
        if earlier is not example:
            found.append(f"{place(example)} repeats {place(earlier)}")
    return finding(found)


def conflicts(examples: Sequence[Example], place: Place) -> Finding:
    """Rows that answer an earlier row's intent with other code, each once."""
    codes: dict[str, dict[str, Example]] = {}
    found = []
    for example in examples:
        known = codes.setdefault(intent_key(example.intent), {})
        if code_key(example.code) not in known:
            if known:
                found.append(f"{place(example)} has the intent of {place(next(iter(known.values())))}")
            known[code_key(example.code)] = example
    return finding(found)


def unparsable(examples: Sequence[Example], place: Place) -> Finding:
    """Rows whose code is not Python."""
    return finding(place(example) for example in examples if not parses(example.code))


def special(examples: Sequence[Example], place: Place, tokens: Iterable[str]) -> Finding:
    """Rows with one of a base's special tokens in their text, which is read as that token: an early end, say."""
    known = sorted({token for token in tokens if token.strip()})
    found = []
    for example in examples:
        there = [token for token in known if token in example.intent or token in example.code]
        if there:
            found.append(f"{place(example)} has {', '.join(there[:3])}")
    return finding(found)


def leaks(train: Sequence[Example], validation: Sequence[Example], learned: Part, held_out: Part) -> Leak:
    """What the validation rows share with the training rows."""
    intents = {intent_key(example.intent): example for example in reversed(train)}
    codes = {code_key(example.code): example for example in reversed(train)}
    found, same_intent, same_code = [], 0, 0
    for example in validation:
        by_intent, by_code = intents.get(intent_key(example.intent)), codes.get(code_key(example.code))
        same_intent += by_intent is not None
        same_code += by_code is not None
        if other := by_intent or by_code:
            what = "intent and code" if by_intent and by_code else "intent" if by_intent else "code"
            found.append(f"{held_out.place(example)} has the {what} of {learned.place(other)}")
    return Leak(len(found), same_intent, same_code, tuple(found[:SHOWN]))
