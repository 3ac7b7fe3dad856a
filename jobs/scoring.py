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
from errors import PeftArenaError
from evaluate.measures import measure, title
from evaluate.results import Run, open_run, problem_record, read_run
from evaluate.run import Engine, Plan, decoding_for, parse_methods, run_methods, versions
from evaluate.score_file import scores_path
from evaluate.score_run import score_run
from evaluate.settings import changes, plain
from jobs.job import Serving
from serve.home import Report
from tasks.datasets import digest
from tasks.problem import Example, Problem
from tasks.prompt import STYLES
from train.config import TrainConfig
from train.data import load_training_data

if TYPE_CHECKING:
    from serve.engine import Engine as ServingEngine

RIVALS = ("zero-shot", "rag-8")
METRICS = ("em@1", "codebleu")
SPLIT = "held-out rows"
MOST_ROWS = 100
_BATCH = 16
# An answer may be as long as the longest reference, but for what no row of ours needs.
_LEAST_TOKENS, _MOST_TOKENS, _SPARE_TOKENS = 64, 256, 16
_TOLD_EVERY = 1.0  # seconds
_LINES, _QUEUED = 512, 100_000  # nobody else asks this engine


@dataclass(frozen=True)
class HeldOut:
    """What a job is scored on: rows that it did not learn from, and those that it did, from which RAG shows some."""

    name: str
    problems: Sequence[Problem]
    pool: Sequence[Example]


def held_out(config: TrainConfig) -> HeldOut:
    """The rows that the job's training holds out; of more than MOST_ROWS a sample that its seed draws."""
    data = load_training_data(config)
    rows = data.validation
    if len(rows) > MOST_ROWS:
        rows = [rows[at] for at in sorted(random.Random(config.seed).sample(range(len(rows)), MOST_ROWS))]
    return HeldOut(data.name, [Problem(row.id, row.intent, row.code) for row in rows], data.train)


def open_engine(serving: Serving, home: Path, pool: Sequence[Example], report: Report) -> ServingEngine:
    """The base as the app serves it, with the adapters of this home; whatever pool is named, its rows are `pool`."""
    from serve.backends.local.backend import LocalBackend
    from serve.backends.local.loading import load_base
    from serve.backends.openmp import let_go
    from serve.backends.retrieval import Embedder, FaissRetriever
    from serve.engine import Engine as ServingEngine
    from serve.examples import Pools
    from serve.scheduling.limits import EngineLimits

    base = load_base(serving.base, serving.quantization, serving.device, report, serving.trust_remote_code)
    backend = LocalBackend(base)
    let_go()
    model = Embedder(serving.embedder)
    pools = Pools(
        load=lambda _: list(pool),
        index=lambda _, examples: FaissRetriever(model, examples, digest(examples)),
    )
    fingerprints = {name: style.fingerprint for name, style in STYLES.items()}
    store = Store((LIBRARY, home / "adapters"), fingerprints=fingerprints)
    limits = EngineLimits(max_lines=_LINES, max_beam_lines=_LINES, max_queued=_QUEUED)
    return ServingEngine(backend, store, pools, limits=limits)


def answer_and_score(
    engine: Engine, rows: HeldOut, adapter: str, path: Path, seed: int, max_new_tokens: int, report: Report
) -> Run:
    """All answers of the adapter and its rivals, greedy, with their scores; goes on from what is in the file."""
    methods = parse_methods([*RIVALS, adapter], engine.adapters())
    plan = Plan(
        rows.name,
        SPLIT,
        rows.problems,
        digest(rows.problems),
        lambda: digest(rows.pool),
        decoding_for("greedy", 1, max_new_tokens, seed),
        _BATCH,
        seed,
    )
    with _open(path, plan, engine) as run:
        done = sum(len(run.results(method.name)) for method in methods)
        tell = _Count(report, len(methods) * len(rows.problems), done)
        run_methods(engine, plan, methods, run, lambda count, method: tell.step(count, f"answers, now of {method}"))
        score_run(run, lambda total: _Count(report, total))
        return run


def token_limit(count: Callable[[str], int], problems: Sequence[Problem]) -> int:
    """How many tokens an answer may have."""
    longest = max((count(problem.reference or "") for problem in problems), default=0)
    return min(_MOST_TOKENS, max(_LEAST_TOKENS, longest + _SPARE_TOKENS))


def scores_of(run: Run, adapter: str) -> list[dict[str, Any]]:
    """The adapter's scores as its manifest keeps them, in [0, 1] with 95 % intervals."""
    found = []
    for metric in (*METRICS, "parses"):
        measured = measure(run.results(adapter), metric, int(run.settings["seed"]))
        if measured is not None:
            interval = measured.interval
            found.append(
                {
                    "metric": title(metric),
                    "value": round(interval.value, 4),
                    "low": round(interval.low, 4),
                    "high": round(interval.high, 4),
                    "n": measured.n,
                    "dataset": run.settings["data"],
                    "split": SPLIT,
                    "quantization": run.settings["quantization"],
                    "decoding": "greedy",
                }
            )
    return found


def _open(path: Path, plan: Plan, engine: Engine) -> Run:
    """The run in the file; one that was made otherwise (another device, say) gives way to a new one."""
    settings, problems = plan.settings(engine.base), [problem_record(problem) for problem in plan.problems]
    provenance = {"versions": versions(), "started": datetime.now(UTC).isoformat(timespec="seconds")}
    if path.exists() and not _continues(path, settings):
        for old in (path, scores_path(path)):
            old.unlink(missing_ok=True)
    return open_run(path, settings, problems, provenance)


def _continues(path: Path, settings: Mapping[str, Any]) -> bool:
    try:
        return changes(read_run(path).settings, plain(settings)) is None
    except PeftArenaError:
        return False


class _Count:
    """Says now and then how many of all are done."""

    def __init__(self, report: Report, total: int, done: int = 0) -> None:
        self._report, self._total, self._done = report, total, done
        self._told = time.monotonic()

    def step(self, count: int, label: str) -> None:
        self._done += count
        if self._done >= self._total or time.monotonic() - self._told >= _TOLD_EVERY:
            self._told = time.monotonic()
            self._report(f"{self._done} of {self._total} {label}.")

    def end(self) -> None:
        """Nothing is left behind on a line of its own."""
