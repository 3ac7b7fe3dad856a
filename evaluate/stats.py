"""Statistics: metrics of a method with intervals, paired tests, and which difference a number of problems can show.

Proportions (EM@k, parse rate) get Wilson's interval, means (CodeBLEU) a bootstrap interval. Two methods are compared
on the same problems: a paired bootstrap gives the interval of the difference, a sign-flip test its p, McNemar's exact
test the p of yes-or-no scores; Holm's method corrects all tests of one table. Results over different problems raise
an error.

The bootstrap and the binomial test are scipy's. Wilson's interval is ours because scipy's takes whole successes only,
the sign-flip test because scipy's is two to four times slower and draws other signs for the same seed.

Metrics and cost of a method: each metric's mean over problems with its interval, and tokens, seconds and memory. Costs
are means over the problems that were answered; a failure costs nothing and would make its method look cheap:

- prompt tokens: what the base reads, examples included, without an adapter's virtual tokens;
- tokens: those of the first answer; `generated` counts every sample or beam that was returned, also those with the same
  code;
- seconds: wall time from a batch's start to its end, divided by its problems. It depends on the machine, the batch and
  other load: compare it within one run only;
- tokens per second: all generated tokens divided by all seconds;
- peak memory, of the method and not a mean: on a GPU the most that torch had allocated at once
  (`torch.cuda.max_memory_allocated`), on a CPU the process's largest resident set (VmHWM of proc(5)), base included.

Power: which difference between two methods a number of problems can show, and how many problems one needs. Two methods
answer the same n problems, and each answer is right or wrong. A win is a problem that only the first one solves. All
figures assume that it loses none, so they are what n can show at best; with losses it takes more. The test is the exact
sign test, which McNemar's and the sign-flip test are for such scores; with several comparisons in
one table Holm's method divides the level by their number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from errors import PromptOrTuneError
from evaluate.results import Result

RESAMPLES = 10_000
CONFIDENCE = 0.95
_MAX_EXACT_PAIRS = 13  # 2**13 sign patterns are fewer than RESAMPLES: all of them are tried
_MAX_CHUNK_CELLS = 2_000_000  # random numbers drawn at a time, which bounds memory
# The display order of metrics; those with @k are ordered by k.
_DISPLAY_METRICS = (
    "tests",
    "pass",
    "em",
    "em_tree",
    "codebleu",
    "codebleu.ngram",
    "codebleu.weighted_ngram",
    "codebleu.syntax",
    "codebleu.dataflow",
    "codebleu-pypi",
    "parses",
)
_METRIC_TITLES = {
    "tests": "tests passed",
    "pass": "Pass",
    "em": "EM",
    "em_tree": "tree",
    "codebleu": "CodeBLEU",
    "codebleu.ngram": "n-gram",
    "codebleu.weighted_ngram": "weighted n-gram",
    "codebleu.syntax": "syntax",
    "codebleu.dataflow": "data flow",
    "codebleu-pypi": "codebleu-pypi",
    "parses": "parses",
}
_BINARY_METRICS = ("em", "em_tree", "parses")
SIGNIFICANCE_LEVEL = 0.05
POWER = 0.8
_MAX_PROBLEMS = 1_000_000


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


@dataclass(frozen=True)
class MetricSummary:
    """A metric's mean over the n problems that have it, with its 95 % interval.

    The interval is Wilson's if every problem scores 0 or 1, else a bootstrap interval. If all problems have the same
    score, a bootstrap interval would have no width and look like certainty: Wilson's, which is then too wide, is used.
    """

    metric: str
    n: int
    interval: Interval
    kind: Literal["wilson", "bootstrap"]


def summarize(results: Sequence[Result], metric: str, seed: int) -> MetricSummary | None:
    """Compute the metric's mean and interval over all results that have it; None if none has."""
    values = metric_values(results, metric)
    if not values:
        return None
    scores = list(values.values())
    if is_binary_metric(metric, scores) or min(scores) == max(scores):
        # Rounding can make the sum of n ones, or of n equal fractions, slightly larger than n.
        return MetricSummary(metric, len(scores), wilson_interval(min(sum(scores), len(scores)), len(scores)), "wilson")
    return MetricSummary(metric, len(scores), bootstrap_mean(scores, seed), "bootstrap")


def metric_values(results: Sequence[Result], metric: str) -> dict[str, float]:
    """Return the metric's value for each problem that has one."""
    values = ((result.problem, result.scores.get(metric)) for result in results)
    return {problem: value for problem, value in values if value is not None}


def is_binary_metric(metric: str, values: Sequence[float]) -> bool:
    """Return whether each problem scores 0 or 1, so that McNemar's test and Wilson's interval apply."""
    name = metric.partition("@")[0]
    return name in _BINARY_METRICS or (name == "pass" and all(value in (0.0, 1.0) for value in values))


def available_metrics(results: Sequence[Result]) -> list[str]:
    """Return the metrics that at least one result has, in display order."""
    found = {metric for result in results for metric, value in result.scores.items() if value is not None}
    return sorted(found, key=_metric_sort_key)


def metric_title(metric: str) -> str:
    """Return a metric's display name: 'EM@10' for 'em@10'."""
    name, at, k = metric.partition("@")
    return _METRIC_TITLES.get(name, name) + at + k


def _metric_sort_key(metric: str) -> tuple[int, int, str]:
    name, _, k = metric.partition("@")
    rank = _DISPLAY_METRICS.index(name) if name in _DISPLAY_METRICS else len(_DISPLAY_METRICS)
    return rank, int(k) if re.fullmatch(r"\d+", k) else 0, name


@dataclass(frozen=True)
class Cost:
    """Means over the answered problems, and the method's peak memory; 0 or None if nothing was measured."""

    seconds: float
    prompt_tokens: float
    tokens: float
    generated: float
    tokens_per_second: float
    peak_memory_bytes: int | None


def summarize_cost(results: Sequence[Result], method_record: Mapping[str, Any]) -> Cost:
    """Compute the cost of a method's results; `method_record` is the run's record of the method."""
    answered = [result for result in results if result.error is None]
    generated = [count_generated_tokens(result) for result in answered]
    seconds = sum(result.seconds for result in answered)
    return Cost(
        _mean([result.seconds for result in answered]),
        _mean([result.prompt_tokens for result in answered]),
        _mean([result.tokens for result in answered]),
        _mean(generated),
        sum(generated) / seconds if seconds > 0 else 0.0,
        method_record.get("peak_memory_bytes"),
    )


def count_generated_tokens(result: Result) -> int:
    """Count the tokens of all samples or beams, including those with the same code."""
    return sum(int(candidate["tokens"]) * int(candidate.get("times", 1)) for candidate in result.candidates)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def smallest_significant_wins(comparisons: int = 1, level: float = SIGNIFICANCE_LEVEL) -> int:
    """Return the smallest number of wins, without a loss, whose two-sided p is at most `level` / `comparisons`."""
    return math.ceil(1 - math.log2(level / comparisons))


def detectable_difference(
    n: int, comparisons: int = 1, power: float = POWER, level: float = SIGNIFICANCE_LEVEL
) -> float | None:
    """Return the smallest difference, a share of problems in (0, 1], that n problems show with probability `power`.

    None if even n wins out of n are not significant.
    """
    from scipy.optimize import brentq
    from scipy.stats import binom

    wins = smallest_significant_wins(comparisons, level)
    if n < wins:
        return None
    if n == wins:
        return float(power ** (1 / n))
    return float(brentq(lambda share: binom.sf(wins - 1, n, share) - power, 0.0, 1.0))


def needed_problems(
    difference: float, comparisons: int = 1, power: float = POWER, level: float = SIGNIFICANCE_LEVEL
) -> int:
    """Return the smallest n whose `detectable_difference` is at most `difference`, a share in (0, 1].

    Raises ValueError for a difference outside of this range.
    """
    if not 0 < difference <= 1:
        raise ValueError("difference must be above 0 and at most 1")
    from scipy.stats import binom

    wins = smallest_significant_wins(comparisons, level)
    low, high = wins, wins
    while binom.sf(wins - 1, high, difference) < power and high < _MAX_PROBLEMS:
        low, high = high, 2 * high
    while low < high:  # the power grows with n
        middle = (low + high) // 2
        if binom.sf(wins - 1, middle, difference) < power:
            low = middle + 1
        else:
            high = middle
    return low


def power_text(n: int, comparisons: int = 1) -> str:
    """Return in a sentence what n problems can show in a table with so many comparisons."""
    wins, difference = smallest_significant_wins(comparisons), detectable_difference(n, comparisons)
    if difference is None:
        return f"{n} rows can show no difference: even {n} wins without a loss may be chance. It takes {wins} wins."
    return (
        f"{n} rows can show no difference below {wins} wins ({100 * wins / n:.0f} points); a true difference of "
        f"{100 * difference:.0f} points is shown in four of five repeats, if nothing is lost."
    )
