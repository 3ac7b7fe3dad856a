"""Generation of missing results: one engine at a time, one Run file per base, quantization, data set and decoding.

A second question continues the files of the first. Ctrl-C or a kill loses at most the present batch.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from common.command import configure_environment
from common.files import ProgressFn
from errors import PromptOrTuneError
from evaluate.failures import DEFAULT_RETRIES, RetryPolicy
from evaluate.generate import (
    EngineProtocol,
    EvaluationPlan,
    ProgressBar,
    generate_results,
    package_versions,
    parse_methods,
)
from evaluate.results import Run, open_run, problem_record, read_run
from evaluate.scoring import score_run
from evaluate.study.config import StudyConfig
from evaluate.study.jobs import TRAINING_KEY, StudyJob, required_adapters, run_path, training_facts

if TYPE_CHECKING:
    from evaluate.sandbox.sandbox import Sandbox

EngineOpener = Callable[[StudyJob], AbstractContextManager[EngineProtocol]]


@dataclass(frozen=True)
class RunFileJobs:
    """Jobs that share a run file."""

    path: Path
    jobs: tuple[StudyJob, ...]


def missing_jobs(jobs: Sequence[StudyJob], folder: Path) -> list[RunFileJobs]:
    """Return run files with their missing jobs, files of one base together; jobs without their adapter are left out."""
    absent = {adapter.name for adapter in required_adapters(jobs) if not adapter.is_available}
    files: dict[Path, list[StudyJob]] = {}
    for job in jobs:
        if job.adapter not in absent:
            files.setdefault(run_path(folder, job), []).append(job)
    batches = [RunFileJobs(path, _unfinished_jobs(path, file_jobs)) for path, file_jobs in files.items()]
    batches = [batch for batch in batches if batch.jobs]
    keys = list(dict.fromkeys(_engine_key(batch.jobs[0]) for batch in batches))
    return sorted(batches, key=lambda batch: keys.index(_engine_key(batch.jobs[0])))


def generate_missing(
    config: StudyConfig,
    batches: Sequence[RunFileJobs],
    data_dir: Path | None,
    command: str,
    open_engine: EngineOpener,
    sandbox: Sandbox | None = None,
    retries: RetryPolicy = DEFAULT_RETRIES,
) -> None:
    """Generate and score the batches; each engine is closed before the next one is opened.

    `batches` must be grouped by engine, as `missing_jobs` returns them. Tests run in `sandbox`; without one they are
    not scored. Raises EngineError or SandboxError if the engine or the sandbox still fails after `retries`; what was
    answered and scored is kept.
    """
    for _, group in groupby(batches, key=lambda batch: _engine_key(batch.jobs[0])):
        same_engine = list(group)
        with open_engine(same_engine[0].jobs[0]) as engine:
            for batch in same_engine:
                run = _fill_run(config, batch, engine, data_dir, command, retries)
                score_run(run, ProgressBar, sandbox, retries=retries)


def engine_opener(config: StudyConfig, data_dir: Path | None, report: ProgressFn) -> EngineOpener:
    """Return a function that opens the engine of a job's base for a block and frees it afterwards."""

    @contextmanager
    def opened(job: StudyJob) -> Iterator[EngineProtocol]:
        configure_environment()
        from serve.engine.build import build_engine
        from serve.options import ModelOptions

        engine = build_engine(
            ModelOptions(
                job.base, job.quantization, config.device, data_dir, job.model.trust_remote_code, config.embedder
            ),
            report,
        )
        try:
            yield engine
        finally:
            engine.close()
            del engine
            gc.collect()  # a model has reference cycles, and the next one needs the memory

    return opened


def check_base_revisions(jobs: Sequence[StudyJob]) -> None:
    """Raise PromptOrTuneError, before anything runs, for a base with its own code and no pinned commit."""
    for model in dict.fromkeys(job.model for job in jobs):
        _, _, revision = model.base.partition("@")
        if model.trust_remote_code and len(revision) != 40:
            raise PromptOrTuneError(
                f"{model.name} has code of its own, which runs only from a pinned commit: read it, and write "
                f"base: {model.base.partition('@')[0]}@<40 hex digits> in a copy of the study's file."
            )


def _fill_run(
    config: StudyConfig,
    batch: RunFileJobs,
    engine: EngineProtocol,
    data_dir: Path | None,
    command: str,
    retries: RetryPolicy,
) -> Run:
    from tasks.datasets.registry import dataset_digest, load_examples, load_problems

    data = batch.jobs[0].data
    problems = load_problems(data.name, "test", data_dir, data.problems)
    plan = EvaluationPlan(
        data.name,
        "test",
        problems,
        dataset_digest(problems),
        lambda: dataset_digest(load_examples(data.name, data_dir)),
        data.decoding(config.seed),
        data.batch,
        config.seed,
    )
    records = [problem_record(problem) for problem in problems]
    provenance = {
        "command": command,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "architecture": engine.base.architecture,
        "versions": package_versions(),
    }
    methods = parse_methods((job.method for job in batch.jobs), engine.adapters())
    manifests = {adapter.name: adapter.manifest for adapter in required_adapters(batch.jobs)}
    with open_run(batch.path, plan.settings(engine.base), records, provenance) as run:
        progress = ProgressBar(
            sum(not run.has_result(method.name, problem.id) for method in methods for problem in problems)
        )
        try:
            generate_results(engine, plan, methods, run, progress.update, retries)
        finally:
            progress.close()
        for job in batch.jobs:
            if job.adapter:
                run.update_method(job.method, {TRAINING_KEY: training_facts(manifests[job.adapter])})
        run.save()
    return run


def _unfinished_jobs(path: Path, jobs: Sequence[StudyJob]) -> tuple[StudyJob, ...]:
    """Return the jobs that have no or not all results in the file."""
    if not path.is_file() or not path.stat().st_size:
        return tuple(jobs)
    run = read_run(path)
    return tuple(job for job in jobs if not run.problems or len(run.results(job.method)) < len(run.problems))


def _engine_key(job: StudyJob) -> tuple[str, str]:
    return job.base, job.quantization
