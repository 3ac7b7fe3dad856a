"""Collection of finished jobs from a folder of Run files: results, scores, and facts of the training.

Files are recognised by their settings, not by their names, so runs of `python -m evaluate` count as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from errors import PromptOrTuneError
from evaluate.aggregate import metric_values, summarize
from evaluate.generate import make_sampling_params
from evaluate.metrics.basic import add_in_order
from evaluate.results import Result, Run, read_run
from evaluate.stats import Interval
from evaluate.study.jobs import StudyJob, required_adapters, run_path, training_facts

TRAINING_KEY = "training"  # key of a run's method entry that holds the facts of the adapter's training


@dataclass(frozen=True)
class FinishedJob:
    """A finished job with its results, one per problem, in the order of the run's problems."""

    job: StudyJob
    run: Run
    results: Sequence[Result]

    @property
    def bootstrap_seed(self) -> int:
        """The seed of the bootstrap, which is the run's."""
        return int(self.run.settings["seed"])

    @property
    def training_facts(self) -> Mapping[str, Any]:
        """The facts of the adapter's training, such as trainable_parameters and train_seconds, as far as known.

        They come from the run, or from the manifest of a local adapter with the same weights digest.
        """
        method = self.run.methods.get(self.job.method, {})
        if method.get(TRAINING_KEY):
            return dict(method[TRAINING_KEY])
        manifests = [adapter.manifest for adapter in required_adapters([self.job]) if adapter.manifest]
        return training_facts(next((m for m in manifests if m.weights_digest == method.get("adapter_digest")), None))

    def results_for(self, problems: set[str] | None = None) -> list[Result]:
        """Return the results, optionally of these problems only."""
        return [result for result in self.results if problems is None or result.problem in problems]

    def interval(self, metric: str, problems: set[str] | None = None) -> Interval | None:
        """Return the mean over the problems that have the metric, with its 95 % interval; None without any."""
        found = summarize(self.results_for(problems), metric, self.bootstrap_seed)
        return found.interval if found else None

    def mean(self, metric: str) -> float | None:
        """Return the mean over the problems that have the metric; None without any."""
        values = list(metric_values(self.results, metric).values())
        return add_in_order(values) / len(values) if values else None

    @property
    def is_apps_test_split(self) -> bool:
        """Whether the problems are APPS's test rows; a local folder of APPS has train rows (tasks/datasets/apps.py)."""
        return self.job.data.name == "apps" and all(
            problem["id"].startswith("apps-test-") for problem in self.run.problems
        )

    def problems_by_difficulty(self) -> dict[str, set[str]]:
        """Return problem ids by difficulty, in the order of the run; one group "all" without difficulties."""
        found: dict[str, set[str]] = {}
        for problem in self.run.problems:
            found.setdefault(problem.get("difficulty") or "all", set()).add(problem["id"])
        return found


@dataclass
class CollectedRuns:
    """The results of some jobs in a folder. `unfinished` maps a job to (problems done, problems)."""

    finished: dict[StudyJob, FinishedJob] = field(default_factory=dict)
    unfinished: dict[StudyJob, tuple[int, int]] = field(default_factory=dict)

    def find(self, **attributes: Any) -> list[FinishedJob]:
        """Return the finished jobs with these attributes, in the order of the jobs."""
        return [
            finished
            for job, finished in self.finished.items()
            if all(getattr(job, name) == value for name, value in attributes.items())
        ]


def read_runs(folder: Path) -> list[Run]:
    """Read all runs of a folder, sorted by name; raises PromptOrTuneError for one that cannot be read."""
    paths = [*folder.glob("*.jsonl"), *folder.glob("*.jsonl.gz")]
    return [read_run(path) for path in sorted(paths) if ".scores." not in path.name]


def collect_jobs(jobs: Iterable[StudyJob], runs: Sequence[Run], folder: Path) -> CollectedRuns:
    """Return the results of the jobs; of several files with one job, the one with the most results counts."""
    found = CollectedRuns()
    for job in jobs:
        matching = [run for run in runs if _run_matches_job(run, job, folder) and run.results(job.method)]
        if not matching:
            continue
        run = max(matching, key=lambda each: (len(each.results(job.method)), each.path == run_path(folder, job)))
        results = run.results(job.method)
        if len(results) < len(run.problems):
            found.unfinished[job] = (len(results), len(run.problems))
        else:
            found.finished[job] = FinishedJob(job, run, results)
    return found


def has_unscored(run: Run) -> bool:
    """Return whether results of the run lack text scores or test scores."""
    tested = {problem["id"] for problem in run.problems if problem.get("tests")}
    return any(
        "parses" not in result.scores or (result.problem in tested and "tests" not in result.scores)
        for method in run.methods
        for result in run.results(method)
    )


def datasets_present(finished: Iterable[FinishedJob], datasets: Sequence[str]) -> list[str]:
    """Return the data sets that these jobs use, in the given order."""
    present = {item.job.data.name for item in finished}
    return [data for data in datasets if data in present]


def require_results(collected: CollectedRuns, rq: str, folder: Path) -> None:
    """Raise PromptOrTuneError when no job is finished."""
    if not collected.finished:
        begun = f" {len(collected.unfinished)} methods are unfinished." if collected.unfinished else ""
        raise PromptOrTuneError(f"{folder} holds no finished results of {rq}.{begun} Run the command without --tables.")


def _run_matches_job(run: Run, job: StudyJob, folder: Path) -> bool:
    data, settings = job.data, run.settings
    decoding = make_sampling_params(data.mode, data.candidates, data.max_new_tokens, 0, data.temperature, data.top_p)
    names = ["mode", "candidates", "max_new_tokens", *(("temperature", "top_p") if data.mode == "sample" else ())]
    matches = (
        settings.get("base_id") == job.base_id
        and settings.get("quantization") == job.quantization
        and settings.get("data") == data.name
        and settings.get("split") == "test"
        and all(settings.get("decoding", {}).get(name) == getattr(decoding, name) for name in names)
    )
    return matches and (
        data.problems is None or settings.get("n") == data.problems or run.path == run_path(folder, job)
    )
