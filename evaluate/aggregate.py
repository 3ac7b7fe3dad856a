"""Metrics and cost of a method: each metric's mean over problems with its interval, and tokens, seconds and memory.

Costs are means over the problems that were answered; a failure costs nothing and would make its method look cheap:

- prompt tokens: what the base reads, examples included, without an adapter's virtual tokens;
- tokens: those of the first answer; `generated` counts every sample or beam that was returned, also those with the same
  code;
- seconds: wall time from a batch's start to its end, divided by its problems. It depends on the machine, the batch and
  other load: compare it within one run only;
- tokens per second: all generated tokens divided by all seconds;
- peak memory, of the method and not a mean: on a GPU the most that torch had allocated at once
  (`torch.cuda.max_memory_allocated`), on a CPU the process's largest resident set (VmHWM of proc(5)), base included.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from evaluate.results import Result
from evaluate.stats import Interval, bootstrap_mean, wilson_interval

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
