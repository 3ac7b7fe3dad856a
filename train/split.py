"""Which rows are held out where a data set has no validation rows of its own."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Sequence

from tasks.problem import Example


def normalize_intent(intent: str) -> str:
    """What two intents have in common that ask the same: letters' case and white space do not count."""
    return " ".join(intent.casefold().split())


def normalize_code(code: str) -> str:
    """What two equal pieces of code have in common: white space at the ends of lines does not count."""
    return "\n".join(line.rstrip() for line in code.strip().splitlines())


def train_validation_split(
    examples: Sequence[Example], fraction: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """Training and validation rows, each in their own order; about `share` of all rows, at least one, are held out.

    Rows with the same intent or the same code stay on one side, so that nothing leaks. Where that ties too much
    together (answers that are all True or False, say), the same intent alone does. The second list is empty where
    nothing can be held out without a leak.
    """
    wanted = max(1, round(len(examples) * fraction))
    chosen: set[int] = set()
    for keys in (_intent_and_code_keys, _intent_keys):
        chosen = _choose_groups(_connected_groups(examples, keys), wanted, seed)
        if 2 * len(chosen) >= wanted:
            break
    learned = [example for index, example in enumerate(examples) if index not in chosen]
    return learned, [example for index, example in enumerate(examples) if index in chosen]


def _intent_and_code_keys(example: Example) -> tuple[Hashable, ...]:
    return ("intent", normalize_intent(example.intent)), ("code", normalize_code(example.code))


def _intent_keys(example: Example) -> tuple[Hashable, ...]:
    return (("intent", normalize_intent(example.intent)),)


def _connected_groups(examples: Sequence[Example], keys: Callable[[Example], tuple[Hashable, ...]]) -> list[list[int]]:
    """Indices of examples that share a key, also through others (union-find)."""
    parents = list(range(len(examples)))
    owners: dict[Hashable, int] = {}

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    for index, example in enumerate(examples):
        for key in keys(example):
            parents[root(index)] = root(owners.setdefault(key, index))
    groups: dict[int, list[int]] = {}
    for index in range(len(examples)):
        groups.setdefault(root(index), []).append(index)
    return list(groups.values())


def _choose_groups(groups: list[list[int]], count: int, seed: int) -> set[int]:
    """Whole groups, in an order that the seed draws, as long as they fit; never all of them."""
    order = random.Random(seed).sample(groups, len(groups))
    chosen: set[int] = set()
    for group in order[: len(order) - 1]:
        if len(chosen) + len(group) <= count:
            chosen.update(group)
    return chosen
