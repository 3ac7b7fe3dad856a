"""Example selection for prompts: the same random examples for every problem, or the nearest ones."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from tasks.datasets.split import normalize_intent
from tasks.methods import FixedExamples, Method, NearestExamples
from tasks.problem import Example, Problem


class Retriever(Protocol):
    """Searches the examples of one pool by their intents."""

    def nearest(self, intent: str, k: int) -> list[Example]:
        """Return the k nearest examples, nearest first (fewer where the pool is smaller)."""


class TextIndex(Protocol):
    """Searches similar texts (models.embedder.FaissIndex)."""

    def search(self, text: str, k: int) -> list[int]:
        """Return the indices of the k most similar texts, nearest first."""


class IndexRetriever:
    """A Retriever over an index of the examples' intents."""

    def __init__(self, examples: Sequence[Example], index: TextIndex) -> None:
        self._examples = list(examples)
        self._index = index

    def nearest(self, intent: str, k: int) -> list[Example]:
        """Return the k examples with the most similar intents, nearest first."""
        return [self._examples[index] for index in self._index.search(intent, k)]


@dataclass
class _Pool:
    """The examples of one version of a data set, and their index once it was needed."""

    version: str
    examples: list[Example]
    retriever: Retriever | None = None


class ExamplePools:
    """The training splits that examples come from, loaded and indexed at first use.

    `version` returns a text that changes when the rows under a name do: what was loaded before is then dropped.
    """

    def __init__(
        self,
        load: Callable[[str], list[Example]],
        index: Callable[[str, Sequence[Example]], Retriever],
        version: Callable[[str], str] = lambda _name: "",
    ) -> None:
        self._load = load
        self._index = index
        self._version = version
        self._pools: dict[str, _Pool] = {}

    def select(self, method: Method, problem: Problem, pool: str) -> tuple[Example, ...]:
        """Select the examples for one row, in the order of the prompt. A problem is never its own example."""
        selection = method.examples
        if isinstance(selection, FixedExamples):
            return self._fixed(selection, problem, pool)
        if isinstance(selection, NearestExamples):
            # 8 more than needed, since the problem itself and its duplicates are removed.
            found = self._retriever(pool).nearest(problem.intent, selection.k + 8)
            return tuple(example for example in found if not _is_same_problem(example, problem))[: selection.k]
        return ()

    def _fixed(self, selection: FixedExamples, problem: Problem, pool: str) -> tuple[Example, ...]:
        examples = self.examples(pool)
        order = random.Random(selection.seed).sample(range(len(examples)), min(len(examples), selection.k + 8))
        usable = (examples[index] for index in order if not _is_same_problem(examples[index], problem))
        return tuple(islice(usable, selection.k))

    def examples(self, pool: str) -> list[Example]:
        """Return the pool's training split."""
        return self._pool(pool).examples

    def _pool(self, name: str) -> _Pool:
        version = self._version(name)  # before the rows: those of a later version are then loaded once more, not kept
        pool = self._pools.get(name)
        if pool is None or pool.version != version:
            pool = self._pools[name] = _Pool(version, self._load(name))
        return pool

    def _retriever(self, name: str) -> Retriever:
        pool = self._pool(name)
        if pool.retriever is None:
            pool.retriever = self._index(name, pool.examples)
        return pool.retriever


def _is_same_problem(example: Example, problem: Problem) -> bool:
    return example.id == problem.id or normalize_intent(example.intent) == normalize_intent(problem.intent)
