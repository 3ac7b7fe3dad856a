"""Job folder on disk, progress, checkpoints.

The folder of one job, `<home>/jobs/<id>`: what was asked for, and how it stands, which is replaced in one step.

- job.json: the request, which never changes
- state.json: how it stands
- stop: there while a person wants the running process to stop
- running: locked by the process that works on the job
- log.txt, log.jsonl, scores.jsonl, verdict.json, data/<uploaded file>

What a job's training has left on disk: checkpoints to go on from, or the finished adapter.

How far a job's training is, read from the log that it writes.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

from adapters.manifest import Manifest
from common.files import atomic_write, file_lock, is_locked
from common.paths import make_dir
from errors import PromptOrTuneError, UnknownNameError
from evaluate.journal import read_records
from jobs.job import Job, JobStage, JobStatus, Progress, ScoreComparison, ServingOptions, Verdict, job_config
from train.checkpoints import RunDirectory, run_directory
from train.config import TrainConfig

_JOB_ID = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9]{6}-[0-9a-f]{6}")
_LOCK_TIMEOUT_SECONDS = 60.0  # seconds; whoever changes a state is done within milliseconds
_JOB_STATE_FIELDS = ("state", "stage", "message", "started", "ended", "attempts")
_REQUEST_FIELDS = ("id", "adapter", "config", "data_name", "owner", "where", "flavor", "created")


@dataclass(frozen=True)
class JobState:
    """What state.json holds: Job's changing fields, and what the worker needs.

    `queued` says since when it waits: the longest waiting job is next. `ticket` is the number of the one entry of the
    queue that counts; entries with another are old. `finish` asks for the adapter of the best checkpoint. `trained`
    says that the adapter is written. `crashes` counts ends that nobody asked for since the job last got further than
    `reached`. `steps` is the length of the training, 0 before it is known; `anchor` the first step that this attempt
    finished, with the time (seconds since 1970) when it did.
    """

    state: JobStatus = "queued"
    stage: JobStage = ""
    message: str = ""
    started: str = ""
    ended: str = ""
    queued: str = ""
    generation: int = 0
    attempts: int = 0
    finish: bool = False
    trained: bool = False
    crashes: int = 0
    reached: tuple[int, int] = (0, 0)
    steps: int = 0
    anchor: tuple[int, float] = (0, 0.0)


class JobFolder:
    """The files of one job. `root` is `<home>/jobs`; `path` another place while the folder is being made.

    UnknownNameError for an id that can be none: no other path is ever reached.
    """

    def __init__(self, root: Path, id: str, path: Path | None = None) -> None:
        if not _JOB_ID.fullmatch(id):
            raise unknown_job_error(id)
        self.id = id
        self.path = path or root / id

    @property
    def log_path(self) -> Path:
        """Lines for people."""
        return self.path / "log.txt"

    @property
    def curve_path(self) -> Path:
        """The training's log.jsonl once that is over, which outlives the adapter; of a job elsewhere, as it grows."""
        return self.path / "log.jsonl"

    @property
    def scores_path(self) -> Path:
        """A run of `python -m evaluate`."""
        return self.path / "scores.jsonl"

    @property
    def stop_path(self) -> Path:
        """There while a person wants the running process to stop."""
        return self.path / "stop"

    @property
    def lock_path(self) -> Path:
        """Locked by the process that works on the job."""
        return self.path / "running"

    def is_running(self) -> bool:
        """Whether a living process works on it."""
        return is_locked(self.lock_path)

    def write_request(self, job: Job) -> None:
        """Keeps what was asked for."""
        values = {name: getattr(job, name) for name in _REQUEST_FIELDS} | {"serving": asdict(job.serving)}
        _write_json(self.path / "job.json", values)

    def read_state(self) -> JobState:
        """How it stands. A file that cannot be read is a failure that a person can retry."""
        try:
            return _parse_state(json.loads((self.path / "state.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            message = "It is lost how this job stood (state.json cannot be read): resume it, or delete it."
            return JobState(state="failed", message=message)

    def write_state(self, state: JobState) -> None:
        """Replaces how it stands, in one step; only within `changing`."""
        _write_json(self.path / "state.json", asdict(state))

    def read_job(self) -> Job:
        """The job as it stands; UnknownNameError where there is none."""
        return self.read_job_and_state()[0]

    def read_job_and_state(self) -> tuple[Job, JobState]:
        """The job as it stands, and all else of its state, from one look at the files."""
        if not self.path.is_dir():
            raise unknown_job_error(self.id)
        standing = self.read_state()
        try:
            request = json.loads((self.path / "job.json").read_text(encoding="utf-8"))
            asked = {name: request[name] for name in _REQUEST_FIELDS if name != "config"}
            config, serving = dict(request["config"]), ServingOptions(**request["serving"])
        except (OSError, ValueError, TypeError, KeyError):
            asked = {"id": self.id, "adapter": "", "data_name": "", "created": _created_at(self.id)}
            config, serving = {}, ServingOptions()
            message = "What was asked for is lost (job.json cannot be read): delete this job and begin a new one."
            standing = JobState(state="failed", message=message)
        shown = {name: getattr(standing, name) for name in _JOB_STATE_FIELDS}
        return Job(**asked, config=config, serving=serving, **shown), standing

    def write_verdict(self, verdict: Verdict) -> None:
        """Keeps the finding."""
        _write_json(self.path / "verdict.json", asdict(verdict))

    def read_verdict(self) -> Verdict | None:
        """The finding; None before there is one."""
        try:
            values = json.loads((self.path / "verdict.json").read_text(encoding="utf-8"))
            compared = tuple(ScoreComparison(**each) for each in values.pop("compared"))
            return Verdict(compared=compared, **values)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def remove_scores(self) -> None:
        """Removes what was scored: another adapter will come."""
        for name in ("scores.jsonl", "scores.scores.jsonl", "verdict.json"):
            with suppress(OSError):
                (self.path / name).unlink(missing_ok=True)


@contextmanager
def exclusive(root: Path) -> Iterator[None]:
    """Only one process, and one thread of it, changes states and the queue at a time."""
    make_dir(root)
    with file_lock(root / "lock", _LOCK_TIMEOUT_SECONDS):
        yield


def job_folders(root: Path) -> list[JobFolder]:
    """All jobs, in the order in which they were begun."""
    try:
        names = [path.name for path in root.iterdir()]
    except OSError:
        return []
    return [JobFolder(root, name) for name in sorted(names) if _JOB_ID.fullmatch(name)]


def new_job_id() -> str:
    """An id that sorts by the time at which the job was begun."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S-%f}-{secrets.token_hex(3)}"


def utc_timestamp() -> str:
    """This moment, as all times of jobs are written."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def unknown_job_error(id: str) -> UnknownNameError:
    """The error for an id that no job has."""
    return UnknownNameError(f"There is no job '{id[:60]}': `python -m jobs list` shows those that there are.")


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    atomic_write(path, json.dumps(values, indent=1) + "\n")


def _parse_state(values: Any) -> JobState:
    if not isinstance(values, dict) or values.get("state") not in get_args(JobStatus):
        raise ValueError("no state")
    if "ticket" in values:  # the name of `generation` in folders of the first versions
        values = {"generation": values["ticket"], **values}
    known = {field.name: values[field.name] for field in fields(JobState) if field.name in values}
    for name, default in asdict(JobState()).items():
        given = known.get(name, default)
        if isinstance(default, tuple):
            known[name] = tuple(type(part)(value) for part, value in zip(default, given, strict=True))
        elif not isinstance(given, type(default)):
            raise TypeError(name)
    return JobState(**known)


def _created_at(id: str) -> str:
    with suppress(ValueError):
        return datetime.strptime(id[:15], "%Y%m%d-%H%M%S").replace(tzinfo=UTC).isoformat(timespec="milliseconds")
    return ""


# A run resolves these while it trains.
_RESOLVED_SETTINGS = ("model_name_or_path", "model_revision", "target_modules", "feedforward_modules")


def last_checkpoint(job: Job, home: Path) -> Path | None:
    """The last checkpoint of an unfinished job; None without one, and where the run on disk is another's."""
    place = _own_run_directory(job, home)
    return place.last_checkpoint() if place else None


def last_complete_checkpoint(run_dir: RunDirectory) -> Path | None:
    """The last checkpoint that was written to its end; those after it, cut short by a kill or a power cut, go."""
    while (last := run_dir.last_checkpoint()) is not None and not _is_complete(last):
        shutil.rmtree(last, ignore_errors=True)
    return last


def is_trained(job: Job, state: JobState, home: Path) -> bool:
    """Whether the finished adapter is there, and is this job's: the name may be another's by now.

    One that was trained elsewhere cannot be told by its settings, so what the job noted is believed.
    """
    folder = home / "adapters" / job.adapter
    if not job.config or not folder.is_dir():
        return False
    if job.where == "hub":
        return state.trained
    try:
        return was_made_by(folder, job_config(job, home))
    except PromptOrTuneError:
        return False


def was_made_by(folder: Path, config: TrainConfig) -> bool:
    """Whether a run with these settings wrote the folder: then it is what a run would write again."""
    try:
        written = Manifest.read(folder).config
    except PromptOrTuneError:
        return False
    asked: dict[str, Any] = {
        name: value for name, value in config.to_public_dict().items() if name not in _RESOLVED_SETTINGS
    }
    return all(written.get(name) == value for name, value in json.loads(json.dumps(asked)).items())


def remove_checkpoints(job: Job, home: Path) -> None:
    """Removes the job's unfinished run, if it is the job's."""
    if place := _own_run_directory(job, home):
        place.remove()


def remove_leftovers(target: Path) -> None:
    """Removes what a kill left of folders that were being written beside the adapter's."""
    name = re.escape(target.name)
    left = re.compile(rf"\.{name}\.(new|scored)|\.\.{name}\.(new|scored)-\w{{8}}|\.replaced-\w{{8}}")
    for path in target.parent.glob(".*"):
        if left.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def _own_run_directory(job: Job, home: Path) -> RunDirectory | None:
    if job.state == "done" or not job.config:
        return None
    try:
        config = job_config(job, home)
        place = run_directory(config)
        place.check_settings(config)
        return place
    except PromptOrTuneError:
        return None


def _is_complete(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        return all(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
    except (OSError, ValueError):
        return False


def read_progress(state: JobState, logs: Iterable[Path], epochs: float) -> Progress:
    """The progress that the first of these logs that has entries tells of; `epochs` is how long the training is."""
    for path in logs:
        entries = _read_entries(path)
        if entries:
            return _progress_from_entries(state, entries, epochs, _modified_at(path))
    return Progress(steps=state.steps)


def last_step(path: Path) -> int:
    """The step of a log's last entry; 0 without one."""
    return max((int(entry["step"]) for entry in _read_entries(path)), default=0)


def _read_entries(path: Path) -> list[dict[str, Any]]:
    try:
        return [entry for entry in read_records(path)[0] if isinstance(entry.get("step"), int)]
    except (OSError, ValueError):
        return []


def _modified_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return time.time()


def _progress_from_entries(
    state: JobState, entries: list[dict[str, Any]], epochs: float, modified_at: float
) -> Progress:
    last = entries[-1]
    step = max(int(entry["step"]) for entry in entries)
    steps = max(state.steps or _total_steps(last, epochs), step)
    return Progress(
        step=step,
        steps=steps,
        seconds=float(last.get("seconds", 0.0)),
        left_seconds=_seconds_left(state, step, steps, modified_at),
        tokens_per_second=float(last.get("tokens_per_second", 0.0)),
        memory_bytes=max(int(entry.get("memory_bytes", 0)) for entry in entries),
        losses=_metric_points(entries, "loss"),
        validation=_metric_points(entries, "eval_loss"),
    )


def _total_steps(entry: Mapping[str, Any], epochs: float) -> int:
    """All steps of the run, from how many epochs an entry's step amounts to."""
    passed = float(entry.get("epoch") or 0.0)
    return round(int(entry["step"]) / passed * epochs) if passed else 0


def _metric_points(entries: Iterable[Mapping[str, Any]], name: str) -> tuple[tuple[int, float], ...]:
    """(step, value) in the order of steps; of a step that was done again, the later value."""
    found = {int(entry["step"]): float(entry[name]) for entry in entries if entry.get(name) is not None}
    return tuple(sorted(found.items()))


def _seconds_left(state: JobState, step: int, steps: int, modified_at: float) -> float | None:
    """Seconds until the training is over, evaluations included, at the pace of this attempt."""
    first, since = state.anchor
    if state.state != "running" or state.stage != "training" or not since or step <= first:
        return None
    a_step = max(modified_at - since, 0.0) / (step - first)
    # What passed since the last step was logged belongs to the next one, but for more than that nobody can say.
    return max(0.0, a_step * (steps - step) - min(max(time.time() - modified_at, 0.0), a_step))
