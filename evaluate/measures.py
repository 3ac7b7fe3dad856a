"""One metric over a method's results: its value, its interval, and the kind of both."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from evaluate.results import Result
from evaluate.stats import Interval, bootstrap_mean, wilson

# The order in which metrics are shown; those with an @k stand in the order of k.
_ORDER = (
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
_TITLES = {
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
_SHARES = ("em", "em_tree", "parses")


@dataclass(frozen=True)
class Measure:
    """A metric's mean over the n problems that have it, with its 95 % interval.

    The interval is Wilson's where every problem counts 0 or 1, else a bootstrap one. Where all problems have the same
    score resampling can show no spread, and an interval of no width would look like certainty: Wilson's, which is too
    wide then, stands in.
    """

    metric: str
    n: int
    interval: Interval
    kind: Literal["wilson", "bootstrap"]


def measure(results: Sequence[Result], metric: str, seed: int) -> Measure | None:
    """The metric over all results that have it; None where none has."""
    values = values_of(results, metric)
    if not values:
        return None
    scores = list(values.values())
    if counts_problems(metric, scores) or min(scores) == max(scores):
        # Rounding can carry the sum of n ones, or of n equal fractions, a hair past n.
        return Measure(metric, len(scores), wilson(min(sum(scores), len(scores)), len(scores)), "wilson")
    return Measure(metric, len(scores), bootstrap_mean(scores, seed), "bootstrap")


def values_of(results: Sequence[Result], metric: str) -> dict[str, float]:
    """The metric by problem, without the problems for which it is undefined."""
    values = ((result.problem, result.scores.get(metric)) for result in results)
    return {problem: value for problem, value in values if value is not None}


def counts_problems(metric: str, values: Sequence[float]) -> bool:
    """Whether the metric's mean is a share of problems: each is solved or not, so that McNemar and Wilson apply."""
    name = metric.partition("@")[0]
    return name in _SHARES or (name == "pass" and all(value in (0.0, 1.0) for value in values))


def metrics_of(results: Sequence[Result]) -> list[str]:
    """All metrics that at least one result has, in the order in which they are shown."""
    found = {metric for result in results for metric, value in result.scores.items() if value is not None}
    return sorted(found, key=_place)


def title(metric: str) -> str:
    """A metric as people write it: 'em@10' is EM@10."""
    name, at, k = metric.partition("@")
    return _TITLES.get(name, name) + at + k


def _place(metric: str) -> tuple[int, int, str]:
    name, _, k = metric.partition("@")
    known = _ORDER.index(name) if name in _ORDER else len(_ORDER)
    return known, int(k) if re.fullmatch(r"\d+", k) else 0, name
