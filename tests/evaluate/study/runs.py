"""Run files without a model: a seeded random draw decides whether and at which index an answer is right."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from evaluate.results import Result, Run, open_run, problem_record
from evaluate.study.config import StudyConfig
from evaluate.study.jobs import TRAINING_KEY, StudyJob, run_path
from tasks.problem import AssertTest, Problem

# Probability of a right answer by the job's kind; the differences are large enough to be significant.
CHANCES = {"zero-shot": 0.05, "icl": 0.15, "rag": 0.25}
Facts = Callable[[StudyJob], dict[str, Any]]


def made_problems(count: int, tests: bool = False) -> list[Problem]:
    """Return `count` problems with a reference; with `tests`, a third of them has each difficulty."""
    levels = ("introductory", "interview", "competition")
    return [
        Problem(
            f"apps-test-{index}" if tests else f"p{index}",
            f"add {index} to x",
            f"y = x + {index}",
            (AssertTest(f"assert f({index}) == {index}"),) * 2 if tests else (),
            difficulty=levels[index % 3] if tests else None,
        )
        for index in range(count)
    ]


def chance(job: StudyJob) -> float:
    """Return the probability that this job answers right."""
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
    """Write a scored Run file for each base, quantization and data set, with every job finished."""
    files: dict[Path, list[StudyJob]] = {}
    for job in jobs:
        files.setdefault(run_path(folder, job), []).append(job)
    for path, file_jobs in files.items():
        with open_run(path, settings(config, file_jobs[0], len(problems)), [*map(problem_record, problems)], {}) as run:
            for job in file_jobs:
                _fill(run, job, problems, right(job))
                run.update_method(job.method, {"style": "plain", "fingerprint": "f0", TRAINING_KEY: facts(job)})
            run.save()
        score(run)


def settings(config: StudyConfig, job: StudyJob, count: int) -> dict[str, Any]:
    """Return the settings of a run of this job."""
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
    """Score the texts; of two tests a right answer passes both and a wrong one passes one."""
    from evaluate.generate import ProgressBar
    from evaluate.results import ScoreFile
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
    count = job.data.candidates
    for problem in problems:
        codes = [f"z = {index}" for index in range(count)]
        if draw.random() < right:
            codes[0 if draw.random() < 0.6 else draw.randrange(count)] = problem.reference or ""
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
