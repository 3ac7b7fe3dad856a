"""JobService: submit/list/cancel/resume; start worker.

All jobs of one home, on disk, for whoever asks: pages, commands, several programs at once.

Starts the worker, and finds out whether one lives.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.files import is_locked
from common.paths import make_dir
from errors import PromptOrTuneError
from jobs.job import (
    ENDED_STATUSES,
    ComputeTarget,
    Job,
    Progress,
    ServingOptions,
    Verdict,
    check_name,
    copy_upload,
    resolve_settings,
    safe_file_name,
)
from jobs.queue import open_queue
from jobs.store import (
    JobFolder,
    JobState,
    exclusive,
    is_trained,
    job_folders,
    last_checkpoint,
    new_job_id,
    read_progress,
    remove_checkpoints,
    utc_timestamp,
)

PROJECT_ROOT = Path(__file__).resolve().parents[1]
# A worker that ends at once, say of a full disk, is not started again and again.
_RESTART_INTERVAL_SECONDS = 5.0


def worker_lock_path(home: Path) -> Path:
    """Locked by the one worker of a home for as long as it lives."""
    return home / "jobs" / "worker.lock"


class WorkerLauncher:
    """Starts `python -m jobs work` in a session of its own, so that it outlives the program that asked for it."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._lock = threading.Lock()
        self._last_start = float("-inf")

    def ensure_running(self) -> None:
        """Starts a worker unless one lives; should two be started at once, the second one ends by itself."""
        if is_locked(worker_lock_path(self._home)):
            return
        with self._lock:
            if time.monotonic() - self._last_start < _RESTART_INTERVAL_SECONDS:
                return
            self._last_start = time.monotonic()
        # Only a thread that waits for its end keeps the system from remembering an ended worker for ever.
        threading.Thread(target=self._spawn().wait, name="worker-watch", daemon=True).start()

    def _spawn(self) -> subprocess.Popen[bytes]:
        make_dir(self._home / "jobs")
        try:
            with (self._home / "jobs" / "worker.log").open("ab") as log:
                return subprocess.Popen(
                    [sys.executable, "-m", "jobs", "work"],
                    cwd=PROJECT_ROOT,
                    env=worker_environment(self._home),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        except OSError as error:
            raise PromptOrTuneError(
                f"The process that works on jobs cannot be started ({error.strerror or error}): see {self._home}."
            ) from error


def worker_environment(home: Path) -> dict[str, str]:
    """The environment of processes that work for this home."""
    return {**os.environ, "PROMPT_OR_TUNE_HOME": str(home), "PYTHONUNBUFFERED": "1"}


_LOG_BYTES = 1_000_000


class JobService:
    """Begins jobs and tells how they stand. Nothing is kept in memory that is not on disk; any thread may ask.

    Every method with an id raises UnknownNameError for one that no job has, and PromptOrTuneError, in one sentence, for
    what the job's state does not allow.
    """

    def __init__(self, home: Path) -> None:
        self.home = home.absolute()
        self.root = self.home / "jobs"
        self._launcher = WorkerLauncher(self.home)

    def submit(
        self,
        config: Mapping[str, Any],
        serving: ServingOptions,
        *,
        owner: str = "",
        data_name: str = "",
        data: Path | None = None,
        where: ComputeTarget = "here",
        flavor: str = "",
    ) -> Job:
        """Puts a new job into the queue and sees to it that a worker lives.

        `config` has TrainConfig's fields by name; `data`, an uploaded file, is copied into the job's folder and takes
        the place of dataset_name. Raises PromptOrTuneError, in one sentence, where the job could not train: settings, a
        name that is taken, data by a path.
        """
        make_dir(self.root)
        id = new_job_id()
        target = self.root / id / "data" / safe_file_name(data_name or data.name) if data else None
        values = json.loads(json.dumps(resolve_settings(config, serving, target), default=str))
        name = data_name or (data.name if data else str(values["dataset_name"]))
        job = Job(id, str(values["adapter_name"]), values, serving, name, owner, where, flavor, created=utc_timestamp())
        staged = self.root / f".{id}.new"
        try:
            make_dir(staged / "data")
            if data and target:
                copy_upload(data, staged / "data" / target.name)
            self._enqueue(job, JobFolder(self.root, id), staged)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        with suppress(PromptOrTuneError):  # the job waits all the same, and whoever looks at it tries again
            self.ensure_worker()
        return self.get_job(id)

    def list_jobs(self) -> list[Job]:
        """All jobs, newest first."""
        found = []
        for folder in job_folders(self.root):
            with suppress(PromptOrTuneError):  # deleted at this moment
                found.append(folder.read_job_and_state())
        busy = Counter(job.where for job, _ in found if job.state in ("running", "stopping"))
        waiting = [(job.where, standing.queued, job.id) for job, standing in found if job.state == "queued"]
        before = {id: busy[where] + sum(each[0] == where and each < (where, since, id) for each in waiting)
                  for where, since, id in waiting}  # fmt: skip
        newest = sorted((job for job, _ in found), key=lambda job: (job.created, job.id), reverse=True)
        return [replace(job, queue_position=before.get(job.id, 0)) for job in newest]

    def get_job(self, id: str) -> Job:
        """The job as it stands."""
        job = JobFolder(self.root, id).read_job()
        if job.state == "queued":
            return next((each for each in self.list_jobs() if each.id == id), job)
        return job

    def progress(self, id: str) -> Progress:
        """How far its training is, also when it is over."""
        folder = JobFolder(self.root, id)
        job, standing = folder.read_job_and_state()
        run = self.home / "adapters" / f".{job.adapter}.run" / "log.jsonl"
        ours = not job.is_ended or self.has_checkpoint(id)
        logs = [folder.curve_path, *([run] if ours else [])]
        return read_progress(standing, logs, float(job.config.get("num_train_epochs", 0.0)))

    def log_lines(self, id: str, lines: int = 200) -> list[str]:
        """The last lines that it said."""
        folder = JobFolder(self.root, id)
        folder.read_job()
        try:
            with folder.log_path.open("rb") as file:
                file.seek(max(0, file.seek(0, 2) - _LOG_BYTES))
                text = file.read().decode("utf-8", "replace")
        except OSError:
            return []
        return text.splitlines()[-lines:] if lines > 0 else []

    def verdict(self, id: str) -> Verdict | None:
        """What its scores say, once it is scored."""
        folder = JobFolder(self.root, id)
        folder.read_job()
        return folder.read_verdict()

    def cancel(self, id: str) -> Job:
        """Stops it: one that waits at once, one that runs as soon as a checkpoint is saved."""
        folder = JobFolder(self.root, id)
        with exclusive(self.root):
            job, standing = folder.read_job_and_state()
            if job.is_ended:
                raise PromptOrTuneError(f"The job '{job.adapter}' is not running: it is {job.state}.")
            if job.state == "queued":
                message = "Stopped before it went on." if standing.attempts else "Stopped before it began."
                folder.write_state(replace(standing, state="stopped", message=message, ended=utc_timestamp()))
            else:
                folder.stop_path.touch()
                folder.write_state(replace(standing, state="stopping", message="Stopping, with a checkpoint."))
        self.ensure_worker()
        return self.get_job(id)

    def resume(self, id: str) -> Job:
        """Goes on from the last checkpoint, or from where the scoring stood; without either it begins again."""
        return self._requeue(id, finish=False)

    def finish_from_checkpoint(self, id: str) -> Job:
        """Makes the adapter of its best checkpoint, without training on."""
        if not self.has_checkpoint(id):
            raise PromptOrTuneError(
                f"The job '{self.get_job(id).adapter}' has no checkpoint to make an adapter of: resume it."
            )
        return self._requeue(id, finish=True)

    def delete(self, id: str) -> None:
        """Removes an ended job with its checkpoints; a finished adapter stays."""
        folder = JobFolder(self.root, id)
        with exclusive(self.root):
            job = folder.read_job()
            if not job.is_ended or folder.is_running():
                raise PromptOrTuneError(f"The job '{job.adapter}' is {job.state}: stop it before you delete it.")
            remove_checkpoints(job, self.home)
            gone = self.root / f".{id}.deleted"
            try:
                folder.path.rename(gone)
            except OSError as error:
                raise PromptOrTuneError(f"{folder.path} cannot be deleted ({error.strerror}).") from error
        shutil.rmtree(gone, ignore_errors=True)

    def has_checkpoint(self, id: str) -> bool:
        """Whether there is a checkpoint from which it could go on."""
        return last_checkpoint(JobFolder(self.root, id).read_job(), self.home) is not None

    def adapter_folder(self, id: str) -> Path | None:
        """The adapter that it made; None before that, and when it was deleted since."""
        folder = JobFolder(self.root, id)
        job, standing = folder.read_job_and_state()
        return self.home / "adapters" / job.adapter if is_trained(job, standing, self.home) else None

    def ensure_worker(self) -> None:
        """Starts the process that works the queue off where there is work and none lives."""
        if any(folder.read_state().state not in ENDED_STATUSES for folder in job_folders(self.root)):
            self._launcher.ensure_running()

    def _enqueue(self, job: Job, folder: JobFolder, staged: Path) -> None:
        """The job's folder is there as a whole or not at all, and its message in the queue right after."""
        with exclusive(self.root):
            check_name(job.adapter, self.home, self._unfinished_jobs())
            standing = JobState(message="Waits for its turn.", queued=utc_timestamp(), generation=1)
            new = JobFolder(self.root, job.id, staged)
            new.write_request(job)
            new.write_state(standing)
            staged.rename(folder.path)
            with open_queue(self.root) as queue:
                queue.put(job, standing.generation)

    def _requeue(self, id: str, finish: bool) -> Job:
        folder = JobFolder(self.root, id)
        with exclusive(self.root):
            job, standing = folder.read_job_and_state()
            if job.state not in ("stopped", "failed"):
                raise PromptOrTuneError(f"The job '{job.adapter}' is {job.state}: only one that was stopped goes on.")
            if not job.config:
                raise PromptOrTuneError(job.message)
            if last_checkpoint(job, self.home) is None and not is_trained(job, standing, self.home):
                check_name(job.adapter, self.home, [each for each in self._unfinished_jobs() if each.id != id])
            folder.stop_path.unlink(missing_ok=True)
            standing = replace(
                standing,
                state="queued",
                stage="",
                message="Waits for its turn.",
                queued=utc_timestamp(),
                ended="",
                generation=standing.generation + 1,
                finish=finish,
                crashes=0,
            )
            folder.write_state(standing)
            with open_queue(self.root) as queue:
                queue.put(job, standing.generation)
        self.ensure_worker()
        return self.get_job(id)

    def _unfinished_jobs(self) -> list[Job]:
        """Jobs that may yet write an adapter under their name."""
        return [job for job in self.list_jobs() if not job.is_ended or last_checkpoint(job, self.home) is not None]
