"""One metric over a method's results: its value, its interval, and the kind of both."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from evaluate.results import Result
from evaluate.stats import Interval, bootstrap_mean, wilson_interval

# The order in which metrics are shown; those with an @k stand in the order of k.
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


@dataclass(frozen=True)
class MetricSummary:
    """A metric's mean over the n problems that have it, with its 95 % interval.

    The interval is Wilson's where every problem counts 0 or 1, else a bootstrap one. Where all problems have the same
    score resampling can show no spread, and an interval of no width would look like certainty: Wilson's, which is too
    wide then, stands in.
    """

    metric: str
    n: int
    interval: Interval
    kind: Literal["wilson", "bootstrap"]


def summarize(results: Sequence[Result], metric: str, seed: int) -> MetricSummary | None:
    """The metric over all results that have it; None where none has."""
    values = metric_values(results, metric)
    if not values:
        return None
    scores = list(values.values())
    if is_binary_metric(metric, scores) or min(scores) == max(scores):
        # Rounding can carry the sum of n ones, or of n equal fractions, a hair past n.
        return MetricSummary(metric, len(scores), wilson_interval(min(sum(scores), len(scores)), len(scores)), "wilson")
    return MetricSummary(metric, len(scores), bootstrap_mean(scores, seed), "bootstrap")


def metric_values(results: Sequence[Result], metric: str) -> dict[str, float]:
    """The metric by problem, without the problems for which it is undefined."""
    values = ((result.problem, result.scores.get(metric)) for result in results)
    return {problem: value for problem, value in values if value is not None}


def is_binary_metric(metric: str, values: Sequence[float]) -> bool:
    """Whether the metric's mean is a share of problems: each is solved or not, so that McNemar and Wilson apply."""
    name = metric.partition("@")[0]
    return name in _BINARY_METRICS or (name == "pass" and all(value in (0.0, 1.0) for value in values))


def available_metrics(results: Sequence[Result]) -> list[str]:
    """All metrics that at least one result has, in the order in which they are shown."""
    found = {metric for result in results for metric, value in result.scores.items() if value is not None}
    return sorted(found, key=_metric_sort_key)


def metric_title(metric: str) -> str:
    """A metric as people write it: 'em@10' is EM@10."""
    name, at, k = metric.partition("@")
    return _METRIC_TITLES.get(name, name) + at + k


def _metric_sort_key(metric: str) -> tuple[int, int, str]:
    name, _, k = metric.partition("@")
    known = _DISPLAY_METRICS.index(name) if name in _DISPLAY_METRICS else len(_DISPLAY_METRICS)
    return known, int(k) if re.fullmatch(r"\d+", k) else 0, name
