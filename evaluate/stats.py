"""Intervals and comparisons, so that a difference of one point is not taken for a finding.

Proportions (EM@k, parse rate) carry Wilson's interval, means (CodeBLEU) a bootstrap one. Two methods are compared on
the same problems: a paired bootstrap for the interval of the difference and a sign-flip test for its p, McNemar's exact
test for yes-or-no scores, Holm's correction over all tests of one table. Results over different problems refuse to be
compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from errors import PromptOrTuneError

RESAMPLES = 10_000
CONFIDENCE = 0.95
_MAX_EXACT_PAIRS = 13  # up to so many differences all 2**n ways of signing them are fewer than RESAMPLES
_MAX_CHUNK_CELLS = 2_000_000  # drawn at a time, to keep memory flat
_CACHED_DRAWS = 800  # values, up to which the draws are kept: 16 MB


@dataclass(frozen=True)
class Interval:
    """A value with the ends of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedDifference:
    """`a` minus `b` over n shared problems: the mean difference, its interval, and a two-sided p."""

    value: float
    low: float
    high: float
    p: float
    n: int


@dataclass(frozen=True)
class McNemar:
    """Problems that only `a` solved, that only `b` solved, and the two-sided p of the exact test."""

    only_a: int
    only_b: int
    p: float


def wilson_interval(successes: float, n: int, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's score interval of a proportion (E. B. Wilson, JASA 22, 1927), without continuity correction.

    For n scores in [0, 1] that are no mere yes or no, `successes` is their sum: the interval is then wider than it need
    be, as no such score varies more than a proportion of the same mean.
    """
    if not 0 <= successes <= n or n < 1:
        raise PromptOrTuneError(f"{successes} of {n} is no proportion: n must be at least 1 and hold the successes.")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Interval(share, low, high)


def bootstrap_mean(values: Sequence[float], seed: int = 0, confidence: float = CONFIDENCE) -> Interval:
    """Percentile bootstrap interval of a mean (Efron 1979), 10,000 resamples, the same for the same seed."""
    if not len(values):
        raise PromptOrTuneError("A mean of no values is undefined: at least one problem needs a score.")
    sample = np.asarray(values, dtype=np.float64)
    tail = (1 - confidence) / 2
    low, high = np.quantile(_resampled_means(sample, seed), [tail, 1 - tail])
    return Interval(float(sample.mean()), float(low), float(high))


def paired_bootstrap(
    a: Mapping[str, float], b: Mapping[str, float], seed: int = 0, confidence: float = CONFIDENCE
) -> PairedDifference:
    """The mean difference a - b over problems, resampled as pairs; keys are problem ids.

    p is that of the sign-flip test (Fisher's randomisation test for pairs): had the two methods no difference, each
    pair could as well have come out the other way round. A p read off the bootstrap itself would be far too small for
    few problems: with four differences of one sign it is 0.0002, and no paired test can go below 0.125.
    """
    differences = np.asarray(_differences(a, b), dtype=np.float64)
    tail = (1 - confidence) / 2
    low, high = np.quantile(_resampled_means(differences, seed), [tail, 1 - tail])
    p = _sign_flip_p(differences[differences != 0], seed)
    return PairedDifference(float(differences.mean()), float(low), float(high), p, len(differences))


def mcnemar_test(a: Mapping[str, bool], b: Mapping[str, bool]) -> McNemar:
    """McNemar's exact test (McNemar 1947): a binomial test over the problems that only one of both solved."""
    from scipy.stats import binomtest

    _require_same_problems(a, b)
    only_a = sum(bool(a[problem]) and not b[problem] for problem in a)
    only_b = sum(bool(b[problem]) and not a[problem] for problem in a)
    if only_a + only_b == 0:
        return McNemar(0, 0, 1.0)
    return McNemar(only_a, only_b, float(binomtest(only_a, only_a + only_b, 0.5).pvalue))


def holm_correction(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Scand. J. Statist. 6, 1979): adjusted p-values in the order given."""
    order = sorted(range(len(p_values)), key=lambda at: p_values[at])
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, at in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[at]))
        adjusted[at] = highest
    return adjusted


def _resampled_means(sample: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    n = len(sample)
    if n <= _CACHED_DRAWS:
        counts = _resample_counts(n, seed)
        return np.concatenate([counts[at : at + 1000] @ sample for at in range(0, RESAMPLES, 1000)]) / n
    generator = np.random.default_rng(seed)
    rows = max(1, _MAX_CHUNK_CELLS // n)
    means = [
        sample[generator.integers(0, n, (min(rows, RESAMPLES - start), n))].mean(axis=1)
        for start in range(0, RESAMPLES, rows)
    ]
    return np.concatenate(means)


@lru_cache(maxsize=4)
def _resample_counts(n: int, seed: int) -> NDArray[np.int16]:
    """How often each of n values is drawn in each resample. A table asks for the same draws again and again."""
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, n, (RESAMPLES, n), dtype=np.int32)
    drawn += np.arange(RESAMPLES, dtype=np.int32)[:, None] * n
    return np.bincount(drawn.ravel(), minlength=RESAMPLES * n).reshape(RESAMPLES, n).astype(np.int16)


def _sign_flip_p(differences: NDArray[np.float64], seed: int) -> float:
    """Two-sided; exact for few differences, else over RESAMPLES random signings and the one that was seen."""
    n = len(differences)
    if n == 0:
        return 1.0
    seen = abs(differences.sum()) - 1e-9  # sums that are equal but for rounding count as equal
    if n <= _MAX_EXACT_PAIRS:
        bits = np.arange(2**n)[:, None] >> np.arange(n) & 1
        return float((np.abs((2 * bits - 1) @ differences) >= seen).mean())
    generator = np.random.default_rng(seed)
    rows = max(1, _MAX_CHUNK_CELLS // n)
    extreme = 0
    for start in range(0, RESAMPLES, rows):
        signs = generator.integers(0, 2, (min(rows, RESAMPLES - start), n)) * 2 - 1
        extreme += int((np.abs(signs @ differences) >= seen).sum())
    return (extreme + 1) / (RESAMPLES + 1)


def _differences(a: Mapping[str, float], b: Mapping[str, float]) -> list[float]:
    _require_same_problems(a, b)
    if not a:
        raise PromptOrTuneError("There are no problems to compare: run at least one.")
    return [a[problem] - b[problem] for problem in a]


def _require_same_problems(a: Mapping[str, object], b: Mapping[str, object]) -> None:
    if a.keys() != b.keys():
        shared = len(a.keys() & b.keys())
        raise PromptOrTuneError(
            f"The two results are over different problems ({len(a)} and {len(b)}, {shared} of them shared) and cannot "
            "be compared: run both with the same --data, --split and --limit."
        )
