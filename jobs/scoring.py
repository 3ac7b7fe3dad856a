"""Held-out scoring and verdict.

Scores a finished adapter on the rows that its training held out, beside the base alone and beside RAG.

Everything lies in a file of `python -m evaluate`, so what a kill interrupts goes on from the last batch, and anybody
can look at each answer (`python -m evaluate report scores.jsonl`).

What the scores of a job say, in words and numbers: who beats whom, or that no difference was shown.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapters.store import LIBRARY, Store
from common.paths import ProgressFn
from errors import PromptOrTuneError
from evaluate.aggregate import metric_title, metric_values, summarize
from evaluate.results import Run, diff_settings, open_run, problem_record, read_run, scores_path, to_json_types
from evaluate.run import (
    EngineProtocol,
    EvaluationPlan,
    generate_results,
    make_sampling_params,
    package_versions,
    parse_methods,
)
from evaluate.scoring import score_run
from evaluate.stats import PairedDifference, holm_correction, paired_bootstrap
from jobs.job import ScoreComparison, ServingOptions, Verdict
from tasks.datasets.registry import dataset_digest
from tasks.problem import Example, Problem
from tasks.prompt import STYLES
from train.config import TrainConfig
from train.data import load_training_data

if TYPE_CHECKING:
    from serve.engine.llm_engine import LLMEngine as ServingEngine


BASELINE_METHODS = ("zero-shot", "rag-8")
COMPARED_METRICS = ("em@1", "codebleu")
SPLIT_NAME = "held-out rows"
MAX_ROWS = 100
_BATCH_SIZE = 16
# An answer may be as long as the longest reference, but for what no row of ours needs.
_MIN_NEW_TOKENS, _MAX_NEW_TOKENS, _EXTRA_TOKENS = 64, 256, 16
_PROGRESS_INTERVAL_SECONDS = 1.0  # seconds
_MAX_NUM_SEQS, _MAX_QUEUED_ROWS = 512, 100_000  # nobody else asks this engine


@dataclass(frozen=True)
class HeldOutRows:
    """What a job is scored on: rows that it did not learn from, and those that it did, from which RAG shows some."""

    name: str
    problems: Sequence[Problem]
    example_pool: Sequence[Example]


def load_held_out_rows(config: TrainConfig) -> HeldOutRows:
    """The rows that the job's training holds out; of more than MAX_ROWS a sample that its seed draws."""
    data = load_training_data(config)
    rows = data.validation
    if len(rows) > MAX_ROWS:
        rows = [rows[at] for at in sorted(random.Random(config.seed).sample(range(len(rows)), MAX_ROWS))]
    return HeldOutRows(data.name, [Problem(row.id, row.intent, row.code) for row in rows], data.train)


def build_scoring_engine(
    serving: ServingOptions, home: Path, example_pool: Sequence[Example], report: ProgressFn
) -> ServingEngine:
    """The base as the app serves it, with the adapters of this home; whatever pool is named, its rows are `pool`."""
    from models.embedder import Embedder, FaissIndex
    from models.loader import load_base
    from models.threads import release_thread_pool
    from serve.backends.local.backend import LocalBackend
    from serve.engine.config import EngineConfig
    from serve.engine.llm_engine import LLMEngine as ServingEngine
    from tasks.retrieval import ExamplePools, IndexRetriever

    base = load_base(serving.base, serving.quantization, serving.device, report, serving.trust_remote_code)
    backend = LocalBackend(base)
    release_thread_pool()
    model = Embedder(serving.embedder)
    pools = ExamplePools(
        load=lambda _: list(example_pool),
        index=lambda _, examples: IndexRetriever(
            examples, FaissIndex(model, [example.intent for example in examples], dataset_digest(examples))
        ),
    )
    fingerprints = {name: style.fingerprint for name, style in STYLES.items()}
    store = Store((LIBRARY, home / "adapters"), fingerprints=fingerprints)
    limits = EngineConfig(max_num_seqs=_MAX_NUM_SEQS, max_num_beam_seqs=_MAX_NUM_SEQS, max_queued=_MAX_QUEUED_ROWS)
    return ServingEngine(backend, store, pools, config=limits)


def generate_and_score(
    engine: EngineProtocol,
    rows: HeldOutRows,
    adapter: str,
    path: Path,
    seed: int,
    max_new_tokens: int,
    report: ProgressFn,
) -> Run:
    """All answers of the adapter and its rivals, greedy, with their scores; goes on from what is in the file."""
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
        tell = _ProgressReporter(report, len(methods) * len(rows.problems), done)
        generate_results(
            engine, plan, methods, run, lambda count, method: tell.update(count, f"answers, now of {method}")
        )
        score_run(run, lambda total: _ProgressReporter(report, total))
        return run


def max_new_tokens_for(count_tokens: Callable[[str], int], problems: Sequence[Problem]) -> int:
    """How many tokens an answer may have."""
    longest = max((count_tokens(problem.reference or "") for problem in problems), default=0)
    return min(_MAX_NEW_TOKENS, max(_MIN_NEW_TOKENS, longest + _EXTRA_TOKENS))


def adapter_scores(run: Run, adapter: str) -> list[dict[str, Any]]:
    """The adapter's scores as its manifest keeps them, in [0, 1] with 95 % intervals."""
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
    """The run in the file; one that was made otherwise (another device, say) gives way to a new one."""
    settings, problems = plan.settings(engine.base), [problem_record(problem) for problem in plan.problems]
    provenance = {"versions": package_versions(), "started": datetime.now(UTC).isoformat(timespec="seconds")}
    if path.exists() and not _can_continue(path, settings):
        for old in (path, scores_path(path)):
            old.unlink(missing_ok=True)
    return open_run(path, settings, problems, provenance)


def _can_continue(path: Path, settings: Mapping[str, Any]) -> bool:
    try:
        return diff_settings(read_run(path).settings, to_json_types(settings)) is None
    except PromptOrTuneError:
        return False


class _ProgressReporter:
    """Says now and then how many of all are done."""

    def __init__(self, report: ProgressFn, total: int, done: int = 0) -> None:
        self._report, self._total, self._done = report, total, done
        self._last_report = time.monotonic()

    def update(self, count: int, label: str) -> None:
        self._done += count
        if self._done >= self._total or time.monotonic() - self._last_report >= _PROGRESS_INTERVAL_SECONDS:
            self._last_report = time.monotonic()
            self._report(f"{self._done} of {self._total} {label}.")

    def close(self) -> None:
        """Nothing is left behind on a line of its own."""


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
