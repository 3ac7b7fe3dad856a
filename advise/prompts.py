"""Choice of the examples in the prompt, on validation rows: how many, and for ICL which; by successive halving."""

from __future__ import annotations

from collections.abc import Sequence

from advise.answering import Answerer, mean_scores
from tasks.problem import Problem

ICL_METHODS = ("icl-8", "icl-4", "icl-8@43", "icl-4@43")
RAG_METHODS = ("rag-8", "rag-4", "rag-2")
FIRST_SHARE = 1 / 3
MIN_ROWS_FOR_HALVING = 24

Scores = dict[str, tuple[float, float]]


def choose_prompts(
    answerer: Answerer,
    name: str,
    pool: str,
    rows: Sequence[Problem],
    families: Sequence[Sequence[str]],
    metric: str,
    max_new_tokens: int,
) -> tuple[list[str], Scores]:
    """Return the best method of each family, and the scores (`metric`, CodeBLEU) of all that were asked all rows.

    With enough rows, all methods are asked the first third of them, and the worse half of each family is left out. A
    tie goes to the higher CodeBLEU, then to the method that comes first.
    """
    first = rows[: round(len(rows) * FIRST_SHARE)] if len(rows) >= MIN_ROWS_FOR_HALVING else []
    left = [list(family) for family in families]
    if first and any(len(family) > 2 for family in left):
        run = answerer.answer(
            f"{name}-first", pool, first, [method for family in left for method in family], max_new_tokens
        )
        left = [
            sorted(family, key=lambda method: mean_scores(run, method, metric), reverse=True)[
                : max(1, len(family) // 2)
            ]
            for family in left
        ]
    run = answerer.answer(name, pool, rows, [method for family in left for method in family], max_new_tokens)
    scores = {method: mean_scores(run, method, metric) for family in left for method in family}
    return [max(family, key=scores.__getitem__) for family in left], scores
