"""Answers of an advice: one engine at a time, and one scored run file for each set of rows.

The engine is closed while an adapter is trained, so that only one base is in memory.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from common.files import ProgressFn
from evaluate.aggregate import metric_values
from evaluate.generate import (
    EvaluationPlan,
    generate_results,
    make_sampling_params,
    max_new_tokens_for,
    package_versions,
    parse_methods,
)
from evaluate.results import Run, open_run, problem_record
from evaluate.sandbox.sandbox import Sandbox
from evaluate.scoring import score_run
from serve.engine.build import build_private_engine
from serve.engine.llm_engine import LLMEngine
from serve.options import ModelOptions
from tasks.datasets.registry import dataset_digest
from tasks.problem import Example, Problem

BATCH = 16
LINE_SECONDS = 3.0

Pools = Mapping[str, Sequence[Example]]


class Answerer:
    """Asks methods for the answers to rows, and scores them. Answers that a run file has are not asked again."""

    def __init__(
        self,
        model: ModelOptions,
        adapters: Path,
        runs: Path,
        pools: Pools,
        sandbox: Sandbox | None,
        report: ProgressFn,
        seed: int,
    ) -> None:
        self._model = model
        self._adapters = adapters
        self._runs = runs
        self.pools = pools
        self._sandbox = sandbox
        self._report = report
        self._seed = seed
        self._engine: LLMEngine | None = None

    @contextmanager
    def open(self) -> Iterator[None]:
        """Close the engine after the block; the first answer in it builds one."""
        try:
            yield
        finally:
            self.close()

    def close(self) -> None:
        """Free the engine and its base."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def answer(
        self, name: str, pool: str, problems: Sequence[Problem], methods: Sequence[str], max_new_tokens: int
    ) -> Run:
        """Return the scored run `name` of these problems, with answers of all `methods`, decoded greedily.

        Examples come from the pool of this name. Raises EngineError, SandboxError or what the base raises.
        """
        engine = self.engine
        plan = EvaluationPlan(
            pool,
            name,
            problems,
            dataset_digest(problems),
            lambda: dataset_digest(self.pools[pool]),
            make_sampling_params("greedy", 1, max_new_tokens, self._seed),
            BATCH,
            self._seed,
        )
        parsed = parse_methods(methods, engine.adapters())
        provenance = {"versions": package_versions(), "started": datetime.now(UTC).isoformat(timespec="seconds")}
        described = [problem_record(problem) for problem in problems]
        with open_run(self._runs / f"{name}.jsonl", plan.settings(engine.base), described, provenance) as run:
            progress = _Progress(self._report, len(parsed) * len(problems))
            progress.update(sum(len(run.results(method.name)) for method in parsed), "answers")
            generate_results(
                engine, plan, parsed, run, lambda count, method: progress.update(count, f"answers ({method})")
            )
            score_run(run, lambda total: _Progress(self._report, total), self._sandbox)
            return run

    def max_new_tokens(self, problems: Sequence[Problem]) -> int:
        """Return the limit of new tokens for rows with references of this length."""
        return max_new_tokens_for(self.engine.count_tokens, problems)

    @property
    def engine(self) -> LLMEngine:
        """The engine, which is built where it is not open."""
        if self._engine is None:
            self._engine = build_private_engine(self._model, [self._adapters], self.pools.__getitem__, self._report)
        return self._engine


def mean_scores(run: Run, method: str, metric: str, problems: Sequence[Problem] | None = None) -> tuple[float, float]:
    """Return the means of `metric` and of CodeBLEU of a method, over the given problems or all, in [0, 1]."""
    ids = None if problems is None else {problem.id for problem in problems}
    return _mean(run, method, metric, ids), _mean(run, method, "codebleu", ids)


def _mean(run: Run, method: str, metric: str, ids: set[str] | None) -> float:
    found = metric_values(run.results(method), metric)
    values = [value for id, value in found.items() if ids is None or id in ids]
    return sum(values) / len(values) if values else 0.0


class _Progress:
    """A progress bar whose lines go to `report`, at most one in LINE_SECONDS, and the last one."""

    def __init__(self, report: ProgressFn, total: int) -> None:
        self._report, self._total, self._done = report, total, 0
        self._reported = time.monotonic()

    def update(self, count: int, label: str) -> None:
        self._done += count
        if self._done >= self._total or time.monotonic() - self._reported >= LINE_SECONDS:
            self._reported = time.monotonic()
            self._report(f"{self._done} of {self._total} {label}")

    def close(self) -> None:
        """Do nothing; needed by the protocol of progress bars."""
