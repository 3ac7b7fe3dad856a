"""Table of methods with intervals, cost and pairwise comparisons, and the recommendation that follows from it.

Recommendation: the method to use for such problems, if the scores of a run show one. All pairs of methods are compared
in one metric, Pass@1 if tests ran, else EM@1, and all p are corrected by Holm's method. A method is recommended if it
is better than zero-shot and no other method is better than it; of several such methods the one that costs least to
make: fixed examples (ICL), then retrieved ones (RAG), an adapter, an adapter with examples, and within a family fewer
examples. Without a real difference nothing is recommended in at least 95 of 100 repeats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from common.format import format_gigabytes, format_p_value, format_percent, format_points, format_share, text_table
from errors import PromptOrTuneError, unknown_name_error
from evaluate.failures import complete_methods, require_complete
from evaluate.results import Result, Run
from evaluate.stats import (
    SIGNIFICANCE_LEVEL,
    Cost,
    Interval,
    MetricSummary,
    available_metrics,
    detectable_difference,
    holm_correction,
    is_binary_metric,
    mcnemar_test,
    metric_title,
    metric_values,
    needed_problems,
    paired_bootstrap,
    power_text,
    summarize,
    summarize_cost,
)
from tasks.methods import FixedExamples, Method, parse_method

BASELINE_METHOD = "zero-shot"
_MIN_PROBLEMS = 30  # with fewer, a percentile bootstrap interval covers less than its nominal level
# From the cheapest to make: what a person does, by family.
ADVICE = {
    "zero-shot": "Prompt without examples",
    "icl": "Prompt with fixed examples",
    "rag": "Retrieve examples",
    "adapter": "Fine-tune",
    "adapter with examples": "Fine-tune, and put examples into the prompt",
}
_FAMILIES = tuple(ADVICE)


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


@dataclass(frozen=True)
class PairTest:
    """`a` minus `b` in the share of right answers, in [-1, 1], with p before and after Holm's correction."""

    a: str
    b: str
    difference: float
    p: float
    corrected: float


@dataclass(frozen=True)
class Recommendation:
    """The recommended method with its family (a key of ADVICE) and its adapter; None where nothing is recommended.

    `sentence` says why. `values` are the scores of all methods in `metric`, in [0, 1], over the same n problems, and
    `comparisons` all pairs, with corrected p. `detectable_difference` is the smallest difference, in [0, 1], that n
    problems show in four of five repeats; None if they cannot show any.
    """

    sentence: str
    method: str | None
    family: str | None
    adapter: str | None
    metric: str
    n: int
    values: Mapping[str, float]
    comparisons: Sequence[PairTest]
    detectable_difference: float | None


def recommend(run: Run) -> Recommendation | None:
    """Return the recommendation of a scored run; None unless it has zero-shot and another method with all answers."""
    names = complete_methods(run)
    if BASELINE_METHOD not in names or len(names) < 2:
        return None
    metric = next(name for name in headline_metrics(run.results(names[0])) if name in ("pass@1", "em@1"))
    scores = {name: metric_values(run.results(name), metric) for name in names}
    if not all(scores.values()):
        return None
    methods = {name: parse_method(name, _adapter_of(name)) for name in names}
    return choose(methods, scores, metric, int(run.settings["seed"]))


def _adapter_of(name: str) -> list[str]:
    """Return the adapter in the canonical name of a method, where it comes first; old runs do not store it apart."""
    first = name.partition("+")[0].partition("*")[0]
    return [] if first == BASELINE_METHOD else [first]


def choose(
    methods: Mapping[str, Method], scores: Mapping[str, Mapping[str, float]], metric: str, seed: int
) -> Recommendation:
    """Choose among methods by their scores of the same problems, as `recommend` does.

    `seed` is that of the sign-flip test, which compares shares of several samples; McNemar's compares right and wrong.
    """
    n = len(scores[BASELINE_METHOD])
    values = {name: sum(found.values()) / n for name, found in scores.items()}
    comparisons = _compare_pairs(scores, values, metric, seed)
    beats = {_winner_first(pair): pair for pair in comparisons if pair.corrected < SIGNIFICANCE_LEVEL}
    losers = {loser for _, loser in beats}
    others = [name for name in methods if name != BASELINE_METHOD]
    winners = [name for name in others if (name, BASELINE_METHOD) in beats and name not in losers]
    if not winners and all((BASELINE_METHOD, name) in beats for name in others):
        winners = [BASELINE_METHOD]
    chosen = min(winners, key=lambda name: _cost(methods[name]), default=None)
    if chosen is None:
        sentence = _no_recommendation(values, n, len(comparisons))
    else:
        sentence = _reason(chosen, methods, values, beats, metric, n)
    return Recommendation(
        sentence,
        chosen,
        None if chosen is None else family(methods[chosen]),
        None if chosen is None else methods[chosen].adapter,
        metric,
        n,
        dict(values),
        tuple(comparisons),
        detectable_difference(n, len(comparisons)),
    )


def _compare_pairs(
    scores: Mapping[str, Mapping[str, float]], values: Mapping[str, float], metric: str, seed: int
) -> list[PairTest]:
    pairs = list(combinations(scores, 2))
    if is_binary_metric(metric, [value for found in scores.values() for value in found.values()]):
        solved = {name: {id: value == 1.0 for id, value in found.items()} for name, found in scores.items()}
        p_values = [mcnemar_test(solved[a], solved[b]).p for a, b in pairs]
    else:
        p_values = [paired_bootstrap(scores[a], scores[b], seed).p for a, b in pairs]
    corrected = holm_correction(p_values)
    return [
        PairTest(a, b, values[a] - values[b], p, holm)
        for (a, b), p, holm in zip(pairs, p_values, corrected, strict=True)
    ]


def family(method: Method) -> str:
    """Return the family of a method, a key of ADVICE."""
    if method.adapter is not None:
        return "adapter with examples" if method.examples.k else "adapter"
    if not method.examples.k:
        return "zero-shot"
    return "icl" if isinstance(method.examples, FixedExamples) else "rag"


def _cost(method: Method) -> tuple[int, int]:
    return _FAMILIES.index(family(method)), method.examples.k


def _winner_first(pair: PairTest) -> tuple[str, str]:
    return (pair.a, pair.b) if pair.difference > 0 else (pair.b, pair.a)


def _reason(
    chosen: str,
    methods: Mapping[str, Method],
    values: Mapping[str, float],
    beats: Mapping[tuple[str, str], PairTest],
    metric: str,
    n: int,
) -> str:
    title = f"{ADVICE[family(methods[chosen])]}: {chosen} is right on {100 * values[chosen]:.1f} % of {n} rows"
    beaten = [
        f"{loser} on {100 * values[loser]:.1f} % (p = {format_p_value(pair.corrected)})".replace("= <", "< ")
        for (winner, loser), pair in beats.items()
        if winner == chosen
    ]
    equal = [name for name in methods if name != chosen and (chosen, name) not in beats]
    rest = f" No difference is shown to {', '.join(equal)}, which cost more or do not beat zero-shot." if equal else ""
    return f"{title} ({metric_title(metric)}), {', '.join(beaten)}.{rest}"


def _no_recommendation(values: Mapping[str, float], n: int, comparisons: int) -> str:
    best = max((name for name in values if name != BASELINE_METHOD), key=values.__getitem__)
    difference = values[best] - values[BASELINE_METHOD]
    text = f"Nothing is recommended: no method is shown to be better than zero-shot. {power_text(n, comparisons)}"
    if difference <= 0:
        return f"{text} None was right more often than zero-shot."
    needed = max(n + 1, needed_problems(difference, comparisons))
    return (
        f"{text} The largest difference seen, {100 * difference:.1f} points of {best}, would take about {needed:,} "
        "rows, if it is real and nothing is lost."
    )
