"""What a training job is: what was asked for, how far it is, and what came of it. Plain values, ready for JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

# queued: waits its turn. running: has a process. stopping: a person asked it to stop, and it is saving a checkpoint.
# stopped: ended by a person, with a checkpoint or without. failed: ended by a fault, `message` says which.
JobStatus = Literal["queued", "running", "stopping", "stopped", "failed", "done"]
JobStage = Literal["", "training", "scoring"]
ComputeTarget = Literal["here", "hub"]  # this machine, or Hugging Face Jobs

ENDED_STATUSES: tuple[JobStatus, ...] = ("stopped", "failed", "done")


@dataclass(frozen=True)
class ServingOptions:
    """The base that the app serves, as its command line named it; a job trains for it and is scored on it."""

    base: str = "embedded"
    quantization: str = "nf4"
    device: str = "auto"
    data_dir: str | None = None
    trust_remote_code: bool = False
    embedder: str = "embedded"


@dataclass(frozen=True)
class Job:
    """One training job. `config` has TrainConfig's fields by name (train.settings.make_config reads it).

    `owner` is the id of the visitor who began it, '' for nobody in particular. `data_name` is what the person calls
    the data: the file as uploaded, or the data set. Times are ISO 8601 in UTC, '' before they come. `message` is one
    sentence for people: the last line of progress, or the fault. `before` counts the jobs ahead of a queued one.
    """

    id: str
    adapter: str
    config: Mapping[str, Any]
    serving: ServingOptions
    data_name: str
    owner: str = ""
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
        """Whether nothing of it runs or will run by itself."""
        return self.state in ENDED_STATUSES


@dataclass(frozen=True)
class Progress:
    """How far the training is. `losses` and `validation` are (step, loss); `left_seconds` None until it is known."""

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
    """What the scores say. `sentence` is the finding in words and numbers; `provenance` is what repeats them."""

    sentence: str
    n: int
    compared: tuple[ScoreComparison, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)
