"""State of the jobs panel for a visitor, and the actions on jobs with their permission checks.

`panel_update` answers a poll of the browser with the parts of the panel that the browser does not have yet. JobActions
checks the rights of the visitor behind each request, whether it comes from the page or from a program.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapters.archive import pack
from adapters.manifest import read_origin
from adapters.store import delete_adapter, user_adapter_folder
from errors import PromptOrTuneError
from jobs.api import JobService
from jobs.job import Job, JobKind, Progress
from jobs.store import last_checkpoint, unknown_job_error
from ui.access.policy import Visitor
from ui.context import Context
from ui.train.jobs_view import (
    JobArtifacts,
    denied_html,
    empty_html,
    job_header_html,
    job_list_value,
    job_message_html,
    job_state_html,
    log_tail_html,
    loss_curve,
    reduced_job,
    reduced_progress,
    resume_label,
    verdict_html,
)

WORKER_CHECK_SECONDS = 10.0
# Seconds until the browser polls again: while a job waits or runs, and while all have ended.
BUSY_SECONDS, IDLE_SECONDS = 1.5, 10.0
LOG_LINES = 200
JOB_NOT_FOUND = "The job of this address no longer exists: another one is selected."
_log = logging.getLogger(__name__)


@dataclass
class JobActions:
    """Actions of visitors on the jobs of one kind, with the checks of who may do what. Thread-safe."""

    context: Context
    job_service: JobService
    kind: JobKind = "train"
    clock: Callable[[], float] = time.monotonic
    _last_worker_check: float = float("-inf")
    _zips: tempfile.TemporaryDirectory[str] = field(
        default_factory=lambda: tempfile.TemporaryDirectory(prefix="prompt-or-tune-zips-")
    )
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def denied_reason(self, visitor: Visitor) -> str | None:
        """Return why this visitor does not see that jobs run; None if they do."""
        return self.context.visitors.policy.denied_reason(visitor, "see that jobs run")

    def may_see(self, visitor: Visitor, job: Job) -> bool:
        """Return whether this visitor may see all of the job, and change it: its owner and the app's owner may."""
        return self.context.visitors.policy.may(visitor, "see a job", owner=job.owner)

    def require_job(self, request: Any, job_id: str | None, action: str = "change a job") -> Job:
        """Return the job. Raises PromptOrTuneError if the visitor behind `request` may not do `action` with it."""
        visitor, policy = self.context.visitors.identify(request), self.context.visitors.policy
        policy.check(visitor, action)
        if not job_id:
            raise PromptOrTuneError("Choose a job in the list first.")
        job = self.job_service.get_job(job_id)
        if job.kind != self.kind:
            raise unknown_job_error(job_id)
        policy.check(visitor, action, owner=job.owner)
        return job

    def cancel(self, request: Any, job_id: str | None) -> None:
        """Stop the job; a running training saves a checkpoint first."""
        self.job_service.cancel(self.require_job(request, job_id).id)

    def resume(self, request: Any, job_id: str | None) -> None:
        """Queue an ended job again (Resume, Retry, Start again); it starts from its last checkpoint, if any."""
        job = self._require_restartable(request, job_id)
        self.job_service.resume(job.id)

    def finish(self, request: Any, job_id: str | None) -> None:
        """Make the adapter from the best checkpoint of a stopped job."""
        job = self._require_restartable(request, job_id)
        self.job_service.finish_from_checkpoint(job.id)

    def delete(self, request: Any, job_id: str | None, *, adapter: bool) -> None:
        """Delete an ended job, and with `adapter` its adapter too."""
        job = self.require_job(request, job_id, "delete a job")
        folder = self.job_service.adapter_folder(job.id)
        if adapter and job.is_ended and folder:
            self._check_adapter(request, "delete an adapter", job, folder)
            jobs = self.job_service.list_jobs()
            if any(other.adapter == job.adapter and other.created > job.created for other in jobs):
                raise PromptOrTuneError(
                    f"'{job.adapter}' belongs to a later job: delete this job only, or the adapter with that job."
                )
            delete_adapter(user_adapter_folder(job.adapter, [self.context.home / "adapters"]))
        self.job_service.delete(job.id)

    def pack_zip(self, request: Any, job_id: str | None) -> Path:
        """Pack the finished adapter as a zip in a folder that Gradio serves files from."""
        job = self.require_job(request, job_id, "see a job")
        folder = self.job_service.adapter_folder(job.id)
        if folder is None:
            raise PromptOrTuneError(f"The adapter '{job.adapter}' no longer exists: train it again.")
        self._check_adapter(request, "download an adapter", job, folder)
        # Gradio serves files of the machine's temporary folder, but none of the user's home.
        return pack(folder, Path(self._zips.name) / job.id / f"{folder.name}.zip")

    def artifacts(self, job: Job) -> JobArtifacts:
        """Return the artifacts of an ended job; none for a job that has not ended."""
        if not job.is_ended:
            return JobArtifacts()
        last = last_checkpoint(job, self.context.home)
        step = int(last.name.rsplit("-", 1)[1]) if last else 0
        return JobArtifacts(step, self.job_service.adapter_folder(job.id) is not None)

    def ensure_worker(self, jobs: Sequence[Job]) -> None:
        """Start a worker if jobs wait and none is alive; checks at most every WORKER_CHECK_SECONDS."""
        with self._lock:
            now = self.clock()
            if now - self._last_worker_check < WORKER_CHECK_SECONDS or all(job.is_ended for job in jobs):
                return
            self._last_worker_check = now
        self.job_service.ensure_worker()

    def _require_restartable(self, request: Any, job_id: str | None) -> Job:
        """Return the job. Raises PromptOrTuneError if the visitor may not have it run again."""
        job, visitors = self.require_job(request, job_id), self.context.visitors
        if job.where == "hub":
            visitors.policy.check(visitors.identify(request), "train on Hugging Face Jobs")
        self.check_job_limit(request)
        return job

    def _check_adapter(self, request: Any, action: str, job: Job, folder: Path) -> None:
        """Raise PromptOrTuneError if the adapter is recorded as that of somebody else than the visitor."""
        origin = read_origin(folder)
        owner = origin.owner if origin is not None and origin.owner else job.owner
        visitors = self.context.visitors
        visitors.policy.check(visitors.identify(request), action, owner=owner)

    def check_job_limit(self, request: Any) -> None:
        """Raise PromptOrTuneError if this visitor has as many jobs of all kinds as one person may have."""
        visitor, limit = self.context.visitors.identify(request), self.context.visitors.policy.limits.jobs_at_once
        count = sum(job.owner == visitor.id and not job.is_ended for job in self.job_service.list_jobs())
        if 0 < limit <= count:
            raise PromptOrTuneError(
                f"You have {count} jobs that wait or run, and {limit} is the limit for one person: "
                "wait for one of them, or cancel one."
            )


@dataclass(frozen=True)
class PanelUpdate:
    """Answer to a poll. `job` is the selected job's id, '' for none; `changed` has the parts that the browser lacks.

    `poll_state` is stored in the browser and sent with its next poll: {"job", "seen": part -> digest, "every": seconds,
    "number"}.
    """

    job: str
    changed: Mapping[str, Any]
    poll_state: Mapping[str, Any]


def panel_update(
    job_actions: JobActions, visitor: Visitor, selected_job: str | None, poll: Mapping[str, Any]
) -> PanelUpdate:
    """Return the state of the panel for a visitor.

    `poll` comes from the browser: {"job": id in the address, "seen": digests, "log": whether the log is open, "number":
    of the poll}. The selected job is `selected_job` (by a click or a start), else that of the address, else one that
    runs, else the newest.
    """
    denied = job_actions.denied_reason(visitor)
    if denied:
        return make_update(poll, "", {"note": "", "empty": denied_html(denied)}, IDLE_SECONDS)
    all_jobs = job_actions.job_service.list_jobs()
    note = ensure_worker(job_actions, all_jobs)
    trainings = [job for job in all_jobs if job.kind == job_actions.kind]
    own_ids = {job.id for job in trainings if job_actions.may_see(visitor, job)}
    # Of others a visitor sees only that jobs wait and run.
    jobs = [job for job in trainings if job.id in own_ids or not job.is_ended]
    if not jobs:
        return make_update(poll, "", {"note": note, "empty": empty_html()}, IDLE_SECONDS)
    wanted_id = selected_job or str(poll.get("job") or "")
    wanted = next((job for job in jobs if job.id == wanted_id), None)
    job = wanted or default_job([job for job in jobs if job.id in own_ids] or jobs)
    if wanted_id and not wanted and not selected_job:
        note = note or JOB_NOT_FOUND
    listed = [other if other.id in own_ids else reduced_job(other) for other in jobs]
    values: dict[str, Any] = {"note": note, "empty": "", "list": job_list_value(listed, job.id, own_ids)}
    if job.id in own_ids:
        values |= _job_values(job_actions, job, with_log=bool(poll.get("log")))
    else:
        values |= _reduced_values(job_actions, job)
    busy = any(not other.is_ended for other in jobs)
    return make_update(poll, job.id, values, BUSY_SECONDS if busy else IDLE_SECONDS)


def failed_poll_state(poll: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state after a poll that failed; polling goes on slowly."""
    return _poll_state(poll, str(poll.get("job") or ""), {}, IDLE_SECONDS)


def default_job(jobs: Sequence[Job]) -> Job:
    """Return the job to show when none is selected: one that runs, else the newest."""
    return next((job for job in jobs if job.state in ("running", "stopping")), jobs[0])


def button_labels(job: Job, artifacts: JobArtifacts, *, may_change: bool) -> dict[str, str]:
    """Return each button's label; '' hides the button."""
    ended, finished = job.state in ("stopped", "failed"), job.state == "done" and artifacts.adapter
    return {
        "open": "Open in Compare" if finished else "",
        "cancel": "Cancel" if may_change and job.state in ("queued", "running") else "",
        "again": resume_label(job, artifacts) if may_change and ended else "",
        "finish": "Make the adapter of the best checkpoint"
        if may_change and job.state == "stopped" and artifacts.step
        else "",
        "download": "Download as zip" if may_change and finished else "",
        "delete": "Delete" if may_change and job.is_ended else "",
    }


def _reduced_values(job_actions: JobActions, job: Job) -> dict[str, Any]:
    """Return the values of another visitor's job."""
    progress, job = reduced_progress(_job_progress(job_actions, job)), reduced_job(job)
    return {
        "head": job_header_html(job, progress),
        "line": job_state_html(job, JobArtifacts(), progress.steps),
        **dict.fromkeys(("message", "failed", "verdict"), ""),
        "curve": {"job": job.id, **loss_curve(progress)},
        "log": {"job": job.id, "lines": None},
        "doing": button_labels(job, JobArtifacts(), may_change=False),
    }


def _job_values(job_actions: JobActions, job: Job, *, with_log: bool) -> dict[str, Any]:
    service = job_actions.job_service
    progress = _job_progress(job_actions, job)
    artifacts = job_actions.artifacts(job)
    verdict = service.verdict(job.id) if job.state == "done" else None
    lines = service.log_lines(job.id, LOG_LINES) if with_log or job.state == "failed" else []
    return {
        "head": job_header_html(job, progress),
        "line": job_state_html(job, artifacts, progress.steps),
        "message": job_message_html(job, progress),
        "failed": log_tail_html(lines) if job.state == "failed" else "",
        "verdict": verdict_html(verdict) if verdict else "",
        "curve": {"job": job.id, **loss_curve(progress)},
        "log": {"job": job.id, "lines": lines if with_log else None},
        "doing": button_labels(job, artifacts, may_change=True),
    }


def _job_progress(job_actions: JobActions, job: Job) -> Progress:
    try:
        return job_actions.job_service.progress(job.id)
    except PromptOrTuneError as error:
        _log.warning("%s", error)
        return Progress()


def ensure_worker(job_actions: JobActions, jobs: Sequence[Job]) -> str:
    """Ensure that a worker runs; return an error message if none can be started, else ''."""
    try:
        job_actions.ensure_worker(jobs)
    except PromptOrTuneError as error:
        return str(error)
    return ""


def make_update(poll: Mapping[str, Any], job: str, values: Mapping[str, Any], interval: float) -> PanelUpdate:
    """Return the answer to a poll: the parts of `values` that the browser lacks, and seconds until the next poll."""
    seen = poll.get("seen")
    seen = seen if isinstance(seen, dict) else {}
    digests = {name: _value_digest(value) for name, value in values.items()}
    changed = {name: value for name, value in values.items() if seen.get(name) != digests[name]}
    return PanelUpdate(job, changed, _poll_state(poll, job, digests, interval))


def _poll_state(poll: Mapping[str, Any], job: str, digests: Mapping[str, str], interval: float) -> dict[str, Any]:
    number = poll.get("number")
    return {"job": job, "seen": dict(digests), "every": interval, "number": number if isinstance(number, int) else 0}


def _value_digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
