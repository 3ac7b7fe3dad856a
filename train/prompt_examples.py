"""Examples in training prompts: other rows, retrieved as `rag-k` retrieves them, before the question.

An adapter that never saw examples in training is confused by them (retrieval-augmented fine-tuning: Zhang et al. 2024,
arXiv 2403.10131). With `train_examples` each row's prompt gets a random number of the nearest training rows, so that
one adapter answers with and without them. A row is never its own example, and neither is a twin of it, which has its
intent or its code.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from itertools import islice

from errors import TrainingError
from tasks.datasets.split import normalize_code, normalize_intent
from tasks.methods import MAX_EXAMPLES
from tasks.problem import Example
from tasks.retrieval import Retriever

_SPEC = re.compile(r"nearest:(\d{1,4})-(\d{1,4})|nearest:(\d{1,4}(?:,\d{1,4})*)")
# So many more rows are searched than needed, because the row itself and its twins are left out.
_MORE = 16

SelectFn = Callable[[Example], Sequence[Example]]


def parse_train_examples(text: str) -> tuple[int, ...]:
    """Return the numbers of examples that are drawn from with equal chances; () for '', no examples.

    `nearest:0-8` is each number from 0 to 8, `nearest:4` always 4, and `nearest:0,0,1,4` one of these, so that half of
    the prompts have none. Raises TrainingError for anything else.
    """
    if not text:
        return ()
    match = _SPEC.fullmatch(text.replace(" ", ""))
    if match is None:
        raise TrainingError(
            f"train_examples '{text[:60]}' is not understood: write nearest:0-8 for 0 to 8 examples before each "
            "question, or nearest:0,0,4 for one of these numbers."
        )
    if match[3]:
        counts = tuple(int(number) for number in match[3].split(","))
    else:
        counts = tuple(range(int(match[1]), int(match[2]) + 1))
    if not counts or max(counts) > MAX_EXAMPLES:
        raise TrainingError(
            f"train_examples '{text[:60]}' must go from the smaller number to the larger, at most {MAX_EXAMPLES}."
        )
    return counts


class PromptExamples:
    """Selects the examples of each row's prompt. The same seed and rows give the same examples."""

    def __init__(self, counts: Sequence[int], retriever: Retriever, seed: int) -> None:
        self._counts = counts
        self._retriever = retriever
        self._seed = seed

    def select(self, row: Example) -> list[Example]:
        """Return the examples for the prompt of a training or a validation row, nearest first."""
        # By the row, not by its place, so that the draw does not depend on the rows before it.
        count = random.Random(f"{self._seed} {row.id} {row.intent}").choice(self._counts)
        if count == 0:
            return []
        found = self._retriever.nearest(row.intent, count + _MORE)
        return list(islice((example for example in found if not _is_twin(example, row)), count))


def _is_twin(example: Example, row: Example) -> bool:
    return (
        example.id == row.id
        or normalize_intent(example.intent) == normalize_intent(row.intent)
        or normalize_code(example.code) == normalize_code(row.code)
    )


def nearest_retriever(pool: Sequence[Example]) -> Retriever:
    """Return a retriever over the training rows, by the embedding model that comes with the program."""
    from models.embedder import Embedder, FaissIndex
    from tasks.retrieval import IndexRetriever

    return IndexRetriever(pool, FaissIndex(Embedder(), [example.intent for example in pool], None))
