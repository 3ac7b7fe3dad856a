"""The folder of one job, `<home>/jobs/<id>`: what was asked for, and how it stands, which is replaced in one step.

- job.json: the request, which never changes
- state.json: how it stands
- stop: there while a person wants the running process to stop
- running: locked by the process that works on the job
- log.txt, log.jsonl, scores.jsonl, verdict.json, data/<uploaded file>
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

from errors import UnknownNameError
from evaluate.files import atomic_write
from jobs.job import Job, JobStage, JobStatus, ScoreComparison, ServingOptions, Verdict
from jobs.locks import file_lock, is_locked
from serve.home import make_dir

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
