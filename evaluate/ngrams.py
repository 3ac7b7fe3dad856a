"""The two n-gram parts of CodeBLEU, over tokens that are counted once a snippet.

Source: Ren et al., arXiv 2009.10297, section 3.1, as the `codebleu` package (0.7.0) computes them, to the last bit:
BLEU with a count of 0 taken as 0.1 (Chen and Cherry's method 1), and the same over the recall of n-grams with weighted
unigrams. Both share the n-grams that reference and candidate have in common, so these are counted once for both.
evaluate/codebleu.py says in what the combination differs from the package's.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MAX_ORDER = 4
EPSILON = 0.1


@dataclass(frozen=True)
class NgramCounts:
    """The n-grams of one snippet: `counts[n - 1]` of those of order n, a token itself for order 1."""

    length: int
    counts: tuple[Counter[Any], ...]


def count_ngrams(tokens: Sequence[str]) -> NgramCounts:
    """The n-grams of `tokens` of the orders 1 to 4."""
    higher = (zip(*(tokens[at:] for at in range(n)), strict=False) for n in range(2, MAX_ORDER + 1))
    return NgramCounts(len(tokens), (Counter(tokens), *(Counter(grams) for grams in higher)))


def bleu_scores(
    reference: NgramCounts, candidate: NgramCounts, keywords: frozenset[str], weight: int
) -> tuple[float, float]:
    """BLEU, and BLEU with `keywords` weighted, of one candidate; neither side may be empty. Both in [0, 1].

    The order is capped by the reference alone, so that all answers to one problem are measured with the same order.
    """
    order = min(MAX_ORDER, reference.length)
    common = [_common_counts(reference.counts[n], candidate.counts[n]) for n in range(order)]
    shared = sum(common[0].values())
    if not shared:
        return 0.0, 0.0
    matches = [sum(each.values()) for each in common]
    precision = [(matches[n], max(1, candidate.length - n)) for n in range(order)]
    recall = [(matches[n], max(1, reference.length - n)) for n in range(order)]
    recall[0] = (
        _weighted_total(common[0], keywords, weight),
        max(1, _weighted_total(reference.counts[0], keywords, weight)),
    )
    brevity = 1.0
    if candidate.length <= reference.length:
        brevity = math.exp(1 - reference.length / candidate.length)
    return _bleu(precision, brevity), _bleu(recall, brevity)


def _common_counts(reference: Counter[Any], candidate: Counter[Any]) -> dict[Any, int]:
    """How often each n-gram is in both. The keys of two plain dicts, as TokenCounter's own `&` is far slower."""
    return {gram: min(reference[gram], candidate[gram]) for gram in reference.keys() & candidate.keys()}


def _weighted_total(counts: dict[str, int], keywords: frozenset[str], weight: int) -> int:
    return sum(count * weight if token in keywords else count for token, count in counts.items())


def _bleu(parts: list[tuple[int, int]], brevity: float) -> float:
    """The geometric mean of the parts, each a count and what it is a share of, times the brevity penalty."""
    share = 1 / len(parts)
    logs = math.fsum(share * math.log((part or EPSILON) / whole) for part, whole in parts)
    return min(1.0, brevity * math.exp(logs))
