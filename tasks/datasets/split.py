"""Splits of rows: training, validation and test rows, without a leak between them.

Rows that say the same stay on one side: rows with one intent, with one code, near-twins (intents that are near each
other for the embedding model, and codes that share most tokens), and, where a column names one, rows of one group. If
this connects so many rows that too few could be held out, as in rows made of one template, near-twins and then rows
with one code may part, and `RowSplit.note` says so.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tasks.problem import Example

if TYPE_CHECKING:
    import numpy as np

MIN_INTENT_SIMILARITY, MIN_TOKEN_OVERLAP = 0.8, 0.8
# Every pair of intents is compared, and the codes of near ones: more of either would take minutes.
MAX_COMPARED_ROWS, MAX_NEAR_INTENTS = 20_000, 1_000_000
_BLOCK_ROWS = 1_024
_TOKENS = re.compile(r"\w+|[^\w\s]")

EmbedFn = Callable[[Sequence[str]], "np.ndarray[Any, Any]"]
Pair = tuple[int, int]


@dataclass(frozen=True)
class RowSplit:
    """Indices of the rows of each side, in their order. `twins` are pairs of near-twins, `note` says who parted."""

    train: list[int]
    validation: list[int]
    test: list[int]
    twins: list[Pair] = field(default_factory=list)
    note: str = ""


def normalize_intent(intent: str) -> str:
    """Normalize case and white space of an intent, to compare it with others."""
    return " ".join(intent.casefold().split())


def normalize_code(code: str) -> str:
    """Remove white space at the ends of the lines of code, to compare it with other code."""
    return "\n".join(line.rstrip() for line in code.strip().splitlines())


def train_validation_split(
    examples: Sequence[Example], fraction: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """Split the examples into training and validation rows, each in the original order.

    About `fraction` of all rows, at least one, are held out. Rows with the same intent or the same code stay on one
    side, so that nothing leaks. If this connects too many rows (for example, answers that are all True or False), only
    rows with the same intent stay together. The second list is empty if nothing can be held out without a leak.
    """
    wanted = max(1, round(len(examples) * fraction))
    held_out: set[int] = set()
    for keys in (_intent_and_code_keys, _intent_keys):
        held_out = _choose_groups(connected_groups(map(keys, examples)), wanted, seed)
        if 2 * len(held_out) >= wanted:
            break
    train = [example for index, example in enumerate(examples) if index not in held_out]
    return train, [example for index, example in enumerate(examples) if index in held_out]


def split_rows(
    examples: Sequence[Example],
    validation_share: float,
    test_share: float,
    seed: int,
    groups: Sequence[Hashable] = (),
    embed: EmbedFn | None = None,
) -> RowSplit:
    """Draw about these shares of the rows for validation and test, at least one row each where there are three.

    `groups` has the group of each row, if rows have one; None belongs to no group. Near-twins are found with `embed`
    (models.embedder.Embedder.embed), without it none. A side is empty if nothing can be held out without a leak.
    """
    twins = find_near_twins(examples, embed) if embed else []
    unknown = "" if twins is not None else "near-twins are not kept apart, as too many intents are near each other"
    twins = twins or []
    wanted = [max(1, round(len(examples) * share)) if share > 0 else 0 for share in (test_share, validation_share)]
    own = [(("group", group),) if group is not None else () for group in groups] or [()] * len(examples)
    note, sides = "", [set[int](), set[int]()]
    for keys, links, parted in (
        (_intent_and_code_keys, twins, unknown),
        (_intent_and_code_keys, [], "near-twins of training rows are among the held-out rows"),
        (_intent_keys, [], "codes of training rows are among those of the held-out rows"),
    ):
        row_keys = [(*keys(example), *group) for example, group in zip(examples, own, strict=True)]
        note, sides = parted, _draw_sides(connected_groups(row_keys, links), wanted, seed)
        if all(2 * len(side) >= count for side, count in zip(sides, wanted, strict=True)):
            break
    test, validation = sides
    train = [index for index in range(len(examples)) if index not in test and index not in validation]
    return RowSplit(train, sorted(validation), sorted(test), twins, note)


def cross_fit_folds(
    examples: Sequence[Example],
    folds: int,
    seed: int,
    groups: Sequence[Hashable] = (),
    embed: EmbedFn | None = None,
) -> list[list[int]]:
    """Divide the rows into parts of about equal size, each of which can be held out once; fewer than `folds` where
    too many rows belong together. Rows stay together as in `split_rows`.
    """
    twins = (find_near_twins(examples, embed) or []) if embed else []
    own = [(("group", group),) if group is not None else () for group in groups] or [()] * len(examples)
    parts: list[list[int]] = []
    for keys, links in ((_intent_and_code_keys, twins), (_intent_and_code_keys, []), (_intent_keys, [])):
        row_keys = [(*keys(example), *group) for example, group in zip(examples, own, strict=True)]
        connected = connected_groups(row_keys, links)
        random.Random(seed).shuffle(connected)
        parts = [[] for _ in range(folds)]
        for rows in sorted(connected, key=len, reverse=True):
            min(parts, key=len).extend(rows)
        if 2 * min(map(len, parts)) >= max(map(len, parts)):
            break
    return [sorted(part) for part in parts if part]


def _draw_sides(groups: list[list[int]], wanted: Sequence[int], seed: int) -> list[set[int]]:
    """Draw complete groups for each side of at most so many rows."""
    sides = []
    for count in wanted:
        chosen = _choose_groups(groups, count, seed) if count else set()
        groups = [group for group in groups if group[0] not in chosen]
        sides.append(chosen)
    return sides


def find_near_twins(examples: Sequence[Example], embed: EmbedFn) -> list[Pair] | None:
    """Return the pairs of rows that differ in little, each pair in the order of the rows.

    Their intents have a cosine of at least MIN_INTENT_SIMILARITY, and their codes share at least MIN_TOKEN_OVERLAP of
    their tokens (Jaccard's index of the sets). None beyond MAX_COMPARED_ROWS rows or MAX_NEAR_INTENTS near intents.
    """
    import numpy as np

    if len(examples) > MAX_COMPARED_ROWS:
        return None
    vectors = embed([example.intent for example in examples])
    tokens = [frozenset(_TOKENS.findall(example.code)) for example in examples]
    pairs, near = [], 0
    for begin in range(0, len(examples), _BLOCK_ROWS):
        similar = vectors[begin : begin + _BLOCK_ROWS] @ vectors[begin:].T >= MIN_INTENT_SIMILARITY
        near += int(similar.sum())
        if near > MAX_NEAR_INTENTS:
            return None
        for row, other in np.argwhere(similar):
            first, second = begin + int(row), begin + int(other)
            if first < second and _overlap(tokens[first], tokens[second]) >= MIN_TOKEN_OVERLAP:
                pairs.append((first, second))
    return pairs


def _overlap(first: frozenset[str], second: frozenset[str]) -> float:
    return len(first & second) / max(1, len(first | second))


def _intent_and_code_keys(example: Example) -> tuple[Hashable, ...]:
    return ("intent", normalize_intent(example.intent)), ("code", normalize_code(example.code))


def _intent_keys(example: Example) -> tuple[Hashable, ...]:
    return (("intent", normalize_intent(example.intent)),)


def connected_groups(keys: Iterable[Iterable[Hashable]], links: Iterable[Pair] = ()) -> list[list[int]]:
    """Group the indices of rows that share a key or are linked, directly or through other rows (union-find)."""
    parents: list[int] = []
    owners: dict[Hashable, int] = {}

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    for index, row_keys in enumerate(keys):
        parents.append(index)
        for key in row_keys:
            parents[root(index)] = root(owners.setdefault(key, index))
    for first, second in links:
        parents[root(first)] = root(second)
    groups: dict[int, list[int]] = {}
    for index in range(len(parents)):
        groups.setdefault(root(index), []).append(index)
    return list(groups.values())


def _choose_groups(groups: list[list[int]], count: int, seed: int) -> set[int]:
    """Choose complete groups of together at most `count` indices, in an order drawn by the seed; never all groups."""
    order = random.Random(seed).sample(groups, len(groups))
    chosen: set[int] = set()
    for group in order[: len(order) - 1]:
        if len(chosen) + len(group) <= count:
            chosen.update(group)
    return chosen
