"""Types of jobs (Job, Progress, Verdict), and the validation of a new job's settings, name and data."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from adapters.store import LIBRARY, Store
from common.files import check_disk_space
from errors import DataError, DiskSpaceError, TrainingError, UnknownNameError
from serve.options import ModelOptions
from tasks.datasets.hub import is_hub_id
from tasks.datasets.registry import TRAINING_DATASETS, is_dataset, require_training
from tasks.datasets.tables import FORMATS
from train.config import RunDirectory, TrainConfig
from train.settings import FIELDS, make_config

# queued: waits for the worker. running: has a process. stopping: a person asked it to stop, and it saves a checkpoint.
# stopped: ended by a person, with or without a checkpoint. failed: ended by an error, which `message` states.
JobStatus = Literal["queued", "running", "stopping", "stopped", "failed", "done"]
JobStage = Literal["", "training", "scoring", "advising"]
JobKind = Literal["train", "advise"]
ComputeTarget = Literal["here", "hub"]  # this machine, or Hugging Face Jobs

ENDED_STATUSES: tuple[JobStatus, ...] = ("stopped", "failed", "done")


@dataclass(frozen=True)
class ServingOptions:
    """The base that the app serves, as its command line named it. A job trains for it and is scored on it."""

    base: str = "embedded"
    quantization: str = "nf4"
    device: str = "auto"
    data_dir: str | None = None
    trust_remote_code: bool = False
    embedder: str = "embedded"


def model_options(serving: ServingOptions) -> ModelOptions:
    """Return the options of an engine over the base that the app serves."""
    return ModelOptions(
        serving.base,
        serving.quantization,
        serving.device,
        Path(serving.data_dir) if serving.data_dir else None,
        serving.trust_remote_code,
        serving.embedder,
    )


@dataclass(frozen=True)
class Job:
    """One job. `config` has TrainConfig's fields by name (train.settings.make_config reads it).

    A job of the kind "advise" answers whether to prompt, to retrieve or to fine-tune (jobs.api): its `config` is
    what `AdviseOptions.to_json` wrote, and `adapter` the name of the adapter that it may make.

    `owner` is the id of the visitor who submitted it, '' for a job from the command line, and `owner_name` the name of
    the login. With `visitor_data` a data set of the Hub is fetched without the token and the cache of this machine,
    which are its owner's. `data_name` is the name of the uploaded file, or of the data set. Times
    are ISO 8601 in UTC, '' before they are known. `message` is text for people: the last progress line, or the error.
    `queue_position` counts the jobs ahead of a queued one.
    """

    id: str
    adapter: str
    config: Mapping[str, Any]
    serving: ServingOptions
    data_name: str
    owner: str = ""
    owner_name: str = ""
    visitor_data: bool = False
    kind: JobKind = "train"
    where: ComputeTarget = "here"
    flavor: str = ""  # hardware of Hugging Face Jobs, such as "a10g-small"
    created: str = ""
    started: str = ""
    ended: str = ""
    state: JobStatus = "queued"
    stage: JobStage = ""
    message: str = ""
    attempts: int = 0
    queue_position: int = 0

    @property
    def is_ended(self) -> bool:
        """Whether the job has no process and waits for none."""
        return self.state in ENDED_STATUSES


@dataclass(frozen=True)
class Progress:
    """Progress of the training. `losses` and `validation` hold (step, loss); `left_seconds` is None until known."""

    step: int = 0
    steps: int = 0
    seconds: float = 0.0
    left_seconds: float | None = None
    tokens_per_second: float = 0.0
    memory_bytes: int = 0
    losses: tuple[tuple[int, float], ...] = ()
    validation: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class ScoreComparison:
    """One metric of the adapter against one other method over the same n held-out rows, in [0, 1].

    `value`, `low` and `high` are the difference (adapter - other) and its 95 % interval; `p` is Holm-corrected.
    """

    metric: str  # "em" or "codebleu"
    other: str  # a method's name, such as "zero-shot" or "rag-8"
    adapter_score: float
    other_score: float
    value: float
    low: float
    high: float
    p: float
    n: int


@dataclass(frozen=True)
class Verdict:
    """The result of the scoring. `sentence` states it as text; `provenance` holds what is needed to reproduce it."""

    sentence: str
    n: int
    compared: tuple[ScoreComparison, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)


# Fraction of an epoch. A checkpoint is saved with each evaluation; a power cut loses the steps since the last one.
DEFAULT_EVAL_EVERY = 0.1
# These settings come from the base that is served; a job may not choose where files are written.
_SERVING_SETTINGS = ("data_dir", "device", "trust_remote_code")
_FORBIDDEN_SETTINGS = ("output_dir", "overwrite", "validation_file", "push_to_hub", "hub_model_id", "hub_private_repo")
_UNSAFE_CHARACTERS = re.compile(r"[^A-Za-z0-9._-]+")
_MAX_NAME_LENGTH, _MAX_SUFFIX_LENGTH = 80, 12
_SPARE_BYTES = 100_000_000


def resolve_settings(config: Mapping[str, Any], serving: ServingOptions, data: Path | None) -> dict[str, Any]:
    """Check the settings and return all of them, as job.json stores them. `data` is the path of an uploaded file.

    The values that a preset or a technique decides are stored too, so that a resumed job continues with them. Raises
    TrainingError, UnknownNameError or DataError.
    """
    values = dict(config)
    for name in _FORBIDDEN_SETTINGS:
        if values.pop(name, None):
            raise TrainingError(f"A job decides {name} by itself: leave it out.")
    values |= {name: getattr(serving, name) for name in _SERVING_SETTINGS}
    if values.setdefault("model_name_or_path", serving.base) != serving.base:
        raise TrainingError(
            f"A job trains for the base that is served here, {serving.base}, not {values['model_name_or_path']}: "
            "start the app with that base."
        )
    values.setdefault("eval_every", DEFAULT_EVAL_EVERY)
    if data is None:
        _check_dataset_name(str(values.get("dataset_name", "")))
    else:
        values["dataset_name"] = str(data)
    resolved = make_config(values)
    allowed = {name: getattr(resolved, name) for name in FIELDS if name not in _FORBIDDEN_SETTINGS}
    return {name: value for name, value in allowed.items() if value is not None}


def job_config(job: Job, home: Path) -> TrainConfig:
    """Return the job's TrainConfig, with the store of this home as output; TrainingError if it is no longer valid."""
    return make_config(job.config, output_dir=home / "adapters")


def check_name_is_free(name: str, home: Path, others: Iterable[Job]) -> None:
    """Raise TrainingError when an adapter, a run of the command line or one of the `others` has the name."""
    store = Store((LIBRARY, home / "adapters"))
    if name in store.names() or (home / "adapters" / name).exists():
        raise TrainingError(f"An adapter '{name}' exists: choose another name, or delete that one first.")
    if other := next((job for job in others if job.adapter == name), None):
        raise TrainingError(
            f"The name '{name}' belongs to the job of {other.created[:16].replace('T', ' ')} ({other.state}): choose "
            "another name, or delete that job first."
        )
    if step := RunDirectory(home / "adapters" / name).last_step():
        raise TrainingError(
            f"A run of '{name}' that was begun on the command line stopped at step {step}: choose another name, or "
            f"continue it there (python -m train --adapter-name {name} --resume)."
        )


def safe_file_name(name: str) -> str:
    """Return a safe file name without folders, of at most 80 characters; the suffix, which tells the format, stays."""
    last = PurePosixPath(_UNSAFE_CHARACTERS.sub("-", PurePosixPath(name.replace("\\", "/")).name))
    ending = last.suffix[:_MAX_SUFFIX_LENGTH]
    return (last.stem.strip(".-")[: _MAX_NAME_LENGTH - len(ending)] or "data") + ending


def copy_upload(source: Path, target: Path) -> None:
    """Copy an uploaded file and flush it to the disk; raises DataError or DiskSpaceError."""
    try:
        check_disk_space(target.parent, source.stat().st_size + _SPARE_BYTES)
        target.touch(0o600)
        shutil.copyfile(source, target)
        with target.open("rb+") as file:
            os.fsync(file.fileno())
    except DiskSpaceError:
        raise
    except OSError as error:
        raise DataError(f"{source.name} cannot be copied ({error.strerror or error}): upload it again.") from error


def _check_dataset_name(name: str) -> None:
    """Raise an error unless the name is a data set, known here or on the Hub: a visitor may read no local path.

    Who may use the own ones of the owner of the app, the page checks (ui/train/drafts.py).
    """
    if is_dataset(name):
        require_training(name)
        return
    path = Path(name).expanduser()
    if not name or path.exists() or path.suffix.casefold() in FORMATS:
        raise DataError("A job reads the file that was uploaded for it: give the file itself, or name a data set.")
    if not is_hub_id(name):
        raise UnknownNameError(
            f"'{name[:100]}' is no data set: name one of {', '.join(TRAINING_DATASETS)}, or one of the Hub as "
            "user/name."
        )
