"""Held-out scoring of a finished adapter against zero-shot and RAG, and the verdict on the scores.

The scores are a run file of `python -m evaluate`: after an interruption the scoring continues from the last batch, and
`python -m evaluate report scores.jsonl` shows every answer.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.files import ProgressFn
from errors import PromptOrTuneError
from evaluate.failures import DEFAULT_RETRIES, RetryPolicy, require_complete
from evaluate.generate import (
    EngineProtocol,
    EvaluationPlan,
    generate_results,
    make_sampling_params,
    package_versions,
    parse_methods,
)
from evaluate.journal import diff_settings, to_json_types
from evaluate.metrics.basic import add_in_order
from evaluate.results import Run, open_run, problem_record, read_run, scores_path
from evaluate.scoring import score_run
from evaluate.stats import (
    SIGNIFICANCE_LEVEL,
    PairedDifference,
    holm_correction,
    metric_title,
    metric_values,
    paired_bootstrap,
    power_text,
    summarize,
)
from jobs.job import ScoreComparison, ServingOptions, Verdict, model_options
from serve.engine.build import build_private_engine
from tasks.datasets.registry import dataset_digest
from tasks.problem import Example, Problem
from train.config import TrainConfig
from train.data import load_training_data

if TYPE_CHECKING:
    from serve.engine.llm_engine import LLMEngine as ServingEngine

BASELINE_METHODS = ("zero-shot", "rag-8")
COMPARED_METRICS = ("em@1", "codebleu")
SPLIT_NAME = "held-out rows"
MAX_ROWS = 100
_BATCH_SIZE = 16
_PROGRESS_INTERVAL_SECONDS = 1.0
# With four rows, equal signs in all of them happen by chance one time in eight, so no test can be significant.
MIN_ROWS = 5
_METHOD_LABELS = {"zero-shot": "zero-shot", "rag-8": "RAG-8"}


@dataclass(frozen=True)
class HeldOutRows:
    """The rows that a job is scored on, and its training rows, from which RAG takes its examples."""

    name: str
    problems: Sequence[Problem]
    example_pool: Sequence[Example]


def load_held_out_rows(config: TrainConfig) -> HeldOutRows:
    """Return the rows that the job's training holds out; of more than MAX_ROWS a sample with the job's seed."""
    data = load_training_data(config)
    rows = data.validation
    if len(rows) > MAX_ROWS:
        rows = [rows[index] for index in sorted(random.Random(config.seed).sample(range(len(rows)), MAX_ROWS))]
    return HeldOutRows(data.name, [Problem(row.id, row.intent, row.code) for row in rows], data.train)


def build_scoring_engine(
    serving: ServingOptions, home: Path, example_pool: Sequence[Example], report: ProgressFn
) -> ServingEngine:
    """Return an engine with the base that the app serves and this home's adapters; all pools are `example_pool`."""
    return build_private_engine(model_options(serving), [home / "adapters"], lambda _: example_pool, report)


def generate_and_score(
    engine: EngineProtocol,
    rows: HeldOutRows,
    adapter: str,
    path: Path,
    seed: int,
    max_new_tokens: int,
    report: ProgressFn,
    *,
    retries: RetryPolicy = DEFAULT_RETRIES,
) -> Run:
    """Generate greedily and score the answers of the adapter and the baselines; continues the run in the file.

    Raises EngineError if the engine still fails after `retries`; what was answered is kept in the file.
    """
    methods = parse_methods([*BASELINE_METHODS, adapter], engine.adapters())
    plan = EvaluationPlan(
        rows.name,
        SPLIT_NAME,
        rows.problems,
        dataset_digest(rows.problems),
        lambda: dataset_digest(rows.example_pool),
        make_sampling_params("greedy", 1, max_new_tokens, seed),
        _BATCH_SIZE,
        seed,
    )
    with _open_run(path, plan, engine) as run:
        done = sum(len(run.results(method.name)) for method in methods)
        progress = _ProgressReporter(report, len(methods) * len(rows.problems), done)
        generate_results(
            engine,
            plan,
            methods,
            run,
            lambda count, method: progress.update(count, f"answers, now of {method}"),
            retries,
            "a resumed job asks for the rest",
        )
        score_run(run, lambda total: _ProgressReporter(report, total))
        return run


def adapter_scores(run: Run, adapter: str) -> list[dict[str, Any]]:
    """Return the adapter's scores for its manifest, in [0, 1] with 95 % intervals."""
    found = []
    for metric in (*COMPARED_METRICS, "parses"):
        measured = summarize(run.results(adapter), metric, int(run.settings["seed"]))
        if measured is not None:
            interval = measured.interval
            found.append(
                {
                    "metric": metric_title(metric),
                    "value": round(interval.value, 4),
                    "low": round(interval.low, 4),
                    "high": round(interval.high, 4),
                    "n": measured.n,
                    "dataset": run.settings["data"],
                    "split": SPLIT_NAME,
                    "quantization": run.settings["quantization"],
                    "decoding": "greedy",
                }
            )
    return found


def _open_run(path: Path, plan: EvaluationPlan, engine: EngineProtocol) -> Run:
    """Open the run in the file; one with other settings, such as another device, is replaced by a new one."""
    settings, problems = plan.settings(engine.base), [problem_record(problem) for problem in plan.problems]
    provenance = {"versions": package_versions(), "started": datetime.now(UTC).isoformat(timespec="seconds")}
    if path.exists() and not _can_continue(path, settings):
        for file in (path, scores_path(path)):
            file.unlink(missing_ok=True)
    return open_run(path, settings, problems, provenance)


def _can_continue(path: Path, settings: Mapping[str, Any]) -> bool:
    try:
        return diff_settings(read_run(path).settings, to_json_types(settings)) is None
    except PromptOrTuneError:
        return False


class _ProgressReporter:
    """Reports the number of finished items at most once per second."""

    def __init__(self, report: ProgressFn, total: int, done: int = 0) -> None:
        self._report, self._total, self._done = report, total, done
        self._last_report = time.monotonic()

    def update(self, count: int, label: str) -> None:
        self._done += count
        if self._done >= self._total or time.monotonic() - self._last_report >= _PROGRESS_INTERVAL_SECONDS:
            self._last_report = time.monotonic()
            self._report(f"{self._done} of {self._total} {label}.")

    def close(self) -> None:
        """Do nothing; needed by the protocol of progress bars."""


def make_verdict(run: Run, adapter: str, technique: str) -> Verdict:
    """Compare the adapter with each baseline in each metric over the rows of this run.

    `technique` is its display name, such as LoRA. Intervals are paired bootstraps; the p-values of sign-flip tests are
    Holm-corrected over all comparisons (evaluate.stats). Raises PromptOrTuneError if a method lacks answers or scores.
    """
    require_complete(run, (*BASELINE_METHODS, adapter))
    seed = int(run.settings["seed"])
    pairs = [(metric, baseline) for baseline in BASELINE_METHODS for metric in COMPARED_METRICS]
    scores = {
        (metric, name): metric_values(run.results(name), metric)
        for metric in COMPARED_METRICS
        for name in (*BASELINE_METHODS, adapter)
    }
    differences = [
        paired_bootstrap(scores[metric, adapter], scores[metric, baseline], seed) for metric, baseline in pairs
    ]
    compared = tuple(
        _make_comparison(metric, baseline, scores[metric, adapter], scores[metric, baseline], difference, p)
        for (metric, baseline), difference, p in zip(
            pairs, differences, holm_correction([difference.p for difference in differences]), strict=True
        )
    )
    n = len(run.problems)
    return Verdict(verdict_text(compared, technique, n), n, compared, _verdict_provenance(run, adapter, seed))


def verdict_text(compared: Sequence[ScoreComparison], technique: str, n: int) -> str:
    """Return the result as text: one statement per baseline, or that there are too few rows."""
    if n < MIN_ROWS:
        return _too_few_rows_text(compared, technique, n)
    texts = [
        _baseline_text([comparison for comparison in compared if comparison.other == baseline], technique)
        for baseline in BASELINE_METHODS
    ]
    if any(comparison.metric == "em" and not is_significant(comparison) for comparison in compared):
        texts.append(power_text(n, len(compared)))
    return " ".join(texts)


def is_significant(compared: ScoreComparison) -> bool:
    """Return whether the interval excludes 0 and the corrected p is below 0.05."""
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
        adapter_score=add_in_order(adapter_values.values()) / len(adapter_values),
        other_score=add_in_order(baseline_values.values()) / len(baseline_values),
        value=difference.value,
        low=difference.low,
        high=difference.high,
        p=p,
        n=difference.n,
    )


def _baseline_text(compared: Sequence[ScoreComparison], technique: str) -> str:
    """Return the text for one baseline: significant differences first, then the others."""
    baseline, n = _METHOD_LABELS[compared[0].other], compared[0].n
    better = [_format_margin(item, 1) for item in compared if is_significant(item) and item.value > 0]
    worse = [_format_margin(item, -1) for item in compared if is_significant(item) and item.value < 0]
    unclear = [_format_margin(item, 1) for item in compared if not is_significant(item)]
    parts = []
    if better:
        parts.append(f"{technique} beats {baseline} by {_join_list(better)} (n = {n}).")
    if worse:
        parts.append(f"{baseline} beats {technique} by {_join_list(worse)} (n = {n}).")
    if unclear:
        parts.append(f"No difference shown between {technique} and {baseline} at n = {n}: {_join_list(unclear)}.")
    return " ".join(parts)


def _format_margin(compared: ScoreComparison, sign: int) -> str:
    """Return a difference with its interval as text, multiplied by `sign`."""
    name = metric_title(_full_metric_name(compared))
    if compared.low == compared.high == 0:
        return f"the same {name} on every row"  # an interval of width 0 would suggest certainty
    low, high = sorted((sign * compared.low, sign * compared.high))
    value = format_difference(sign * compared.value)
    unit = "point" if value in ("1", "-1") else "points"
    # With few rows the interval is too narrow, so p is printed when only the test finds no difference.
    p_note = f" but p = {compared.p:.2f}" if low * high > 0 and not is_significant(compared) else ""
    return f"{value} {unit} of {name}, 95 % interval {format_difference(low)} to {format_difference(high)}{p_note}"


def format_difference(difference: float) -> str:
    """Return a difference of shares as text in percentage points: '12', '-2.5', '0'."""
    text = f"{100 * difference:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


def _full_metric_name(compared: ScoreComparison) -> str:
    return next(metric for metric in COMPARED_METRICS if metric.partition("@")[0] == compared.metric)


def _join_list(parts: Sequence[str]) -> str:
    return ", and ".join(parts)


def _too_few_rows_text(compared: Sequence[ScoreComparison], technique: str, n: int) -> str:
    exact = [comparison for comparison in compared if comparison.metric == "em"]
    adapter_count = round(exact[0].adapter_score * n)
    baselines = " and ".join(f"{_METHOD_LABELS[item.other]} {round(item.other_score * n)}" for item in exact)
    rows = "1 row was" if n == 1 else f"{n} rows were"
    return (
        f"Only {rows} held out, too few to say which method is better (exactly right: "
        f"{technique} {adapter_count}, {baselines}): "
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
