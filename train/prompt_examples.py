"""Examples in training prompts: other rows, retrieved as `rag-k` retrieves them, before the question.

An adapter that never saw examples in training is confused by them (retrieval-augmented fine-tuning: Zhang et al. 2024,
arXiv 2403.10131). With `train_examples` each row's prompt gets a random number of the nearest training rows, so that
one adapter answers with and without them. `nearest:0+1-8` trains each row twice an epoch, once without examples and
once with 1 to 8, so that the plain questions lose no row to the others. A row is never its own example, and neither is
a twin of it, which has its intent or its code.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

from errors import TrainingError
from tasks.datasets.split import normalize_code, normalize_intent
from tasks.methods import MAX_EXAMPLES, Retriever
from tasks.problem import Example

_PREFIX = "nearest:"
_PART = re.compile(r"(\d{1,4})-(\d{1,4})|(\d{1,4}(?:,\d{1,4})*)")
# The most prompts of one row.
_MAX_PARTS = 4
# So many more rows are searched than needed, because the row itself and its twins are left out.
_MORE = 16

# The examples of each prompt of a row.
SelectFn = Callable[[Example], Sequence[Sequence[Example]]]
Counts = tuple[int, ...]


def parse_train_examples(text: str) -> tuple[Counts, ...]:
    """Return, for each prompt of a row, the numbers of examples that are drawn from with equal chances; () for ''.

    `nearest:0-8` is each number from 0 to 8, `nearest:4` always 4, and `nearest:0,0,1,4` one of these. `+` is between
    the prompts of a row: `nearest:0+1-8` makes two, one without examples and one with 1 to 8. Raises TrainingError for
    anything else.
    """
    if not text:
        return ()
    compact = text.replace(" ", "")
    matches = [_PART.fullmatch(part) for part in compact.removeprefix(_PREFIX).split("+")]
    if not compact.startswith(_PREFIX) or not all(matches) or len(matches) > _MAX_PARTS:
        raise TrainingError(
            f"train_examples '{text[:60]}' is not understood: write nearest:0-8 for 0 to 8 examples before each "
            "question, nearest:0,0,4 for one of these numbers, nearest:0+1-8 to train each row without and with them."
        )
    parts = tuple(_counts(match) for match in matches if match)
    if any(not counts or max(counts) > MAX_EXAMPLES for counts in parts):
        raise TrainingError(
            f"train_examples '{text[:60]}' must go from the smaller number to the larger, at most {MAX_EXAMPLES}."
        )
    return parts


def _counts(match: re.Match[str]) -> Counts:
    if match[3]:
        return tuple(int(number) for number in match[3].split(","))
    return tuple(range(int(match[1]), int(match[2]) + 1))


class PromptExamples:
    """Selects the examples of each row's prompts. The same seed and rows give the same examples."""

    def __init__(self, parts: Sequence[Counts], retriever: Retriever, seed: int) -> None:
        self._parts = parts
        self._retriever = retriever
        self._seed = seed

    def select(self, row: Example) -> list[list[Example]]:
        """Return the examples for each prompt of a training or a validation row, nearest first."""
        # By the row, not by its place, so that the draw does not depend on the rows before it.
        draw = random.Random(f"{self._seed} {row.id} {row.intent}")
        numbers = [draw.choice(counts) for counts in self._parts]
        if not any(numbers):
            return [[] for _ in numbers]
        found = self._retriever.nearest(row.intent, max(numbers) + _MORE)
        examples = [example for example in found if not _is_twin(example, row)]
        return [examples[:number] for number in numbers]


def _is_twin(example: Example, row: Example) -> bool:
    return (
        example.id == row.id
        or normalize_intent(example.intent) == normalize_intent(row.intent)
        or normalize_code(example.code) == normalize_code(row.code)
    )


def nearest_retriever(pool: Sequence[Example]) -> Retriever:
    """Return a retriever over the training rows, by the embedding model that comes with the program."""
    from models.embedder import Embedder, FaissIndex
    from tasks.methods import IndexRetriever

    return IndexRetriever(pool, FaissIndex(Embedder(), [example.intent for example in pool], None))
