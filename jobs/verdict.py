"""What the scores of a job say, in words and numbers: who beats whom, or that no difference was shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from evaluate.measures import metric_title, metric_values
from evaluate.results import Run
from evaluate.run import package_versions
from evaluate.stats import PairedDifference, holm_correction, paired_bootstrap
from jobs.job import ScoreComparison, Verdict
from jobs.scoring import BASELINE_METHODS, COMPARED_METRICS

# With fewer rows even a difference on each of them proves nothing: of four signs all are the same one time in eight.
MIN_ROWS = 5
SIGNIFICANCE_LEVEL = 0.05
_METHOD_LABELS = {"zero-shot": "zero-shot", "rag-8": "RAG-8"}


def make_verdict(run: Run, adapter: str, technique: str) -> Verdict:
    """The adapter against each rival, by each metric, over the rows of this run, which must be scored.

    `technique` is what people call it, such as LoRA. Intervals are paired bootstraps, p-values of sign-flip tests are
    Holm-corrected over all comparisons here (evaluate.stats).
    """
    seed = int(run.settings["seed"])
    pairs = [(metric, rival) for rival in BASELINE_METHODS for metric in COMPARED_METRICS]
    scores = {
        (metric, name): metric_values(run.results(name), metric)
        for metric in COMPARED_METRICS
        for name in (*BASELINE_METHODS, adapter)
    }
    found = [paired_bootstrap(scores[metric, adapter], scores[metric, rival], seed) for metric, rival in pairs]
    compared = tuple(
        _make_comparison(metric, rival, scores[metric, adapter], scores[metric, rival], difference, p)
        for (metric, rival), difference, p in zip(
            pairs, found, holm_correction([each.p for each in found]), strict=True
        )
    )
    n = len(run.problems)
    return Verdict(verdict_text(compared, technique, n), n, compared, _verdict_provenance(run, adapter, seed))


def verdict_text(compared: Sequence[ScoreComparison], technique: str, n: int) -> str:
    """The finding: a sentence for each rival, or one that says that there are too few rows for any."""
    if n < MIN_ROWS:
        return _too_few_rows_text(compared, technique, n)
    return " ".join(
        _baseline_text([each for each in compared if each.other == rival], technique) for rival in BASELINE_METHODS
    )


def is_significant(compared: ScoreComparison) -> bool:
    """Whether the difference is more than chance: its interval leaves out 0 and the corrected p is small."""
    return (compared.low > 0 or compared.high < 0) and compared.p < SIGNIFICANCE_LEVEL


def _make_comparison(
    metric: str,
    baseline: str,
    adapter_values: Mapping[str, float],
    baseline_values: Mapping[str, float],
    difference: PairedDifference,
    p: float,
) -> ScoreComparison:
    return ScoreComparison(
        metric=metric.partition("@")[0],
        other=baseline,
        adapter_score=sum(adapter_values.values()) / len(adapter_values),
        other_score=sum(baseline_values.values()) / len(baseline_values),
        value=difference.value,
        low=difference.low,
        high=difference.high,
        p=p,
        n=difference.n,
    )


def _baseline_text(compared: Sequence[ScoreComparison], technique: str) -> str:
    """One rival: what was shown first, then what was not."""
    rival, n = _METHOD_LABELS[compared[0].other], compared[0].n
    better = [each for each in compared if is_significant(each) and each.value > 0]
    worse = [each for each in compared if is_significant(each) and each.value < 0]
    open_ = [each for each in compared if not is_significant(each)]
    parts = []
    if better:
        parts.append(
            f"{technique} beats {rival} by {_join_list([_format_margin(each, 1) for each in better])} (n = {n})."
        )
    if worse:
        parts.append(
            f"{rival} beats {technique} by {_join_list([_format_margin(each, -1) for each in worse])} (n = {n})."
        )
    if open_:
        parts.append(
            f"No difference shown between {technique} and {rival} at n = {n}: "
            f"{_join_list([_format_margin(each, 1) for each in open_])}."
        )
    return " ".join(parts)


def _format_margin(compared: ScoreComparison, sign: int) -> str:
    """A difference with its interval, seen from the side that `sign` says."""
    name = metric_title(_format_scores(compared))
    if compared.low == compared.high == 0:
        return f"the same {name} on every row"  # an interval of no width would look like certainty
    low, high = sorted((sign * compared.low, sign * compared.high))
    value = format_points(sign * compared.value)
    unit = "point" if value in ("1", "-1") else "points"
    # With few rows the interval is too narrow: the test decides, and says so.
    doubt = f" but p = {compared.p:.2f}" if low * high > 0 and not is_significant(compared) else ""
    return f"{value} {unit} of {name}, 95 % interval {format_points(low)} to {format_points(high)}{doubt}"


def format_points(difference: float) -> str:
    """A difference of shares in percentage points: '12', '-2.5', '0'."""
    text = f"{100 * difference:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


def _format_scores(compared: ScoreComparison) -> str:
    return next(metric for metric in COMPARED_METRICS if metric.partition("@")[0] == compared.metric)


def _join_list(parts: Sequence[str]) -> str:
    return ", and ".join(parts)


def _too_few_rows_text(compared: Sequence[ScoreComparison], technique: str, n: int) -> str:
    exact = {each.other: each for each in compared if each.metric == "em"}
    ours = round(next(iter(exact.values())).adapter_score * n)
    rivals = " and ".join(f"{_METHOD_LABELS[name]} {round(each.other_score * n)}" for name, each in exact.items())
    rows = "1 row was" if n == 1 else f"{n} rows were"
    return (
        f"Only {rows} held out, too few to say which method is better (exactly right: {technique} {ours}, {rivals}): "
        "train with more rows to find out."
    )


def _verdict_provenance(run: Run, adapter: str, seed: int) -> dict[str, Any]:
    settings = run.settings
    names = ("base_id", "base_revision", "quantization", "device", "data", "split", "n", "data_digest", "decoding")
    return {
        **{name: settings[name] for name in names},
        "pool_digest": run.methods["rag-8"]["pool_digest"],
        "adapter_digest": run.methods[adapter]["adapter_digest"],
        "methods": [*BASELINE_METHODS, adapter],
        "seed": seed,
        "scored_with": run.scored_with,
        "versions": package_versions(),
        "scored": datetime.now(UTC).isoformat(timespec="seconds"),
    }
