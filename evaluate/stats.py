"""Confidence intervals and paired tests for scores of methods.

Proportions (EM@k, parse rate) get Wilson's interval, means (CodeBLEU) a bootstrap interval. Two methods are compared
on the same problems: a paired bootstrap gives the interval of the difference, a sign-flip test its p, McNemar's exact
test the p of yes-or-no scores; Holm's method corrects all tests of one table. Results over different problems raise
an error.

The bootstrap and the binomial test are scipy's. Wilson's interval is ours because scipy's takes whole successes only,
the sign-flip test because scipy's is two to four times slower and draws other signs for the same seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from errors import PromptOrTuneError

RESAMPLES = 10_000
CONFIDENCE = 0.95
_MAX_EXACT_PAIRS = 13  # 2**13 sign patterns are fewer than RESAMPLES: all of them are tried
_MAX_CHUNK_CELLS = 2_000_000  # random numbers drawn at a time, which bounds memory


@dataclass(frozen=True)
class Interval:
    """A value and the ends of its confidence interval."""

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
    """Compute Wilson's score interval of a proportion (E. B. Wilson, JASA 22, 1927), without continuity correction.

    For n scores anywhere in [0, 1], `successes` is their sum: the interval is then wider than necessary, because such a
    score varies at most as much as a proportion of the same mean. Raises PromptOrTuneError unless 0 <= successes <= n.
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
    """Compute the percentile bootstrap interval of a mean (Efron 1979) from 10,000 resamples drawn with `seed`.

    Raises PromptOrTuneError for no values.
    """
    if not len(values):
        raise PromptOrTuneError("A mean of no values is undefined: at least one problem needs a score.")
    sample = np.asarray(values, dtype=np.float64)
    return Interval(float(sample.mean()), *_bootstrap_interval(sample, seed, confidence))


def paired_bootstrap(
    a: Mapping[str, float], b: Mapping[str, float], seed: int = 0, confidence: float = CONFIDENCE
) -> PairedDifference:
    """Compute the mean difference a - b over problems with its paired bootstrap interval; keys are problem ids.

    p is that of the sign-flip test (Fisher's randomisation test for pairs), under which each pair is equally likely to
    have come out the other way round. A p taken from the bootstrap itself would be far too small for few problems: with
    four differences of one sign it is 0.0002, whereas no paired test can go below 0.125. Raises PromptOrTuneError for
    no problems, or for different ones.
    """
    differences = np.asarray(_differences(a, b), dtype=np.float64)
    low, high = _bootstrap_interval(differences, seed, confidence)
    p = _sign_flip_p(differences[differences != 0], seed)
    return PairedDifference(float(differences.mean()), low, high, p, len(differences))


def mcnemar_test(a: Mapping[str, bool], b: Mapping[str, bool]) -> McNemar:
    """Run McNemar's exact test (McNemar 1947): a binomial test over the problems that exactly one method solved."""
    from scipy.stats import binomtest

    _require_same_problems(a, b)
    only_a = sum(bool(a[problem]) and not b[problem] for problem in a)
    only_b = sum(bool(b[problem]) and not a[problem] for problem in a)
    if only_a + only_b == 0:
        return McNemar(0, 0, 1.0)
    return McNemar(only_a, only_b, float(binomtest(only_a, only_a + only_b, 0.5).pvalue))


def holm_correction(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values by Holm's step-down method (Scand. J. Statist. 6, 1979); return them in the order given."""
    order = sorted(range(len(p_values)), key=lambda at: p_values[at])
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, at in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[at]))
        adjusted[at] = highest
    return adjusted


def _bootstrap_interval(sample: NDArray[np.float64], seed: int, confidence: float) -> tuple[float, float]:
    """Return the ends of the percentile bootstrap interval of the mean of `sample`, shape (n,)."""
    from scipy.stats import bootstrap

    if len(sample) == 1:  # scipy refuses a single value
        return float(sample[0]), float(sample[0])
    interval = bootstrap(
        (sample,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, _MAX_CHUNK_CELLS // len(sample)),
        confidence_level=confidence,
        method="percentile",
        rng=seed,
    ).confidence_interval
    return float(interval.low), float(interval.high)


def _sign_flip_p(differences: NDArray[np.float64], seed: int) -> float:
    """Compute the two-sided p of the sign-flip test on nonzero `differences`, shape (n,).

    Exact for at most _MAX_EXACT_PAIRS differences, else over RESAMPLES random sign patterns and the observed one.
    """
    n = len(differences)
    if n == 0:
        return 1.0
    observed = abs(differences.sum()) - 1e-9  # sums that are equal except for rounding count as equal
    if n <= _MAX_EXACT_PAIRS:
        bits = np.arange(2**n)[:, None] >> np.arange(n) & 1
        return float((np.abs((2 * bits - 1) @ differences) >= observed).mean())
    generator = np.random.default_rng(seed)
    rows = max(1, _MAX_CHUNK_CELLS // n)
    extreme = 0
    for start in range(0, RESAMPLES, rows):
        signs = generator.integers(0, 2, (min(rows, RESAMPLES - start), n)) * 2 - 1
        extreme += int((np.abs(signs @ differences) >= observed).sum())
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
