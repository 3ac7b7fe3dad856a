"""Scores a finished adapter on the rows that its training held out, beside the base alone and beside RAG.

Everything lies in a file of `python -m evaluate`, so what a kill interrupts goes on from the last batch, and anybody
can look at each answer (`python -m evaluate report scores.jsonl`).
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
from errors import PromptOrTuneError
from evaluate.measures import metric_title, summarize
from evaluate.results import Run, open_run, problem_record, read_run
from evaluate.run import (
    EngineProtocol,
    EvaluationPlan,
    generate_results,
    make_sampling_params,
    package_versions,
    parse_methods,
)
from evaluate.score_file import scores_path
from evaluate.score_run import score_run
from evaluate.settings import diff_settings, to_json_types
from jobs.job import ServingOptions
from serve.home import ProgressFn
from tasks.datasets import dataset_digest
from tasks.problem import Example, Problem
from tasks.prompt import STYLES
from train.config import TrainConfig
from train.data import load_training_data

if TYPE_CHECKING:
    from serve.engine import LLMEngine as ServingEngine

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
    from serve.backends.local.backend import LocalBackend
    from serve.backends.local.loading import load_base
    from serve.backends.openmp import release_thread_pool
    from serve.backends.retrieval import Embedder, FaissRetriever
    from serve.engine import LLMEngine as ServingEngine
    from serve.examples import ExamplePools
    from serve.scheduling.limits import EngineConfig

    base = load_base(serving.base, serving.quantization, serving.device, report, serving.trust_remote_code)
    backend = LocalBackend(base)
    release_thread_pool()
    model = Embedder(serving.embedder)
    pools = ExamplePools(
        load=lambda _: list(example_pool),
        index=lambda _, examples: FaissRetriever(model, examples, dataset_digest(examples)),
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
