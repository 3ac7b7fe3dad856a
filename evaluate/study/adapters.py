"""The adapters that a study needs: which are there, what training them took, and the command for those that are not."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.manifest import MANIFEST_NAME, Manifest
from adapters.store import LIBRARY, user_root
from errors import AdapterError
from evaluate.study.config import StudyConfig
from evaluate.study.jobs import StudyJob
from serve.backends.local.source import EMBEDDED

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
    """Whether a run of that name was stopped with a checkpoint, as train/workspace.py leaves it."""
    folder = user_root() / f".{name}.run"
    return (folder / "settings.json").is_file() and any(folder.glob("checkpoints/checkpoint-*/trainer_state.json"))


def _find_adapter(name: str, job: StudyJob) -> RequiredAdapter:
    # As serve.build: what the user trained hides what comes along.
    for root in (user_root(), LIBRARY):
        if (root / name / MANIFEST_NAME).is_file():
            try:
                manifest = Manifest.read(root / name)
            except AdapterError as fault:
                return RequiredAdapter(name, job, None, str(fault))
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
