"""One look at the jobs: what a visitor is shown, and which parts of it changed since their last look.

What a visitor may do with a job, checked on the server for whoever asks: the page's buttons or a program.
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
from adapters.store import delete_adapter, user_adapter_folder
from errors import PromptOrTuneError
from jobs.api import JobService
from jobs.job import Job, Progress
from jobs.store import last_checkpoint
from ui.context import Context
from ui.train import jobs_view as views
from ui.train import jobs_view as words
from ui.train.jobs_view import JobArtifacts, loss_curve
from ui.visitors import Visitor

WORKER_CHECK_SECONDS = 10.0


@dataclass
class JobActions:
    """The board, and the rules by which visitors act on it. Thread-safe."""

    context: Context
    job_service: JobService
    clock: Callable[[], float] = time.monotonic
    _last_worker_check: float = float("-inf")
    _zips: tempfile.TemporaryDirectory[str] = field(
        default_factory=lambda: tempfile.TemporaryDirectory(prefix="prompt-or-tune-zips-")
    )
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def denied_reason(self, visitor: Visitor) -> str | None:
        """Why this visitor sees no jobs: who may not train is shown nothing of others' data."""
        return self.context.visitors.training_denied_reason(visitor)

    def may_change(self, visitor: Visitor, job: Job) -> bool:
        """Whether the job is this visitor's to change."""
        return visitor.owner or (bool(job.owner) and job.owner == visitor.id)

    def require_job(self, request: Any, job_id: str | None) -> Job:
        """The job, for changing it; PromptOrTuneError where the visitor behind `request` may not."""
        visitor = self.context.visitors.identify(request)
        refused = self.denied_reason(visitor)
        if refused:
            raise PromptOrTuneError(refused)
        if not job_id:
            raise PromptOrTuneError("Choose a job in the list first.")
        job = self.job_service.get_job(job_id)
        if not self.may_change(visitor, job):
            raise PromptOrTuneError(
                f"The job of '{job.adapter}' is another visitor's: only who began it or this app's owner may change it."
            )
        return job

    def cancel(self, request: Any, job_id: str | None) -> None:
        """Stops it; a training that runs saves a checkpoint first."""
        self.job_service.cancel(self.require_job(request, job_id).id)

    def resume(self, request: Any, job_id: str | None) -> None:
        """Resume, Retry, Start again: into the line once more, from the last checkpoint where there is one."""
        job = self.require_job(request, job_id)
        self._check_job_limit(request)
        self.job_service.resume(job.id)

    def finish(self, request: Any, job_id: str | None) -> None:
        """Makes the adapter of the best checkpoint."""
        job = self.require_job(request, job_id)
        self._check_job_limit(request)
        self.job_service.finish_from_checkpoint(job.id)

    def delete(self, request: Any, job_id: str | None, *, adapter: bool) -> None:
        """Takes an ended job away, and with `adapter` what came of it."""
        job = self.require_job(request, job_id)
        if adapter and job.is_ended and self.job_service.adapter_folder(job.id):
            if any(each.adapter == job.adapter and each.created > job.created for each in self.job_service.list_jobs()):
                raise PromptOrTuneError(
                    f"'{job.adapter}' was made anew by a later job: delete this job alone, or the later one with it."
                )
            delete_adapter(user_adapter_folder(job.adapter, [self.context.home / "adapters"]))
        self.job_service.delete(job.id)

    def pack_zip(self, request: Any, job_id: str | None) -> Path:
        """The finished adapter as a zip, in a folder from which Gradio may serve it."""
        job = self.require_job(request, job_id)
        folder = self.job_service.adapter_folder(job.id)
        if folder is None:
            raise PromptOrTuneError(f"There is no adapter '{job.adapter}' any more: train it again.")
        # In the machine's folder for temporary files: Gradio serves out of it, and not out of the user's home.
        return pack(folder, Path(self._zips.name) / job.id / f"{folder.name}.zip")

    def artifacts(self, job: Job) -> JobArtifacts:
        """What an ended job has left; nothing of one that still works on it."""
        if not job.is_ended:
            return JobArtifacts()
        last = last_checkpoint(job, self.context.home)
        step = int(last.name.rsplit("-", 1)[1]) if last else 0
        return JobArtifacts(step, self.job_service.adapter_folder(job.id) is not None)

    def ensure_worker(self, jobs: Sequence[Job]) -> None:
        """Brings back a worker that was killed, where something waits for one. Asked at every look, so it is rare."""
        with self._lock:
            now = self.clock()
            if now - self._last_worker_check < WORKER_CHECK_SECONDS or all(job.is_ended for job in jobs):
                return
            self._last_worker_check = now
        self.job_service.ensure_worker()

    def _check_job_limit(self, request: Any) -> None:
        visitor, limit = self.context.visitors.identify(request), self.context.visitors.policy.limits.jobs_at_once
        count = sum(job.owner == visitor.id and not job.is_ended for job in self.job_service.list_jobs())
        if 0 < limit <= count:
            raise PromptOrTuneError(
                f"You have {count} jobs that wait or run and {limit} is the limit for one person: "
                "wait for one of them, or cancel one."
            )


# Seconds until the browser looks again: while something waits or runs, and while all is over.
BUSY_SECONDS, IDLE_SECONDS = 1.5, 10.0
LOG_LINES = 200
JOB_NOT_FOUND = "The job that you asked for is not here any more: another one is shown."
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PanelUpdate:
    """`job` is the shown job's id, '' for none. `changed` has the parts that the browser does not show yet.

    `pulse` is what js/job_poll.js keeps and says at the next look: {"job", "seen": part -> stamp, "every", "number"}.
    """

    job: str
    changed: Mapping[str, Any]
    poll_state: Mapping[str, Any]


def panel_update(
    job_actions: JobActions, visitor: Visitor, selected_job: str | None, poll: Mapping[str, Any]
) -> PanelUpdate:
    """What there is to see. `asked` came from the browser: {"job": of the address, "seen": stamps, "log": open or not,
    "number": of the look}.

    The job is `chosen` (a click, or a start), else the address's, else one that runs, else the newest.
    """
    refused = job_actions.denied_reason(visitor)
    if refused:
        return _make_update(poll, "", {"note": "", "empty": views.denied_html(refused)}, IDLE_SECONDS)
    jobs = job_actions.job_service.list_jobs()
    note = _ensure_worker(job_actions, jobs)
    if not jobs:
        return _make_update(poll, "", {"note": note, "empty": views.empty_html()}, IDLE_SECONDS)
    wanted = selected_job or str(poll.get("job") or "")
    found = next((job for job in jobs if job.id == wanted), None)
    job = found or default_job(jobs)
    if wanted and not found and not selected_job:
        note = note or JOB_NOT_FOUND
    mine = [each.id for each in jobs if job_actions.may_change(visitor, each)]
    values: dict[str, Any] = {"note": note, "empty": "", "list": views.job_list_value(jobs, job.id, mine)}
    values |= _job_values(job_actions, job, may_change=job.id in mine, with_log=bool(poll.get("log")))
    busy = any(not each.is_ended for each in jobs)
    return _make_update(poll, job.id, values, BUSY_SECONDS if busy else IDLE_SECONDS)


def failed_poll_state(poll: Mapping[str, Any]) -> dict[str, Any]:
    """The pulse after a look that failed: it goes on, slowly."""
    return _poll_state(poll, str(poll.get("job") or ""), {}, IDLE_SECONDS)


def default_job(jobs: Sequence[Job]) -> Job:
    """The job shown to somebody who named none: one that runs, else the newest."""
    return next((job for job in jobs if job.state in ("running", "stopping")), jobs[0])


def button_labels(job: Job, artifacts: words.JobArtifacts, *, may_change: bool) -> dict[str, str]:
    """Each button's label, '' where it does not stand."""
    ended, finished = job.state in ("stopped", "failed"), job.state == "done" and artifacts.adapter
    return {
        "open": "Open in Compare" if finished else "",
        "cancel": "Cancel" if may_change and job.state in ("queued", "running") else "",
        "again": words.resume_label(job, artifacts) if may_change and ended else "",
        "finish": "Make the adapter of the best checkpoint"
        if may_change and job.state == "stopped" and artifacts.step
        else "",
        "download": "Download as zip" if may_change and finished else "",
        "delete": "Delete" if may_change and job.is_ended else "",
    }


def _job_values(job_actions: JobActions, job: Job, *, may_change: bool, with_log: bool) -> dict[str, Any]:
    board = job_actions.job_service
    progress = _job_progress(job_actions, job)
    left = job_actions.artifacts(job)
    verdict = board.verdict(job.id) if job.state == "done" else None
    lines = board.log_lines(job.id, LOG_LINES) if with_log or job.state == "failed" else []
    return {
        "head": views.job_header_html(job, progress),
        "line": views.job_state_html(job, left, progress.steps),
        "message": views.job_message_html(job, progress),
        "failed": views.log_tail_html(lines) if job.state == "failed" else "",
        "verdict": views.verdict_html(verdict) if verdict else "",
        "curve": {"job": job.id, **loss_curve(progress)},
        "log": {"job": job.id, "lines": lines if with_log else None},
        "doing": button_labels(job, left, may_change=may_change),
    }


def _job_progress(job_actions: JobActions, job: Job) -> Progress:
    try:
        return job_actions.job_service.progress(job.id)
    except PromptOrTuneError as error:
        _log.warning("%s", error)
        return Progress()


def _ensure_worker(job_actions: JobActions, jobs: Sequence[Job]) -> str:
    """Sees to it that a worker lives; why there is none, where it cannot be started."""
    try:
        job_actions.ensure_worker(jobs)
    except PromptOrTuneError as error:
        return str(error)
    return ""


def _make_update(poll: Mapping[str, Any], job: str, values: Mapping[str, Any], interval: float) -> PanelUpdate:
    seen = poll.get("seen")
    seen = seen if isinstance(seen, dict) else {}
    stamps = {name: _value_digest(value) for name, value in values.items()}
    changed = {name: value for name, value in values.items() if seen.get(name) != stamps[name]}
    return PanelUpdate(job, changed, _poll_state(poll, job, stamps, interval))


def _poll_state(poll: Mapping[str, Any], job: str, seen: Mapping[str, str], interval: float) -> dict[str, Any]:
    number = poll.get("number")
    return {"job": job, "seen": dict(seen), "every": interval, "number": number if isinstance(number, int) else 0}


def _value_digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
