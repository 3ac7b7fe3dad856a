"""Metric over problems with interval; cost.

One metric over a method's results: its value, its interval, and the kind of both.

What a method costs: tokens, seconds and memory.

Definitions, each a mean over the problems that were answered (a failure costs nothing and would flatter its method):

- prompt tokens: what the base reads, examples included, without an adapter's virtual tokens;
- tokens: those of the first answer; `generated` counts every sample or beam that was returned, also where several said
  the same code;
- seconds: wall time from a batch's start to its end, divided by its problems. It depends on the machine, on the batch
  and on what else ran: compare it within one run only;
- tokens a second: all generated tokens by all seconds;
- peak memory, of the method and not a mean: on a GPU the most that torch had allocated at once
  (`torch.cuda.max_memory_allocated`), on a CPU the process's largest resident set (VmHWM of proc(5)), base included.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from evaluate.results import Result
from evaluate.stats import Interval, bootstrap_mean, wilson_interval

if TYPE_CHECKING:
    from evaluate.results import Result


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


@dataclass(frozen=True)
class Cost:
    """Means over the answered problems, and the method's peak of memory; 0 and None where nothing was measured."""

    seconds: float
    prompt_tokens: float
    tokens: float
    generated: float
    tokens_per_second: float
    peak_memory_bytes: int | None


def summarize_cost(results: Sequence[Result], method_record: Mapping[str, Any]) -> Cost:
    """The cost of a method's results; `method` is what its run knows of it."""
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
    """The tokens of all candidates, each as often as it was said."""
    return sum(int(candidate["tokens"]) * int(candidate.get("times", 1)) for candidate in result.candidates)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
