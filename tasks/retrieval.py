"""Choosing the examples that a prompt shows: the same random few for every problem, or the nearest ones."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Protocol

from tasks.methods import FixedExamples, Method, NearestExamples
from tasks.problem import Example, Problem


class Retriever(Protocol):
    """Finds the examples of one pool whose intents are nearest to an intent."""

    def nearest(self, intent: str, k: int) -> list[Example]:
        """The k nearest examples, nearest first (fewer where the pool is smaller)."""


class TextIndex(Protocol):
    """Finds similar texts by their index (models.embedder.FaissIndex)."""

    def search(self, text: str, k: int) -> list[int]:
        """Indices of the k most similar texts, nearest first."""


class IndexRetriever:
    """A Retriever over an index of the examples' intents."""

    def __init__(self, examples: Sequence[Example], index: TextIndex) -> None:
        self._examples = list(examples)
        self._index = index

    def nearest(self, intent: str, k: int) -> list[Example]:
        """The k examples with the most similar intents, nearest first."""
        return [self._examples[index] for index in self._index.search(intent, k)]


class ExamplePools:
    """The training splits that examples come from, loaded and indexed when first asked for."""

    def __init__(
        self,
        load: Callable[[str], list[Example]],
        index: Callable[[str, Sequence[Example]], Retriever],
    ) -> None:
        self._load = load
        self._index = index
        self._examples: dict[str, list[Example]] = {}
        self._retrievers: dict[str, Retriever] = {}

    def select(self, method: Method, problem: Problem, pool: str) -> tuple[Example, ...]:
        """The examples for one row, in the order they are shown. A problem never is its own example."""
        selection = method.examples
        if isinstance(selection, FixedExamples):
            return self._fixed(selection, problem, pool)
        if isinstance(selection, NearestExamples):
            # Asking for more leaves enough when the problem itself, or its like, is in the pool.
            found = self._retriever(pool).nearest(problem.intent, selection.k + 8)
            return tuple(example for example in found if not _is_same_problem(example, problem))[: selection.k]
        return ()

    def _fixed(self, selection: FixedExamples, problem: Problem, pool: str) -> tuple[Example, ...]:
        examples = self.examples(pool)
        order = random.Random(selection.seed).sample(range(len(examples)), min(len(examples), selection.k + 8))
        shown = (examples[place] for place in order if not _is_same_problem(examples[place], problem))
        return tuple(example for example, _ in zip(shown, range(selection.k), strict=False))

    def examples(self, pool: str) -> list[Example]:
        """The pool's training split."""
        if pool not in self._examples:
            self._examples[pool] = self._load(pool)
        return self._examples[pool]

    def _retriever(self, pool: str) -> Retriever:
        if pool not in self._retrievers:
            self._retrievers[pool] = self._index(pool, self.examples(pool))
        return self._retrievers[pool]


def _is_same_problem(example: Example, problem: Problem) -> bool:
    return example.id == problem.id or _normalized(example.intent) == _normalized(problem.intent)


def _normalized(intent: str) -> str:
    return " ".join(intent.casefold().split())
