"""Methods: names of how an answer is made, with which examples and which adapter, and the selection of the examples.

The names are a grammar, the same in the page, the API and the command line:

    zero-shot               no examples, no adapter
    icl-8                   8 examples, one random sample of the pool, the same for every problem
    rag-8                   the 8 examples whose intents are nearest to the problem's
    lora-conala             the adapter `lora-conala`, no examples
    lora-conala+rag-8       both
    lora-conala*0.5         the adapter with its update scaled by 0.5

`icl` and `rag` without a number mean 8 examples.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from common.format import quote_untrusted
from errors import PromptOrTuneError, unknown_name_error
from tasks.datasets.split import normalize_intent
from tasks.problem import Example, Problem

MAX_INTENT_CHARS = 20_000
MAX_REFERENCE_CHARS = 20_000
MAX_NAME_CHARS = 200  # of a method, a pool, an adapter
DEFAULT_SEED = 42
DEFAULT_K = 8
MAX_EXAMPLES = 32
MAX_SCALE = 4.0
MAX_DIGITS = 18


def check_text(value: object, what: str, limit: int) -> str:
    """Return `value`, which must be a text of at most `limit` characters; raises PromptOrTuneError otherwise.

    `what` begins the message, such as "The question".
    """
    if not isinstance(value, str):
        raise PromptOrTuneError(f"{what} must be text: write it in words.")
    if len(value) > limit:
        raise PromptOrTuneError(f"{what} has {len(value):,} characters: write at most {limit:,}.")
    return value


@dataclass(frozen=True)
class NoExamples:
    """No examples in the prompt."""

    k: int = 0


@dataclass(frozen=True)
class FixedExamples:
    """k random examples of the pool, drawn once with `seed`: the same for every problem (ICL)."""

    k: int
    seed: int = DEFAULT_SEED


@dataclass(frozen=True)
class NearestExamples:
    """The k examples whose intents are nearest to the problem's intent, nearest first (RAG)."""

    k: int


ExampleSelection = NoExamples | FixedExamples | NearestExamples


@dataclass(frozen=True)
class Method:
    """How an answer is made: canonical name, choice of examples, adapter and its scale."""

    name: str
    examples: ExampleSelection
    adapter: str | None = None
    scale: float = 1.0


def parse_method(name: str, adapters: Iterable[str]) -> Method:
    """Parse the name of a method, given the names of the adapters in the store.

    Raises UnknownNameError with the nearest known name, PromptOrTuneError for a number of examples out of range.
    """
    check_text(name, "The name of a method", MAX_NAME_CHARS)
    adapter_names = set(adapters)
    parts = [part.strip() for part in name.strip().split("+")]
    adapter: str | None = None
    scale = 1.0
    selection: ExampleSelection = NoExamples()
    for part in parts:
        adapter_part, star, factor = part.partition("*")
        chosen = _parse_selection(part)
        if chosen is not None:
            if selection.k:
                raise PromptOrTuneError(f"Method '{name}' chooses examples twice: keep one of icl-k and rag-k.")
            selection = chosen
        elif adapter_part in adapter_names:
            if adapter is not None:
                raise PromptOrTuneError(f"Method '{name}' names two adapters: a row can have only one.")
            adapter, scale = adapter_part, _parse_scale(factor, part) if star else 1.0
        elif part != "zero-shot" or len(parts) > 1:
            raise unknown_name_error("method", part or name, adapter_names | {"zero-shot", "icl-8", "rag-8"})
    return Method(method_name(selection, adapter, scale), selection, adapter, scale)


def method_name(selection: ExampleSelection, adapter: str | None, scale: float = 1.0) -> str:
    """Return the canonical name of a choice of examples and an adapter."""
    if adapter is not None and scale != 1:
        adapter = f"{adapter}*{scale:g}"
    if isinstance(selection, FixedExamples):
        examples = f"icl-{selection.k}" + (f"@{selection.seed}" if selection.seed != DEFAULT_SEED else "")
    elif isinstance(selection, NearestExamples):
        examples = f"rag-{selection.k}"
    else:
        examples = ""
    return "+".join(part for part in (adapter, examples) if part) or "zero-shot"


def _parse_selection(part: str) -> ExampleSelection | None:
    match = re.fullmatch(r"(icl|rag)(?:-(\d+))?(?:@(\d+))?", part)
    if match is None or (match[1] == "rag" and match[3]):
        return None
    k, seed = match[2] or str(DEFAULT_K), match[3] or str(DEFAULT_SEED)
    if len(k) > MAX_DIGITS or not 1 <= int(k) <= MAX_EXAMPLES:
        raise PromptOrTuneError(
            f"'{quote_untrusted(part)}' asks for too many or no examples: choose 1 to {MAX_EXAMPLES}."
        )
    if len(seed) > MAX_DIGITS:
        raise PromptOrTuneError(f"'{quote_untrusted(part)}' has too long a seed: give at most {MAX_DIGITS} digits.")
    return FixedExamples(int(k), int(seed)) if match[1] == "icl" else NearestExamples(int(k))


def _parse_scale(factor: str, part: str) -> float:
    """Parse the number after the star."""
    if re.fullmatch(r"\d{1,4}(\.\d{1,6})?", factor) is None or not 0 < float(factor) <= MAX_SCALE:
        raise PromptOrTuneError(f"'{part}' has no valid scale: give a number above 0, at most {MAX_SCALE:g}.")
    return float(factor)


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
