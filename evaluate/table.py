"""Table of methods: one row per method with intervals and cost, and pairwise comparisons of methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from common.format import format_gigabytes, format_p_value, format_percent, format_points, format_share, text_table
from errors import PromptOrTuneError, unknown_name_error
from evaluate.aggregate import (
    Cost,
    MetricSummary,
    available_metrics,
    is_binary_metric,
    metric_title,
    metric_values,
    summarize,
    summarize_cost,
)
from evaluate.completeness import complete_methods, require_complete
from evaluate.power import SIGNIFICANCE_LEVEL
from evaluate.results import Result, Run
from evaluate.stats import Interval, holm_correction, mcnemar_test, paired_bootstrap

BASELINE_METHOD = "zero-shot"
_MIN_PROBLEMS = 30  # with fewer, a percentile bootstrap interval covers less than its nominal level


@dataclass(frozen=True)
class MethodRow:
    """A method's metrics and cost over its n problems.

    `metrics` has every metric that at least one problem has; `k` is the number of candidates requested. `errors` counts
    prompts that could not be answered, which score 0; `undefined_flow` the references without data flow.
    """

    method: str
    n: int
    k: int
    metrics: Mapping[str, MetricSummary]
    cost: Cost
    errors: int
    undefined_flow: int

    def interval(self, metric: str) -> Interval | None:
        """Return the metric's value with its interval; None if no problem has it."""
        found = self.metrics.get(metric)
        return found.interval if found else None


@dataclass(frozen=True)
class MethodComparison:
    """`a` minus `b` in one metric on the same problems; `p` of McNemar's exact test for EM, else of the sign-flip test.

    `corrected` is p after Holm's correction over all pairs of the table.
    """

    a: str
    b: str
    metric: str
    difference: Interval
    n: int
    test: str
    p: float
    corrected: float = 1.0


def method_rows(run: Run) -> list[MethodRow]:
    """Return one row for each method that has a scored result for every problem, in the run's order."""
    k, seed = int(run.settings["decoding"]["candidates"]), int(run.settings["seed"])
    return [_method_row(method, run.results(method), k, seed, run.methods[method]) for method in complete_methods(run)]


def compare_methods(run: Run, pairs: Sequence[tuple[str, str]] | None = None) -> list[MethodComparison]:
    """Compare pairs of methods on the run's problems in the headline metrics, with Holm's correction over all of them.

    By default every complete method with zero-shot, and the last with the first. Raises UnknownNameError for a method
    that the run does not have and PromptOrTuneError for one that lacks answers or scores.
    """
    methods = [method for method in run.methods if run.results(method)]
    for name in (name for pair in pairs or () for name in pair):
        if name not in methods:
            raise unknown_name_error("method", name, methods)
    seed = int(run.settings["seed"])
    chosen = _default_pairs(complete_methods(run)) if pairs is None else pairs
    require_complete(run, (name for pair in chosen for name in pair))
    return apply_holm_correction(
        [pair for a, b in chosen for pair in compare_results(run.results(a), run.results(b), a, b, seed)]
    )


def compare_runs(runs: Sequence[Run]) -> list[MethodComparison]:
    """Compare methods of the same name in the first run and in each other run.

    Raises PromptOrTuneError if the runs are over different problems, or a method lacks answers or scores in one.
    """
    first = runs[0]
    pairs: list[MethodComparison] = []
    for run in runs[1:]:
        if run.settings["data_digest"] != first.settings["data_digest"]:
            raise PromptOrTuneError(
                f"{run.path} and {first.path} are over different problems and cannot be compared: "
                "run both with the same --data, --split and --limit."
            )
        shared = [name for name in run.methods if name in first.methods]
        require_complete(run, shared)
        require_complete(first, shared)
        for tested, other in ((run, first), (first, run)) if shared else ():
            if "tests" in tested.scored_with and "tests" not in other.scored_with:
                raise PromptOrTuneError(
                    f"{tested.path} has test results and {other.path} has none, so they are not compared: "
                    f"run `python -m evaluate score {other.path}` first."
                )
        for method in shared:
            labels = (f"{method} ({run.path.stem})", f"{method} ({first.path.stem})")
            pairs += compare_results(run.results(method), first.results(method), *labels, int(first.settings["seed"]))
    return apply_holm_correction(pairs)


def compare_results(
    a: Sequence[Result],
    b: Sequence[Result],
    name_a: str,
    name_b: str,
    seed: int,
    metrics: Sequence[str] | None = None,
) -> list[MethodComparison]:
    """Compare two methods in each of `metrics` (default: the headline metrics), without Holm's correction.

    A metric that neither has is left out. Raises PromptOrTuneError if they answered different problems.
    """
    pairs: list[MethodComparison] = []
    for metric in headline_metrics([*a, *b]) if metrics is None else metrics:
        left, right = metric_values(a, metric), metric_values(b, metric)
        if not left and not right:
            continue
        found = paired_bootstrap(left, right, seed)
        test, p = "sign flip", found.p
        if is_binary_metric(metric, [*left.values(), *right.values()]):
            solved = [{problem: value == 1.0 for problem, value in side.items()} for side in (left, right)]
            test, p = "McNemar", mcnemar_test(*solved).p
        pairs.append(
            MethodComparison(name_a, name_b, metric, Interval(found.value, found.low, found.high), found.n, test, p)
        )
    return pairs


def apply_holm_correction(comparisons: Sequence[MethodComparison]) -> list[MethodComparison]:
    """Return the comparisons with `corrected` set by Holm's method over all of them."""
    return [
        replace(pair, corrected=p)
        for pair, p in zip(comparisons, holm_correction([pair.p for pair in comparisons]), strict=True)
    ]


def headline_metrics(results: Sequence[Result]) -> tuple[str, ...]:
    """Return the metrics to compare methods in: tests, if they ran, else exact match; and CodeBLEU."""
    tests_ran = any("tests" in result.scores for result in results)
    return ("tests", "pass@1", "codebleu") if tests_ran else ("em@1", "codebleu")


def table_metrics(rows: Sequence[MethodRow]) -> list[str]:
    """Return the table's metrics: those of tests, if they ran, else of exact match; CodeBLEU and the parse rate."""
    available = [metric for row in rows for metric in row.metrics]
    k = max((row.k for row in rows), default=1)
    by_tests = ["tests", "pass@1", f"pass@{k}"]
    by_reference = ["em@1", f"em@{k}", "em_tree@1"]
    columns = [*(by_tests if "tests" in available else by_reference), "codebleu", "parses"]
    return [metric for metric in dict.fromkeys(columns) if metric in available]


def render_methods(rows: Sequence[MethodRow], markdown: bool = False) -> str:
    """Return the table of methods as text: scores in percent with 95 % intervals, then costs."""
    metrics = table_metrics(rows)
    errors = any(row.errors for row in rows)
    memory = any(row.cost.peak_memory_bytes for row in rows)
    header = ["method", "n", *map(metric_title, metrics), "s/problem", "tokens in", "out", "tokens/s"]
    lines = [
        [
            row.method,
            str(row.n),
            *(_metric_cell(row, metric) for metric in metrics),
            f"{row.cost.seconds:.2f}",
            f"{row.cost.prompt_tokens:.0f}",
            f"{row.cost.tokens:.0f}",
            f"{row.cost.tokens_per_second:.0f}",
            *([format_gigabytes(row.cost.peak_memory_bytes)] if memory else []),
            *([str(row.errors)] if errors else []),
        ]
        for row in rows
    ]
    return text_table([*header, *(["memory"] if memory else []), *(["errors"] if errors else [])], lines, markdown)


def render_comparisons(comparisons: Sequence[MethodComparison], markdown: bool = False) -> str:
    """Return the comparisons as a text table in percentage points; `*` marks a corrected p below 0.05."""
    header = ["a", "b", "metric", "a - b, points", "test", "p", "p (Holm)"]
    lines = [
        [
            pair.a,
            pair.b,
            metric_title(pair.metric),
            format_points(pair.difference),
            pair.test,
            format_p_value(pair.p),
            format_p_value(pair.corrected) + (" *" if pair.corrected < SIGNIFICANCE_LEVEL else ""),
        ]
        for pair in comparisons
    ]
    return text_table(header, lines, markdown)


def table_footnote(rows: Sequence[MethodRow]) -> str:
    """Return the notes that explain the table."""
    if not rows:
        return ""
    row = rows[0]
    notes = [
        "Intervals: Wilson 95 % for shares of problems (EM, trees, parses, Pass at all samples), bootstrap 95 % else."
    ]
    if "codebleu" in row.metrics:
        notes.append(
            f"CodeBLEU: first candidate; data flow is undefined for {row.undefined_flow} of {row.n} references."
        )
    if "em_tree@1" in table_metrics(rows):
        notes.append("tree@1: equal syntax trees.")
    if "tests" in row.metrics:
        notes.append("tests passed: mean over problems of the mean over samples of the share of tests passed.")
    notes.append("A prompt that does not fit the context scores 0.")
    if row.n < _MIN_PROBLEMS:
        notes.append(f"With {row.n} problems bootstrap intervals are too narrow: take {_MIN_PROBLEMS} or more.")
    return " ".join(notes)


def _default_pairs(methods: Sequence[str]) -> list[tuple[str, str]]:
    pairs = [
        (method, BASELINE_METHOD) for method in methods if method != BASELINE_METHOD and BASELINE_METHOD in methods
    ]
    if len(methods) > 1 and (methods[-1], methods[0]) not in pairs and (methods[0], methods[-1]) not in pairs:
        pairs.append((methods[-1], methods[0]))
    return pairs


def _method_row(
    method: str, results: Sequence[Result], k: int, seed: int, method_record: Mapping[str, Any]
) -> MethodRow:
    scored = [result for result in results if result.scores.get("codebleu") is not None]
    found = (summarize(results, metric, seed) for metric in available_metrics(results))
    return MethodRow(
        method,
        len(results),
        k,
        {each.metric: each for each in found if each is not None},
        summarize_cost(results, method_record),
        sum(result.error is not None for result in results),
        sum(result.scores.get("codebleu.dataflow") is None for result in scored),
    )


def _metric_cell(row: MethodRow, metric: str) -> str:
    interval = row.interval(metric)
    return format_share(interval) if metric in ("em_tree@1", "parses") else format_percent(interval)
