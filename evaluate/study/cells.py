"""From a folder of Run files to the study's cells: what each job's method answered and scored, and what training took.

Files are known by what stands in them, not by their names, so runs of `python -m evaluate` count as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from errors import PromptOrTuneError
from evaluate.aggregate import metric_values, summarize
from evaluate.results import Result, Run, read_run
from evaluate.run import make_sampling_params
from evaluate.stats import Interval
from evaluate.study.jobs import StudyJob, required_adapters, run_path, training_facts

TRAINING_KEY = "training"  # the name under which a run keeps what training an adapter took


@dataclass(frozen=True)
class FinishedJob:
    """A job that is finished: its results, one a problem, in the order of the run's problems."""

    job: StudyJob
    run: Run
    results: Sequence[Result]

    @property
    def bootstrap_seed(self) -> int:
        """Of the bootstrap."""
        return int(self.run.settings["seed"])

    @property
    def training_facts(self) -> Mapping[str, Any]:
        """What training the adapter took: trainable_parameters, train_seconds, ... as far as it is known.

        The run has it, or the manifest of the adapter with these very weights, where that lies here.
        """
        known = self.run.methods.get(self.job.method, {})
        if known.get(TRAINING_KEY):
            return dict(known[TRAINING_KEY])
        manifests = [each.manifest for each in required_adapters([self.job]) if each.manifest]
        return training_facts(next((m for m in manifests if m.weights_digest == known.get("adapter_digest")), None))

    def results_for(self, problems: set[str] | None = None) -> list[Result]:
        """The results, of these problems alone where they are given."""
        return [result for result in self.results if problems is None or result.problem in problems]

    def interval(self, metric: str, problems: set[str] | None = None) -> Interval | None:
        """The mean over the problems that have the metric, with its 95 % interval; None where none has."""
        found = summarize(self.results_for(problems), metric, self.bootstrap_seed)
        return found.interval if found else None

    def mean(self, metric: str) -> float | None:
        """The mean over the problems that have the metric."""
        values = list(metric_values(self.results, metric).values())
        return sum(values) / len(values) if values else None

    @property
    def is_apps_test_split(self) -> bool:
        """Whether the problems are APPS's test rows; a folder of APPS has train rows (tasks/datasets/apps.py)."""
        return self.job.data.name == "apps" and all(each["id"].startswith("apps-test-") for each in self.run.problems)

    def problems_by_difficulty(self) -> dict[str, set[str]]:
        """Problem ids by difficulty, in the order of the run; "all" where the data set has none."""
        found: dict[str, set[str]] = {}
        for problem in self.run.problems:
            found.setdefault(problem.get("difficulty") or "all", set()).add(problem["id"])
        return found


@dataclass
class CollectedRuns:
    """What a folder holds of some jobs. `unfinished` has how many problems are done, and of how many."""

    finished: dict[StudyJob, FinishedJob] = field(default_factory=dict)
    unfinished: dict[StudyJob, tuple[int, int]] = field(default_factory=dict)

    def find(self, **attributes: Any) -> list[FinishedJob]:
        """The cells whose job has these attributes, in the order of the jobs."""
        return [
            cell
            for job, cell in self.finished.items()
            if all(getattr(job, name) == value for name, value in attributes.items())
        ]


def read_runs(folder: Path) -> list[Run]:
    """All runs of a folder, by name; one that cannot be read is refused in one sentence."""
    paths = [*folder.glob("*.jsonl"), *folder.glob("*.jsonl.gz")]
    return [read_run(path) for path in sorted(paths) if ".scores." not in path.name]


def collect_jobs(jobs: Iterable[StudyJob], runs: Sequence[Run], folder: Path) -> CollectedRuns:
    """The jobs' cells; where several files have a job, the one with the most results counts."""
    found = CollectedRuns()
    for job in jobs:
        fitting = [run for run in runs if _run_matches_job(run, job, folder) and run.results(job.method)]
        if not fitting:
            continue
        run = max(fitting, key=lambda each: (len(each.results(job.method)), each.path == run_path(folder, job)))
        results = run.results(job.method)
        if len(results) < len(run.problems):
            found.unfinished[job] = (len(results), len(run.problems))
        else:
            found.finished[job] = FinishedJob(job, run, results)
    return found


def has_unscored(run: Run) -> bool:
    """Whether results of the run lack scores, of their texts or of the problems' tests."""
    tested = {problem["id"] for problem in run.problems if problem.get("tests")}
    return any(
        "parses" not in result.scores or (result.problem in tested and "tests" not in result.scores)
        for method in run.methods
        for result in run.results(method)
    )


def datasets_present(finished: Iterable[FinishedJob], datasets: Sequence[str]) -> list[str]:
    """The data sets that any of these cells is about, in the order given."""
    there = {cell.job.data.name for cell in finished}
    return [data for data in datasets if data in there]


def require_results(collected: CollectedRuns, rq: str, folder: Path) -> None:
    """PromptOrTuneError where there is nothing to make a page of."""
    if not collected.finished:
        begun = f" {len(collected.unfinished)} methods are begun." if collected.unfinished else ""
        raise PromptOrTuneError(f"{folder} holds no finished results of {rq}.{begun} Run the command without --tables.")


def _run_matches_job(run: Run, job: StudyJob, folder: Path) -> bool:
    data, settings = job.data, run.settings
    decoding = make_sampling_params(data.mode, data.candidates, data.max_new_tokens, 0, data.temperature, data.top_p)
    names = ["mode", "candidates", "max_new_tokens", *(("temperature", "top_p") if data.mode == "sample" else ())]
    same = (
        settings.get("base_id") == job.base_id
        and settings.get("quantization") == job.quantization
        and settings.get("data") == data.name
        and settings.get("split") == "test"
        and all(settings.get("decoding", {}).get(name) == getattr(decoding, name) for name in names)
    )
    return same and (data.problems is None or settings.get("n") == data.problems or run.path == run_path(folder, job))
