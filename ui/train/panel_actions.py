"""What a visitor may do with a job, checked on the server for whoever asks: the page's buttons or a program."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapters.archive import pack
from adapters.delete import delete_adapter, user_adapter_folder
from errors import PromptOrTuneError
from jobs.board import JobService
from jobs.checkpoints import last_checkpoint
from jobs.job import Job
from ui.context import Context
from ui.train.panel_words import JobArtifacts
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
        default_factory=lambda: tempfile.TemporaryDirectory(prefix="peft-arena-zips-")
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
        """Resume, Retry, StartFn again: into the line once more, from the last checkpoint where there is one."""
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
