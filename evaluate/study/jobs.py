"""Jobs of a study (one method of one model on one data set), their adapters, and the results of finished ones.

Each job has a run file. For each required adapter this module finds it, reads the facts of its training, or gives the
command that trains it.

Collection of finished jobs from a folder of Run files: results, scores, and facts of the training. Files are recognised
by their settings, not by their names, so runs of `python -m evaluate` count as well.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from adapters.manifest import MANIFEST_NAME, Manifest
from adapters.store import LIBRARY, user_root
from errors import AdapterError, PromptOrTuneError
from evaluate.generate import make_sampling_params
from evaluate.metrics.basic import add_in_order
from evaluate.results import Result, Run, read_run
from evaluate.stats import Interval, metric_values, summarize
from evaluate.study.config import (
    DEFAULT_LORA_ALPHA,
    DEFAULT_LORA_RANK,
    METHOD_TITLES,
    ResearchQuestion,
    SensitivityGrid,
    StudyConfig,
    StudyDataset,
    StudyModel,
)
from models.source import EMBEDDED, EMBEDDED_ID

ZERO_SHOT = "zero-shot"
TRAINING_KEY = "training"  # key of a run's method entry that holds the facts of the adapter's training


@dataclass(frozen=True)
class StudyJob:
    """One method on one data set. `technique` is '' without an adapter; `examples` is '', "icl-k" or "rag-k".

    `adapter` is also the name of the fully fine-tuned model, which answers as a base of its own. `pair` holds LoRA's
    rank and alpha where the job belongs to the sensitivity section.
    """

    model: StudyModel
    data: StudyDataset
    quantization: str
    technique: str = ""
    examples: str = ""
    adapter: str = ""
    pair: tuple[int, int] | None = None

    @property
    def is_full_finetune(self) -> bool:
        """Whether a fully fine-tuned base answers."""
        return self.technique == "full"

    @property
    def method(self) -> str:
        """The method's name, as tasks.methods reads it."""
        parts = [part for part in ("" if self.is_full_finetune else self.adapter, self.examples) if part]
        return "+".join(parts) or ZERO_SHOT

    @property
    def k(self) -> int:
        """Number of examples in the prompt."""
        return int(self.examples.partition("-")[2] or 0)

    @property
    def kind(self) -> str:
        """zero-shot, icl, rag, or the technique, with "+icl" or "+rag" when combined. Rows are grouped by it."""
        examples = self.examples.partition("-")[0]
        return "+".join(part for part in (self.technique, examples) if part) or ZERO_SHOT

    @property
    def title(self) -> str:
        """The name in tables, such as LoRA + RAG (8)."""
        examples = f"{self.examples.partition('-')[0].upper()} ({self.k})" if self.examples else ""
        tuned = METHOD_TITLES[self.technique] if self.technique else ""
        if self.pair:
            tuned += f" r {self.pair[0]}, alpha {self.pair[1]}"
        return " + ".join(part for part in (tuned, examples) if part) or METHOD_TITLES[""]

    @property
    def base(self) -> str:
        """The value for --base: the model's, or the folder of the fully fine-tuned one."""
        return str(user_root() / self.adapter) if self.is_full_finetune else self.model.base

    @property
    def base_id(self) -> str:
        """The base's name in a run."""
        if self.is_full_finetune:
            return self.adapter
        name, _, _ = self.model.base.partition("@")
        if name == EMBEDDED:
            return EMBEDDED_ID
        path = Path(name).expanduser()
        if name.endswith(".gguf"):
            return path.stem
        return path.resolve().name if path.is_dir() else name


def study_jobs(config: StudyConfig, rq: str) -> list[StudyJob]:
    """Return all jobs of a question, each once, in the order in which they run."""
    question = config.question(rq)
    found: list[StudyJob] = []
    for model in map(config.model, question.models):
        for data in map(config.dataset, question.data):
            found += _question_jobs(config, rq, question, model, data)
    if rq == "rq2" and config.sensitivity:
        found += _sensitivity_jobs(config, config.sensitivity)
    return list(dict.fromkeys(found))


def limit_problems(jobs: Sequence[StudyJob], limit: int | None) -> list[StudyJob]:
    """Return the same jobs with at most the first `limit` problems."""
    if limit is None:
        return list(jobs)
    return [replace(job, data=replace(job.data, problems=min(limit, job.data.problems or limit))) for job in jobs]


def run_path(folder: Path, job: StudyJob) -> Path:
    """Return the job's run file: one for each base, quantization, data set, number of problems and decoding."""
    data = job.data
    base = job.adapter if job.is_full_finetune else job.model.slug
    problems = "all" if data.problems is None else f"first{data.problems}"
    decoding = "greedy" if data.mode == "greedy" else f"{data.mode}{data.candidates}"
    return folder / f"{base}-{job.quantization}-{data.name}-{problems}-{decoding}.jsonl"


def _question_jobs(
    config: StudyConfig, rq: str, question: ResearchQuestion, model: StudyModel, data: StudyDataset
) -> Iterator[StudyJob]:
    techniques = [name for name in question.techniques if name in model.techniques] if rq != "rq1" else []
    plain = StudyJob(model, data, model.quantization)
    yield plain
    if rq == "rq2":
        # Every technique is compared with the untuned base in the same quantization.
        yield from (replace(plain, quantization=config.techniques[name]) for name in techniques if name != "full")
    if rq in ("rq1", "rq3"):
        yield from (replace(plain, examples=f"icl-{k}") for k in data.icl)
    if rq == "rq3":
        yield from (replace(plain, examples=f"rag-{k}") for k in data.rag)
    for name in techniques:
        job = replace(plain, quantization=config.techniques[name], technique=name)
        job = replace(job, adapter=config.adapter_name(name, data.name, model))
        yield job
        if rq == "rq3":
            yield from (replace(job, examples=each) for each in question.together)


def _sensitivity_jobs(config: StudyConfig, section: SensitivityGrid) -> Iterator[StudyJob]:
    model, data = config.model(section.model), config.dataset(section.data)
    for pair in section.pairs:
        name = config.adapter_name(section.technique, data.name, model, pair)
        job = StudyJob(model, data, config.techniques[section.technique], section.technique, adapter=name)
        yield job if pair == (DEFAULT_LORA_RANK, DEFAULT_LORA_ALPHA) else replace(job, pair=pair)


TRAIN_BATCH_SIZE = 8  # rows of one update, as in the presets of `python -m train`
# The fields of a manifest's config that tables use.
_TRAINING_FIELDS = (
    "trainable_parameters",
    "train_seconds",
    "peak_memory_bytes",
    "num_train_epochs",
    "lora_r",
    "lora_alpha",
)


@dataclass(frozen=True)
class RequiredAdapter:
    """An adapter or fully fine-tuned model that jobs use. `problem` states why an existing folder cannot be used."""

    name: str
    job: StudyJob
    manifest: Manifest | None
    problem: str = ""

    @property
    def is_available(self) -> bool:
        """Whether the adapter exists and fits its jobs."""
        return self.manifest is not None and not self.problem


def required_adapters(jobs: Iterable[StudyJob]) -> list[RequiredAdapter]:
    """Return the adapters of these jobs, each once, in the order of the jobs."""
    first: dict[str, StudyJob] = {}
    for job in jobs:
        if job.adapter:
            first.setdefault(job.adapter, job)
    return [_find_adapter(name, job) for name, job in first.items()]


def training_facts(manifest: Manifest | None) -> dict[str, Any]:
    """Return the facts of the training from the adapter's manifest; {} without a manifest."""
    if manifest is None:
        return {}
    config: Mapping[str, Any] = manifest.config
    facts = {name: config[name] for name in _TRAINING_FIELDS if config.get(name) is not None}
    return {"technique": manifest.technique, "trained_quantization": manifest.trained_quantization, **facts}


def train_command(
    config: StudyConfig,
    job: StudyJob,
    data_dir: Path | None,
    batch: int = TRAIN_BATCH_SIZE,
    checkpointing: bool = False,
) -> list[str]:
    """Return the arguments of `python -m train` for the job's adapter; an unfinished run is resumed.

    An update is of TRAIN_BATCH_SIZE rows, of which `batch` at once.
    """
    if has_unfinished_run(job.adapter):
        return ["--adapter-name", job.adapter, "--resume"]
    model = job.model
    arguments = ["--preset", config.training.preset, "--technique", job.technique, "--dataset-name", job.data.name]
    arguments += ["--adapter-name", job.adapter]
    if model.base != EMBEDDED:
        arguments += ["--model-name-or-path", model.base]
    if job.technique in ("ia3", "prompt-tuning", "prefix-tuning"):
        arguments += ["--quantization", job.quantization]
    if job.pair:
        arguments += ["--lora-r", str(job.pair[0]), "--lora-alpha", str(job.pair[1])]
    if config.training.epochs:
        arguments += ["--num-train-epochs", f"{config.training.epochs:g}"]
    if batch < TRAIN_BATCH_SIZE:
        arguments += ["--per-device-train-batch-size", str(batch)]
        arguments += ["--gradient-accumulation-steps", str(TRAIN_BATCH_SIZE // batch)]
    if checkpointing:
        arguments += ["--gradient-checkpointing"]
    if model.trust_remote_code:
        arguments += ["--trust-remote-code"]
    if config.device != "auto":
        arguments += ["--device", config.device]
    return [*arguments, *(["--data-dir", str(data_dir)] if data_dir else [])]


def format_train_command(arguments: Iterable[str]) -> str:
    """Return the command line for a shell."""
    return "python -m train " + shlex.join(arguments)


def has_unfinished_run(name: str) -> bool:
    """Return whether train/config.py has left a checkpoint of an unfinished run of that name."""
    folder = user_root() / f".{name}.run"
    return (folder / "settings.json").is_file() and any(folder.glob("checkpoints/checkpoint-*/trainer_state.json"))


def _find_adapter(name: str, job: StudyJob) -> RequiredAdapter:
    # The user's adapters take precedence over the bundled ones, as in serve.engine.build.
    for root in (user_root(), LIBRARY):
        if (root / name / MANIFEST_NAME).is_file():
            try:
                manifest = Manifest.read(root / name)
            except AdapterError as error:
                return RequiredAdapter(name, job, None, str(error))
            mismatch = _manifest_mismatch(manifest, job)
            if mismatch and root == LIBRARY:
                break  # an adapter that the user trains takes precedence over this one
            return RequiredAdapter(name, job, manifest, mismatch)
    return RequiredAdapter(name, job, None)


def _manifest_mismatch(manifest: Manifest, job: StudyJob) -> str:
    comparisons = {
        "base": (manifest.base_id, job.base_id if not job.is_full_finetune else manifest.base_id),
        "data": (manifest.dataset, job.data.name),
        "technique": (manifest.technique, job.technique),
        "quantization": (manifest.trained_quantization, job.quantization),
    }
    for what, (actual, expected) in comparisons.items():
        if actual != expected:
            return (
                f"'{manifest.name}' was trained with {what} {actual}, not {expected}: rename it, or change the study."
            )
    return ""


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
