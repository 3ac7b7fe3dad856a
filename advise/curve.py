"""Learning curve: the score of one family with shares of the training rows, and whether more rows would help."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from advise.result import FoldAnswers
from evaluate.aggregate import is_binary_metric, metric_values
from evaluate.power import SIGNIFICANCE_LEVEL
from evaluate.stats import Interval, bootstrap_mean, paired_bootstrap, wilson_interval

ShareFn = Callable[[FoldAnswers, str, float], Mapping[str, float]]
_NEAR_TOP = 0.95


def learning_curve(
    answers: Sequence[FoldAnswers],
    family: str,
    label: str,
    metric: str,
    shares: Sequence[float],
    seed: int,
    answer_with_share: ShareFn,
) -> dict[str, Any]:
    """Return `label`, `points` (rows, value, low, high, n) from the smallest share to all rows, and a `sentence`.

    `trained` says that the family learns by training, and not by retrieval alone.

    `answer_with_share` returns the scores of the test rows of a fold after learning from a share of its rows.
    """
    sizes = [round(share * len(answers[0].fold.train)) for share in shares]
    scores = [
        {id: value for found in answers for id, value in answer_with_share(found, family, share).items()}
        for share in shares
    ]
    scores.append({id: v for found in answers for id, v in metric_values(found.results(family), metric).items()})
    sizes.append(len(answers[0].fold.train))
    points = []
    for rows, found in zip(sizes, scores, strict=True):
        interval = _interval(metric, list(found.values()), seed)
        points.append(
            {"rows": rows, "value": interval.value, "low": interval.low, "high": interval.high, "n": len(found)}
        )
    sentence = _sentence(label, sizes, scores, seed)
    return {"label": label, "trained": family != "rag", "points": points, "sentence": sentence}


def _interval(metric: str, values: Sequence[float], seed: int) -> Interval:
    if is_binary_metric(metric, values):
        return wilson_interval(min(sum(values), len(values)), len(values))
    return bootstrap_mean(values, seed)


def _sentence(label: str, sizes: Sequence[int], scores: Sequence[Mapping[str, float]], seed: int) -> str:
    """Return whether the last doubling helped, and how many rows the next step would take if it goes on so."""
    last = paired_bootstrap(scores[-1], scores[-2], seed)
    now = sum(scores[-1].values()) / len(scores[-1])
    gain = 100 * last.value
    bounds = f"[{100 * last.low:.1f}, {100 * last.high:.1f}]"
    change = f"from {sizes[-2]} to {sizes[-1]} rows {label} gained {gain:.1f} points {bounds}"
    if now >= _NEAR_TOP:
        return f"More rows can hardly help: {label} is right on {100 * now:.0f} % already; {change}."
    if last.p >= SIGNIFICANCE_LEVEL or last.value <= 0:
        return f"No gain of more rows is shown: {change}, which may be chance."
    doubling = last.value / math.log2(sizes[-1] / sizes[-2])
    step = min(0.1, 1 - now)
    needed = round(sizes[-1] * 2 ** (step / doubling))
    return (
        f"More rows would probably help: {change}. If it goes on so, {100 * step:.0f} points more take about "
        f"{needed:,} rows; curves flatten, so take that as the least."
    )
