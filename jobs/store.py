"""Job folders on disk (`<home>/jobs/<id>`), the checkpoints of a job, and its progress as read from its log.

- job.json: the request, which never changes
- state.json: the state (JobState), replaced atomically
- stop: exists while a person wants the running process to stop
- running: locked by the process that runs the job
- log.txt, log.jsonl, scores.jsonl, verdict.json, data/<uploaded file>; of an advice: advice/ (advise.folder)
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
from common.files import atomic_write, file_lock, is_locked, make_private_dir
from errors import PromptOrTuneError, UnknownNameError
from evaluate.journal import read_records
from jobs.job import Job, JobStage, JobStatus, Progress, ScoreComparison, ServingOptions, Verdict, job_config
from train.config import RunDirectory, TrainConfig, run_directory

_JOB_ID = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9]{6}-[0-9a-f]{6}")
_LOCK_TIMEOUT_SECONDS = 60.0  # a change of state takes milliseconds
_JOB_STATE_FIELDS = ("state", "stage", "message", "started", "ended", "attempts")
_REQUEST_FIELDS = ("id", "adapter", "config", "data_name", "owner", "where", "flavor", "created")
# Fields that the requests of earlier versions lack.
_LATER_FIELDS: Mapping[str, Any] = {"owner_name": "", "visitor_data": False, "kind": "train"}


@dataclass(frozen=True)
class JobState:
    """The contents of state.json: the changing fields of Job, and those that only the worker needs.

    `queued` is the time since which the job waits; the longest waiting job is next. `generation` numbers the entries
    that the job had in the queue: an entry with another number is outdated and ignored. `finish` asks for the adapter
    of the best checkpoint. `trained` is true once the adapter is written. `crashes` counts the unexpected ends of the
    process since the job last exceeded `reached`, its furthest (step, bytes of scores), or (finished steps, bytes of
    answers and logs) of an advice. `steps` is the length of the training, 0 before it is known. `anchor` is the first
    step that this attempt finished, with its time in seconds since 1970, from which the remaining time is estimated.
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
    """The files of one job. `root` is `<home>/jobs`; `path` is another folder while the job is being created.

    Raises UnknownNameError for an id of another form, so that an id never leads to another path.
    """

    def __init__(self, root: Path, id: str, path: Path | None = None) -> None:
        if not _JOB_ID.fullmatch(id):
            raise unknown_job_error(id)
        self.id = id
        self.path = path or root / id

    @property
    def log_path(self) -> Path:
        """The log for people."""
        return self.path / "log.txt"

    @property
    def curve_path(self) -> Path:
        """A copy of the training's log.jsonl, made when it ends; for a remote job it is written while the job runs."""
        return self.path / "log.jsonl"

    @property
    def scores_path(self) -> Path:
        """The scoring, a run file of `python -m evaluate`."""
        return self.path / "scores.jsonl"

    @property
    def stop_path(self) -> Path:
        """The file that exists while a person wants the running process to stop."""
        return self.path / "stop"

    @property
    def lock_path(self) -> Path:
        """The file that the process running the job holds locked."""
        return self.path / "running"

    def is_running(self) -> bool:
        """Return whether a process runs the job now."""
        return is_locked(self.lock_path)

    def write_request(self, job: Job) -> None:
        """Write job.json."""
        names = (*_REQUEST_FIELDS, *_LATER_FIELDS)
        values = {name: getattr(job, name) for name in names} | {"serving": asdict(job.serving)}
        _write_json(self.path / "job.json", values)

    def read_state(self) -> JobState:
        """Read state.json; a file that cannot be read gives a failed state, from which the job can be resumed."""
        try:
            return _parse_state(json.loads((self.path / "state.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            message = "The state of this job is lost (state.json cannot be read): resume it, or delete it."
            return JobState(state="failed", message=message)

    def write_state(self, state: JobState) -> None:
        """Replace state.json atomically; the caller must hold `exclusive`."""
        _write_json(self.path / "state.json", asdict(state))

    def read_job(self) -> Job:
        """Return the job with its present state; raises UnknownNameError when it does not exist."""
        return self.read_job_and_state()[0]

    def read_job_and_state(self) -> tuple[Job, JobState]:
        """Return the job and its JobState from one read of the files; raises UnknownNameError."""
        if not self.path.is_dir():
            raise unknown_job_error(self.id)
        state = self.read_state()
        try:
            request = json.loads((self.path / "job.json").read_text(encoding="utf-8"))
            values = {name: request[name] for name in _REQUEST_FIELDS if name != "config"}
            values |= {name: type(default)(request.get(name, default)) for name, default in _LATER_FIELDS.items()}
            config, serving = dict(request["config"]), ServingOptions(**request["serving"])
        except (OSError, ValueError, TypeError, KeyError):
            values = {"id": self.id, "adapter": "", "data_name": "", "created": _created_at(self.id)}
            config, serving = {}, ServingOptions()
            message = (
                "The settings of this job are lost (job.json cannot be read): delete this job and begin a new one."
            )
            state = JobState(state="failed", message=message)
        changing = {name: getattr(state, name) for name in _JOB_STATE_FIELDS}
        return Job(**values, config=config, serving=serving, **changing), state

    def write_verdict(self, verdict: Verdict) -> None:
        """Write verdict.json."""
        _write_json(self.path / "verdict.json", asdict(verdict))

    def read_verdict(self) -> Verdict | None:
        """Read verdict.json; None before the job is scored."""
        try:
            values = json.loads((self.path / "verdict.json").read_text(encoding="utf-8"))
            compared = tuple(ScoreComparison(**comparison) for comparison in values.pop("compared"))
            return Verdict(compared=compared, **values)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def remove_scores(self) -> None:
        """Delete scores and verdict, which belong to an earlier adapter."""
        for name in ("scores.jsonl", "scores.scores.jsonl", "verdict.json"):
            with suppress(OSError):
                (self.path / name).unlink(missing_ok=True)


@contextmanager
def exclusive(root: Path) -> Iterator[None]:
    """Hold the lock for changes of job states and of the queue, against other processes and threads."""
    make_private_dir(root)
    with file_lock(root / "lock", _LOCK_TIMEOUT_SECONDS):
        yield


def job_folders(root: Path) -> list[JobFolder]:
    """Return the folders of all jobs, the oldest first."""
    try:
        names = [path.name for path in root.iterdir()]
    except OSError:
        return []
    return [JobFolder(root, name) for name in sorted(names) if _JOB_ID.fullmatch(name)]


def new_job_id() -> str:
    """Return a new id; ids sort by the time of submission."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S-%f}-{secrets.token_hex(3)}"


def unknown_job_error(id: str) -> UnknownNameError:
    """Return the error for an id that no job has."""
    return UnknownNameError(f"There is no job '{id[:60]}': `python -m jobs list` lists all jobs.")


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    atomic_write(path, json.dumps(values, indent=1) + "\n")


def _parse_state(values: Any) -> JobState:
    if not isinstance(values, dict) or values.get("state") not in get_args(JobStatus):
        raise ValueError("state")
    if "ticket" in values:  # what earlier versions called `generation`
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


# Settings that a run resolves while it trains, so its manifest differs from the request in them.
_RESOLVED_SETTINGS = ("model_name_or_path", "model_revision", "target_modules", "feedforward_modules")


def last_checkpoint(job: Job, home: Path) -> Path | None:
    """Return the last checkpoint of an unfinished training.

    None without one, for an advice, and when the run on disk is another job's.
    """
    run = _own_run_directory(job, home)
    return run.last_checkpoint() if run else None


def last_complete_checkpoint(run_dir: RunDirectory) -> Path | None:
    """Return the last complete checkpoint; delete the later ones, which a kill or a power cut left incomplete."""
    while (last := run_dir.last_checkpoint()) is not None and not _is_complete(last):
        shutil.rmtree(last, ignore_errors=True)
    return last


def is_trained(job: Job, state: JobState, home: Path) -> bool:
    """Return whether the adapter of this name exists and was made by this job.

    The manifest of an adapter that was trained remotely or for an advice has other settings than the job, so for these
    `state.trained` decides.
    """
    folder = home / "adapters" / job.adapter
    if not job.config or not folder.is_dir():
        return False
    if job.where == "hub" or job.kind == "advise":
        return state.trained
    try:
        return was_made_by(folder, job_config(job, home))
    except PromptOrTuneError:
        return False


def was_made_by(folder: Path, config: TrainConfig) -> bool:
    """Return whether the adapter's manifest has these settings, so that a new run would write the same adapter."""
    try:
        written = Manifest.read(folder).config
    except PromptOrTuneError:
        return False
    expected: dict[str, Any] = {
        name: value for name, value in config.to_public_dict().items() if name not in _RESOLVED_SETTINGS
    }
    return all(written.get(name) == value for name, value in json.loads(json.dumps(expected)).items())


def remove_checkpoints(job: Job, home: Path) -> None:
    """Delete the unfinished run of the job's name, if it belongs to the job."""
    if run := _own_run_directory(job, home):
        run.remove()


def remove_leftovers(target: Path) -> None:
    """Delete the temporary folders beside the adapter's that a killed process left."""
    name = re.escape(target.name)
    temporary = re.compile(rf"\.{name}\.(new|scored)|\.\.{name}\.(new|scored)-\w{{8}}|\.replaced-\w{{8}}")
    for path in target.parent.glob(".*"):
        if temporary.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def _own_run_directory(job: Job, home: Path) -> RunDirectory | None:
    if job.state == "done" or not job.config or job.kind != "train":
        return None
    try:
        config = job_config(job, home)
        run = run_directory(config)
        run.check_settings(config)
        return run
    except PromptOrTuneError:
        return None


def _is_complete(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        return all(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
    except (OSError, ValueError):
        return False


def read_progress(state: JobState, logs: Iterable[Path], epochs: float) -> Progress:
    """Return the progress in the first of these logs that has entries. `epochs` is the length of the training."""
    for path in logs:
        entries = _read_entries(path)
        if entries:
            return _progress_from_entries(state, entries, epochs, _modified_at(path))
    return Progress(steps=state.steps)


def last_step(path: Path) -> int:
    """Return the highest step in a log; 0 for an empty or unreadable one."""
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
    """Return the number of steps in the training, from the step and epoch of one entry; 0 if unknown."""
    epoch = float(entry.get("epoch") or 0.0)
    return round(int(entry["step"]) / epoch * epochs) if epoch else 0


def _metric_points(entries: Iterable[Mapping[str, Any]], name: str) -> tuple[tuple[int, float], ...]:
    """Return (step, value) pairs sorted by step; a repeated step has its later value."""
    found = {int(entry["step"]): float(entry[name]) for entry in entries if entry.get(name) is not None}
    return tuple(sorted(found.items()))


def _seconds_left(state: JobState, step: int, steps: int, modified_at: float) -> float | None:
    """Return the seconds until the training ends, with evaluations, at this attempt's speed; None if unknown."""
    first, since = state.anchor
    if state.state != "running" or state.stage != "training" or not since or step <= first:
        return None
    step_seconds = max(modified_at - since, 0.0) / (step - first)
    # The time since the last logged step counts for the next one, up to the length of one step.
    since_last_step = min(max(time.time() - modified_at, 0.0), step_seconds)
    return max(0.0, step_seconds * (steps - step) - since_last_step)
