"""Run files without a model: every answer is right or wrong by a seeded draw, at a place that is drawn as well."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from evaluate.results import Result, Run, open_run, problem_record
from evaluate.study.cells import TRAINING_KEY
from evaluate.study.config import StudyConfig
from evaluate.study.jobs import StudyJob, run_path
from tasks.problem import AssertTest, Problem

# How likely an answer is right, by the job's kind: far enough apart to be told apart.
CHANCES = {"zero-shot": 0.05, "icl": 0.15, "rag": 0.25}
Facts = Callable[[StudyJob], dict[str, Any]]


def made_problems(count: int, tests: bool = False) -> list[Problem]:
    """`count` problems with a reference, a third of them of each difficulty where there are tests."""
    levels = ("introductory", "interview", "competition")
    return [
        Problem(
            f"apps-test-{at}" if tests else f"p{at}",
            f"add {at} to x",
            f"y = x + {at}",
            (AssertTest(f"assert f({at}) == {at}"),) * 2 if tests else (),
            difficulty=levels[at % 3] if tests else None,
        )
        for at in range(count)
    ]


def chance(job: StudyJob) -> float:
    """How likely this job answers right."""
    if job.technique:
        return 0.5 if job.technique == "lora" else 0.4
    return CHANCES[job.kind] + 0.01 * job.k


def no_facts(_job: StudyJob) -> dict[str, Any]:
    return {}


def write_runs(
    config: StudyConfig,
    jobs: Sequence[StudyJob],
    folder: Path,
    problems: Sequence[Problem],
    facts: Facts = no_facts,
    right: Callable[[StudyJob], float] = chance,
) -> None:
    """One Run file for each base, quantization and data set, scored, with every job finished."""
    files: dict[Path, list[StudyJob]] = {}
    for job in jobs:
        files.setdefault(run_path(folder, job), []).append(job)
    for path, its_jobs in files.items():
        with open_run(path, settings(config, its_jobs[0], len(problems)), [*map(problem_record, problems)], {}) as run:
            for job in its_jobs:
                _fill(run, job, problems, right(job))
                run.update_method(job.method, {"style": "plain", "fingerprint": "f0", TRAINING_KEY: facts(job)})
            run.save()
        score(run)


def settings(config: StudyConfig, job: StudyJob, count: int) -> dict[str, Any]:
    """What a run of this job stands on."""
    from dataclasses import asdict

    return {
        "base_id": job.base_id,
        "base_revision": "r1",
        "quantization": job.quantization,
        "device": "cpu",
        "data": job.data.name,
        "split": "test",
        "n": count,
        "data_digest": "sha256:0",
        "decoding": asdict(job.data.decoding(config.seed)),
        "batch": job.data.batch,
        "seed": config.seed,
    }


def score(run: Run) -> None:
    """Scores the texts; tests are scored as if the first test of a right answer passed, and both."""
    from evaluate.results import ScoreFile
    from evaluate.run import ProgressBar
    from evaluate.scoring import score_run, text_metrics_key

    score_run(run, ProgressBar)
    if not any(problem["tests"] for problem in run.problems):
        return
    file = ScoreFile.open(
        run, {"text": text_metrics_key(), "tests": {"checks": 1, "layer": "bubblewrap", "limits": {}}}
    )
    scored = []
    for method in run.methods:
        for result in run.results(method):
            value = result.scores["em@1"] or 0.0
            scored.append((result, {"tests": 0.5 + value / 2, **{f"pass@{k}": value for k in range(1, 6)}}, ()))
    file.append(run, "tests", scored)
    file.close()


def _fill(run: Run, job: StudyJob, problems: Sequence[Problem], right: float) -> None:
    draw = random.Random(f"{job.method} {job.quantization} {job.model.name}")
    asked = job.data.candidates
    for problem in problems:
        codes = [f"z = {at}" for at in range(asked)]
        if draw.random() < right:
            codes[0 if draw.random() < 0.6 else draw.randrange(asked)] = problem.reference or ""
        candidates = [{"text": code, "code": code, "logprob": -1.0, "tokens": 5, "times": 1} for code in codes]
        seconds = 0.4 + 0.1 * job.k
        run.add(
            [
                Result(
                    job.method,
                    problem.id,
                    candidates=candidates,
                    seconds=seconds,
                    prompt_tokens=20 + 40 * job.k,
                    tokens=5,
                )
            ]
        )
