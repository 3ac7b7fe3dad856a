"""Study -> jobs, required adapters.

From a study and a question to its jobs: one method of one model on one data set each, and the run file it fills.

The adapters that a study needs: which are there, what training them took, and the command for those that are not.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adapters.manifest import MANIFEST_NAME, Manifest
from adapters.store import LIBRARY, user_root
from errors import AdapterError
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
        """Whether the fine-tuned base itself answers."""
        return self.technique == "full"

    @property
    def method(self) -> str:
        """The method's name, as tasks.methods reads it."""
        parts = [part for part in ("" if self.is_full_finetune else self.adapter, self.examples) if part]
        return "+".join(parts) or ZERO_SHOT

    @property
    def k(self) -> int:
        """How many examples the prompt shows."""
        return int(self.examples.partition("-")[2] or 0)

    @property
    def kind(self) -> str:
        """zero-shot, icl, rag, or the technique, with "+icl" or "+rag" where both meet: what rows are grouped by."""
        examples = self.examples.partition("-")[0]
        return "+".join(part for part in (self.technique, examples) if part) or ZERO_SHOT

    @property
    def title(self) -> str:
        """As tables name it: LoRA + RAG (8)."""
        shown = f"{self.examples.partition('-')[0].upper()} ({self.k})" if self.examples else ""
        tuned = METHOD_TITLES[self.technique] if self.technique else ""
        if self.pair:
            tuned += f" r {self.pair[0]}, alpha {self.pair[1]}"
        return " + ".join(part for part in (tuned, shown) if part) or METHOD_TITLES[""]

    @property
    def base(self) -> str:
        """What --base takes: the model's own, or the folder of the fully fine-tuned one."""
        return str(user_root() / self.adapter) if self.is_full_finetune else self.model.base

    @property
    def base_id(self) -> str:
        """How a run names that base."""
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
    """All jobs of a question, each once, in the order in which they run."""
    question = config.question(rq)
    found: list[StudyJob] = []
    for model in map(config.model, question.models):
        for data in map(config.dataset, question.data):
            found += _question_jobs(config, rq, question, model, data)
    if rq == "rq2" and config.sensitivity:
        found += _sensitivity_jobs(config, config.sensitivity)
    return list(dict.fromkeys(found))


def limit_problems(jobs: Sequence[StudyJob], limit: int | None) -> list[StudyJob]:
    """The same jobs over at most the first `limit` problems."""
    if limit is None:
        return list(jobs)
    return [replace(job, data=replace(job.data, problems=min(limit, job.data.problems or limit))) for job in jobs]


def run_path(folder: Path, job: StudyJob) -> Path:
    """The file that a job's answers go to: one for each base, quantization, data set, number of problems, decoding."""
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
        # So that every technique has the untuned base beside it, with the same weights.
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


# What a manifest's config says of the training that is worth a column.
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
    """An adapter (or fully fine-tuned model) that jobs ask for. `problem` says why a folder of that name is no use."""

    name: str
    job: StudyJob
    manifest: Manifest | None
    problem: str = ""

    @property
    def is_available(self) -> bool:
        """Whether jobs can use it."""
        return self.manifest is not None and not self.problem


def required_adapters(jobs: Iterable[StudyJob]) -> list[RequiredAdapter]:
    """The adapters of these jobs, each once, in their order."""
    first: dict[str, StudyJob] = {}
    for job in jobs:
        if job.adapter:
            first.setdefault(job.adapter, job)
    return [_find_adapter(name, job) for name, job in first.items()]


def training_facts(manifest: Manifest | None) -> dict[str, Any]:
    """What training took, as the adapter's manifest has it; {} where nothing is known."""
    if manifest is None:
        return {}
    known: Mapping[str, Any] = manifest.config
    found = {name: known[name] for name in _TRAINING_FIELDS if known.get(name) is not None}
    return {"technique": manifest.technique, "trained_quantization": manifest.trained_quantization, **found}


def train_command(config: StudyConfig, job: StudyJob, data_dir: Path | None, checkpointing: bool) -> list[str]:
    """The arguments of `python -m train` that make the adapter of a job; an unfinished run is gone on with."""
    if has_unfinished_run(job.adapter):
        return ["--adapter-name", job.adapter, "--resume"]
    model = job.model
    words = ["--preset", config.training.preset, "--technique", job.technique, "--dataset-name", job.data.name]
    words += ["--adapter-name", job.adapter]
    if model.base != EMBEDDED:
        words += ["--model-name-or-path", model.base]
    if job.technique in ("ia3", "prompt-tuning", "prefix-tuning"):
        words += ["--quantization", job.quantization]
    if job.pair:
        words += ["--lora-r", str(job.pair[0]), "--lora-alpha", str(job.pair[1])]
    if config.training.epochs:
        words += ["--num-train-epochs", f"{config.training.epochs:g}"]
    if checkpointing:
        words += ["--gradient-checkpointing"]
    if model.trust_remote_code:
        words += ["--trust-remote-code"]
    if config.device != "auto":
        words += ["--device", config.device]
    return [*words, *(["--data-dir", str(data_dir)] if data_dir else [])]


def format_train_command(arguments: Iterable[str]) -> str:
    """The command line as a person types it."""
    return "python -m train " + shlex.join(arguments)


def has_unfinished_run(name: str) -> bool:
    """Whether a run of that name was stopped with a checkpoint, as train/checkpoints.py leaves it."""
    folder = user_root() / f".{name}.run"
    return (folder / "settings.json").is_file() and any(folder.glob("checkpoints/checkpoint-*/trainer_state.json"))


def _find_adapter(name: str, job: StudyJob) -> RequiredAdapter:
    # As serve.engine.build: what the user trained hides what comes along.
    for root in (user_root(), LIBRARY):
        if (root / name / MANIFEST_NAME).is_file():
            try:
                manifest = Manifest.read(root / name)
            except AdapterError as error:
                return RequiredAdapter(name, job, None, str(error))
            mismatch = _manifest_mismatch(manifest, job)
            if mismatch and root == LIBRARY:
                break  # one of the user's own will hide it
            return RequiredAdapter(name, job, manifest, mismatch)
    return RequiredAdapter(name, job, None)


def _manifest_mismatch(manifest: Manifest, job: StudyJob) -> str:
    wanted = {
        "base": (manifest.base_id, job.base_id if not job.is_full_finetune else manifest.base_id),
        "data": (manifest.dataset, job.data.name),
        "technique": (manifest.technique, job.technique),
        "quantization": (manifest.trained_quantization, job.quantization),
    }
    for what, (there, here) in wanted.items():
        if there != here:
            return f"'{manifest.name}' was trained with {what} {there}, not {here}: rename it, or change the study."
    return ""
