"""Answers of an advice: one engine at a time, a scored run file for each set of rows, and the choice of examples.

The engine is closed while an adapter is trained, so that only one base is in memory.
"""

from __future__ import annotations

import ast
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common.files import ProgressFn
from common.parsing import dotted_name, parse_python
from evaluate.generate import (
    EvaluationPlan,
    generate_results,
    make_sampling_params,
    max_new_tokens_for,
    package_versions,
    parse_methods,
)
from evaluate.results import Result, Run, open_run, problem_record
from evaluate.sandbox.sandbox import Sandbox
from evaluate.scoring import score_run
from evaluate.stats import metric_values
from serve.engine.build import build_private_engine
from serve.engine.llm_engine import LLMEngine
from serve.options import ModelOptions
from tasks.datasets.registry import dataset_digest
from tasks.problem import Example, Problem

_ERROR_NAME = re.compile(r"\b([A-Z]\w*(?:Error|Exception|Warning|Interrupt|Exit|Iteration))\b")
_STATUS_KINDS = {
    "timeout": "takes too long",
    "memory": "takes too much memory",
    "output": "prints too much",
    "killed": "is ended by a signal",
    "refused": "cannot be run",
}
BATCH = 16
LINE_SECONDS = 3.0

Pools = Mapping[str, Sequence[Example]]
ICL_METHODS = ("icl-8", "icl-4", "icl-8@43", "icl-4@43")
RAG_METHODS = ("rag-8", "rag-4", "rag-2")
FIRST_SHARE = 1 / 3
MIN_ROWS_FOR_HALVING = 24

Scores = dict[str, tuple[float, float]]


def describe_answer(result: Result, reference: str, metric: str) -> dict[str, Any]:
    """Return `code`, `right`, `kind` ('right', or what is wrong) and `detail`, a line about it, of an answer."""
    code = str(result.candidates[0]["code"]) if result.candidates else ""
    right = result.scores.get(metric) == 1.0
    kind, detail = ("right", "") if right else _failure(result, code, reference)
    return {"code": code, "right": right, "kind": kind, "detail": detail}


def _failure(result: Result, code: str, reference: str) -> tuple[str, str]:
    if result.error is not None:
        return "has no answer", result.error
    if not code.strip():
        return "has no code", ""
    if result.scores.get("parses") != 1.0:
        return "is no valid Python", ""
    checks = [check for check in (result.checks[0] if result.checks else ()) if not check["passed"]]
    if checks:
        first = checks[0]
        return _test_kind(str(first["status"]), str(first["reason"])), str(first["reason"])
    if result.scores.get("em_tree@1") == 1.0:
        return "differs in layout alone", ""
    called, expected = _calls(code), _calls(reference)
    missing = sorted(expected - called)
    if missing:
        return "calls other functions", f"without {', '.join(missing[:3])}"
    return "has other arguments or steps", ""


def _test_kind(status: str, reason: str) -> str:
    if status in _STATUS_KINDS:
        return _STATUS_KINDS[status]
    if status != "ok" and (found := _ERROR_NAME.search(reason)):
        return f"raises {found[1]}"
    return "gives a wrong value" if status == "ok" else "fails"


def _calls(code: str) -> set[str]:
    """Return the names of the functions and methods that code calls; of a method on a value, its name."""
    try:
        tree = parse_python(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set()
    return {
        dotted_name(node.func) or (f".{node.func.attr}" if isinstance(node.func, ast.Attribute) else "")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
    } - {""}


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


def choose_prompts(
    answerer: Answerer,
    name: str,
    pool: str,
    rows: Sequence[Problem],
    families: Sequence[Sequence[str]],
    metric: str,
    max_new_tokens: int,
) -> tuple[list[str], Scores]:
    """Return the best method of each family, and the scores (`metric`, CodeBLEU) of all that were asked all rows.

    With enough rows, all methods are asked the first third of them, and the worse half of each family is left out. A
    tie goes to the higher CodeBLEU, then to the method that comes first.
    """
    first = rows[: round(len(rows) * FIRST_SHARE)] if len(rows) >= MIN_ROWS_FOR_HALVING else []
    left = [list(family) for family in families]
    if first and any(len(family) > 2 for family in left):
        run = answerer.answer(
            f"{name}-first", pool, first, [method for family in left for method in family], max_new_tokens
        )
        left = [
            sorted(family, key=lambda method: mean_scores(run, method, metric), reverse=True)[
                : max(1, len(family) // 2)
            ]
            for family in left
        ]
    run = answerer.answer(name, pool, rows, [method for family in left for method in family], max_new_tokens)
    scores = {method: mean_scores(run, method, metric) for family in left for method in family}
    return [max(family, key=scores.__getitem__) for family in left], scores
