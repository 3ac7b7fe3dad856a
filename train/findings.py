"""What a person should know of their rows before they train on them: repeated, contradicting, unparsable, leaking."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tasks.problem import Example
from tasks.syntax import is_valid_python
from train.data import DataSplit
from train.split import normalize_code, normalize_intent

# Places named of each finding; all of them are counted.
MAX_EXAMPLES = 10

LocateFn = Callable[[Example], str]


@dataclass(frozen=True)
class DataIssue:
    """How many rows something is true of, and the first of them, each in a sentence or with its place."""

    count: int
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class LengthStats:
    """Of some lengths in tokens: the median, the length that 95 % do not exceed, the longest, and the sum."""

    median: int
    p95: int
    max: int
    total: int


@dataclass(frozen=True)
class Leak:
    """Validation rows whose intent, or whose code, is a training row's too; `rows` counts those with either."""

    rows: int
    intents: int
    codes: int
    examples: tuple[str, ...] = ()


def make_issue(messages: Iterable[str]) -> DataIssue:
    """Counts all and keeps the first."""
    found = list(messages)
    return DataIssue(len(found), tuple(found[:MAX_EXAMPLES]))


def length_stats(lengths: Sequence[int]) -> LengthStats:
    """The spread of at least one length."""
    return LengthStats(int(statistics.median(lengths)), length_quantile(lengths, 0.95), max(lengths), sum(lengths))


def length_quantile(lengths: Sequence[int], fraction: float) -> int:
    """The smallest of the lengths that at least this share of them does not exceed (nearest rank)."""
    return sorted(lengths)[max(0, math.ceil(fraction * len(lengths)) - 1)]


def find_duplicates(examples: Sequence[Example], locate: LocateFn) -> DataIssue:
    """Rows with intent and code of an earlier one."""
    first: dict[tuple[str, str], Example] = {}
    found = []
    for example in examples:
        earlier = first.setdefault((example.intent, example.code), example)
        if earlier is not example:
            found.append(f"{locate(example)} repeats {locate(earlier)}")
    return make_issue(found)


def find_conflicts(examples: Sequence[Example], locate: LocateFn) -> DataIssue:
    """Rows that answer an earlier row's intent with other code, each once."""
    codes: dict[str, dict[str, Example]] = {}
    found = []
    for example in examples:
        known = codes.setdefault(normalize_intent(example.intent), {})
        if normalize_code(example.code) not in known:
            if known:
                found.append(f"{locate(example)} has the intent of {locate(next(iter(known.values())))}")
            known[normalize_code(example.code)] = example
    return make_issue(found)


def find_unparsable(examples: Sequence[Example], locate: LocateFn) -> DataIssue:
    """Rows whose code is not Python."""
    return make_issue(locate(example) for example in examples if not is_valid_python(example.code))


def find_special_tokens(examples: Sequence[Example], locate: LocateFn, tokens: Iterable[str]) -> DataIssue:
    """Rows with one of a base's special tokens in their text, which is read as that token: an early end, say."""
    known = sorted({token for token in tokens if token.strip()})
    found = []
    for example in examples:
        there = [token for token in known if token in example.intent or token in example.code]
        if there:
            found.append(f"{locate(example)} has {', '.join(there[:3])}")
    return make_issue(found)


def find_leaks(
    train: Sequence[Example], validation: Sequence[Example], train_split: DataSplit, validation_split: DataSplit
) -> Leak:
    """What the validation rows share with the training rows."""
    intents = {normalize_intent(example.intent): example for example in reversed(train)}
    codes = {normalize_code(example.code): example for example in reversed(train)}
    found, same_intent, same_code = [], 0, 0
    for example in validation:
        by_intent, by_code = intents.get(normalize_intent(example.intent)), codes.get(normalize_code(example.code))
        same_intent += by_intent is not None
        same_code += by_code is not None
        if other := by_intent or by_code:
            what = "intent and code" if by_intent and by_code else "intent" if by_intent else "code"
            found.append(f"{validation_split.locate(example)} has the {what} of {train_split.locate(other)}")
    return Leak(len(found), same_intent, same_code, tuple(found[:MAX_EXAMPLES]))
