"""JobService: submit, list, cancel, resume and delete jobs of training and of advice, and start the worker process.

Jobs that give advice: they run advise.advisor in their process, and keep its files in the job's folder (`advice/`). An
advice has no checkpoint of its own kind: each finished step is a file, and a resumed advice continues behind these.

Several programs may use the jobs of one home at once; all state is on disk.
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
from typing import Any, get_args

from adapters.manifest import NO_OWNER, Owner, check_name, read_origin, write_origin
from advise.folder import AdviceFolder, AdviseOptions
from common.files import ProgressFn, is_locked, make_dir, make_private_dir
from common.format import utc_timestamp
from errors import PromptOrTuneError, unknown_name_error
from jobs.job import (
    ENDED_STATUSES,
    ComputeTarget,
    Job,
    Progress,
    ServingOptions,
    Verdict,
    check_name_is_free,
    copy_upload,
    model_options,
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
)
from tasks.datasets.registry import dataset_names, is_dataset

FOLDER = "advice"
PROJECT_ROOT = Path(__file__).resolve().parents[1]
# A worker that ends at once, for example because the disk is full, is not restarted more often.
_RESTART_INTERVAL_SECONDS = 5.0
_LOG_BYTES = 1_000_000


def advice_folder(folder: JobFolder) -> AdviceFolder:
    """Return the files of the advice of this job."""
    return AdviceFolder(folder.path / FOLDER)


def finished_steps(advice: AdviceFolder) -> int:
    """Return how many results are stored (AdviceFolder.once): a step of the plan has one or more."""
    return sum(1 for _ in (advice.path / "steps").glob("*.json"))


def written_bytes(advice: AdviceFolder) -> int:
    """Return the bytes of answers and training logs: they grow within a step, so a crash counts less behind them."""
    sizes = []
    for path in advice.path.rglob("*.jsonl"):
        try:
            sizes.append(path.stat().st_size)
        except OSError:  # replaced at this moment
            continue
    return sum(sizes)


def advice_progress(advice: AdviceFolder) -> Progress:
    """Return the finished steps of the plan, and the time: all seconds are those of the whole advice."""
    written = advice.read_progress()
    planned = [step for step in written.steps if step.state != "left out"]
    left = max(written.total_seconds - written.seconds, 0.0) if written.total_seconds else None
    return Progress(
        step=sum(step.state == "done" for step in planned),
        steps=len(planned),
        seconds=written.seconds,
        left_seconds=left,
    )


def advice_message(result: dict[str, Any]) -> str:
    """Return the recommendation as text; '' where the result has none."""
    return str((result.get("recommendation") or {}).get("sentence") or "")


def advise_job(job: Job, folder: JobFolder, home: Path, report: ProgressFn) -> dict[str, Any]:
    """Run the advice, from its last finished step on, and return the result.

    Raises PromptOrTuneError, and KeyboardInterrupt when it is stopped.
    """
    from advise.advisor import run_advice
    from train.run import TrainingStoppedError

    advice = advice_folder(folder)
    options = AdviseOptions.from_json(job.config)
    try:
        return dict(run_advice(options, model_options(job.serving), advice, home, report))
    except TrainingStoppedError as stop:
        raise KeyboardInterrupt from stop


def claim_adapter(job: Job, folder: JobFolder, home: Path) -> bool:
    """Record that the adapter of the advice is the owner's; return whether there is one.

    An adapter of this name with a record of something else was added while the advice was stopped, and is not its own.
    """
    target = home / "adapters" / job.adapter
    if advice_folder(folder).adapter() != job.adapter or not target.is_dir():
        return False
    origin = read_origin(target)
    if origin is not None:
        return (origin.kind, origin.what) == ("job", job.id)
    if job.owner:
        write_origin(target, "job", job.id, Owner(job.owner, job.owner_name))
    return True


def worker_lock_path(home: Path) -> Path:
    """Return the file that the one worker of a home holds locked while it lives."""
    return home / "jobs" / "worker.lock"


class WorkerLauncher:
    """Starts `python -m jobs work` in a session of its own, so that it outlives the program that started it."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._lock = threading.Lock()
        self._last_start = float("-inf")

    def ensure_running(self) -> None:
        """Start a worker unless one lives. Of two that are started at the same time, the second ends by itself."""
        if is_locked(worker_lock_path(self._home)):
            return
        with self._lock:
            if time.monotonic() - self._last_start < _RESTART_INTERVAL_SECONDS:
                return
            self._last_start = time.monotonic()
        # A thread waits for the worker, so that an ended one does not remain as a zombie process.
        threading.Thread(target=self._spawn().wait, name="worker-watch", daemon=True).start()

    def _spawn(self) -> subprocess.Popen[bytes]:
        make_private_dir(self._home / "jobs")
        try:
            (self._home / "jobs" / "worker.log").touch(0o600)
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
                f"The worker process for jobs cannot be started ({error.strerror or error}): see {self._home}."
            ) from error


def worker_environment(home: Path) -> dict[str, str]:
    """Return the environment for the worker and job processes of this home."""
    return {**os.environ, "PROMPT_OR_TUNE_HOME": str(home), "PYTHONUNBUFFERED": "1"}


class JobService:
    """The jobs of one home. Thread-safe; all state is on disk.

    Every method with an id raises UnknownNameError for an id that no job has, and PromptOrTuneError for what the job's
    state does not allow.
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
        owner: Owner = NO_OWNER,
        visitor_data: bool = False,
        data_name: str = "",
        data: Path | None = None,
        where: ComputeTarget = "here",
        flavor: str = "",
    ) -> Job:
        """Add a new training to the queue, start a worker if none lives, and return the job.

        `config` has TrainConfig's fields by name; with `visitor_data` its data set of the Hub is fetched without the
        token and the cache of this machine. `data`, an uploaded file, is copied to the job's folder and replaces
        dataset_name. Raises PromptOrTuneError for invalid settings, a name that is taken, and a local path as data set.
        """
        id = new_job_id()
        target = self.root / id / "data" / safe_file_name(data_name or data.name) if data else None
        values = json.loads(json.dumps(resolve_settings(config, serving, target), default=str))
        name = data_name or (data.name if data else str(values["dataset_name"]))
        job = Job(
            id,
            str(values["adapter_name"]),
            values,
            serving,
            name,
            owner.id,
            owner.name,
            visitor_data,
            "train",
            where,
            flavor,
            created=utc_timestamp(),
        )
        return self._add(job, data, target.name if target else "")

    def submit_advice(
        self, options: AdviseOptions, serving: ServingOptions, *, owner: Owner = NO_OWNER, data_name: str = ""
    ) -> Job:
        """Add a job that gives advice to the queue, start a worker if none lives, and return the job.

        `data_name` is a name for people (default: that of the data set). Raises PromptOrTuneError for an unknown data
        set and for a name of the adapter that is invalid or taken.
        """
        check_name(options.adapter)
        if not is_dataset(options.data):
            raise unknown_name_error("data set", options.data, dataset_names())
        job = Job(
            new_job_id(),
            options.adapter,
            options.to_json(),
            serving,
            data_name or options.data,
            owner.id,
            owner.name,
            kind="advise",
            created=utc_timestamp(),
        )
        return self._add(job, None, "")

    def list_jobs(self) -> list[Job]:
        """Return all jobs, the newest first."""
        found = []
        for folder in job_folders(self.root):
            with suppress(PromptOrTuneError):  # deleted at this moment
                found.append(folder.read_job_and_state())
        running = Counter(job.where for job, _ in found if job.state in ("running", "stopping"))
        positions: dict[str, int] = {}
        for where in get_args(ComputeTarget):
            queued = sorted(
                (state.queued, job.id) for job, state in found if (job.state, job.where) == ("queued", where)
            )
            positions |= {id: running[where] + index for index, (_, id) in enumerate(queued)}
        newest = sorted((job for job, _ in found), key=lambda job: (job.created, job.id), reverse=True)
        return [replace(job, queue_position=positions.get(job.id, 0)) for job in newest]

    def get_job(self, id: str) -> Job:
        """Return the job with its present state and its position in the queue."""
        job = JobFolder(self.root, id).read_job()
        if job.state == "queued":
            return next((listed for listed in self.list_jobs() if listed.id == id), job)
        return job

    def progress(self, id: str) -> Progress:
        """Return the progress of its training or its advice, also after its end."""
        folder = JobFolder(self.root, id)
        job, state = folder.read_job_and_state()
        if job.kind == "advise":
            return advice_progress(advice_folder(folder))
        run_log = self.home / "adapters" / f".{job.adapter}.run" / "log.jsonl"
        is_own_run = not job.is_ended or self.has_checkpoint(id)
        logs = [folder.curve_path, *([run_log] if is_own_run else [])]
        return read_progress(state, logs, float(job.config.get("num_train_epochs", 0.0)))

    def log_lines(self, id: str, lines: int = 200) -> list[str]:
        """Return the last lines of its log."""
        folder = JobFolder(self.root, id)
        folder.read_job()
        try:
            with folder.log_path.open("rb") as file:
                file.seek(max(0, file.seek(0, 2) - _LOG_BYTES))
                text = file.read().decode("utf-8", "replace")
        except OSError:
            return []
        return text.splitlines()[-lines:] if lines > 0 else []

    def advice(self, id: str) -> AdviceFolder:
        """Return the files of its advice. Raises PromptOrTuneError for a training."""
        folder = JobFolder(self.root, id)
        job = folder.read_job()
        if job.kind != "advise":
            raise PromptOrTuneError(f"The job '{job.adapter}' is a training, and no advice: `show` has its progress.")
        return advice_folder(folder)

    def verdict(self, id: str) -> Verdict | None:
        """Return the result of its scoring; None before it is scored."""
        folder = JobFolder(self.root, id)
        folder.read_job()
        return folder.read_verdict()

    def cancel(self, id: str) -> Job:
        """Stop it: a queued job at once, a running one after it has saved a checkpoint."""
        folder = JobFolder(self.root, id)
        with exclusive(self.root):
            job, state = folder.read_job_and_state()
            if job.is_ended:
                raise PromptOrTuneError(f"The job '{job.adapter}' is not running: it is {job.state}.")
            if job.state == "queued":
                message = "Stopped before it continued." if state.attempts else "Stopped before it began."
                folder.write_state(replace(state, state="stopped", message=message, ended=utc_timestamp()))
            else:
                folder.stop_path.touch(0o600)
                folder.write_state(replace(state, state="stopping", message="Stopping, with a checkpoint."))
        self.ensure_worker()
        return self.get_job(id)

    def resume(self, id: str) -> Job:
        """Queue it again, from its last checkpoint, scored batch or finished step; without one it begins again."""
        return self._requeue(id, finish=False)

    def finish_from_checkpoint(self, id: str) -> Job:
        """Queue it to make an adapter of its best checkpoint without further training.

        Raises PromptOrTuneError for an advice, which has no checkpoint.
        """
        if not self.has_checkpoint(id):
            raise PromptOrTuneError(
                f"The job '{self.get_job(id).adapter}' has no checkpoint to make an adapter of: resume it."
            )
        return self._requeue(id, finish=True)

    def delete(self, id: str) -> None:
        """Delete an ended job with its checkpoints or its advice; a finished adapter stays."""
        folder = JobFolder(self.root, id)
        with exclusive(self.root):
            job = folder.read_job()
            if not job.is_ended or folder.is_running():
                raise PromptOrTuneError(f"The job '{job.adapter}' is {job.state}: stop it before you delete it.")
            remove_checkpoints(job, self.home)
            trash = self.root / f".{id}.deleted"
            try:
                folder.path.rename(trash)
            except OSError as error:
                raise PromptOrTuneError(f"{folder.path} cannot be deleted ({error.strerror}).") from error
        shutil.rmtree(trash, ignore_errors=True)

    def has_checkpoint(self, id: str) -> bool:
        """Return whether there is a checkpoint from which it could continue."""
        return last_checkpoint(JobFolder(self.root, id).read_job(), self.home) is not None

    def adapter_folder(self, id: str) -> Path | None:
        """Return the folder of the adapter that it made; None before that, or after the adapter was deleted."""
        folder = JobFolder(self.root, id)
        job, state = folder.read_job_and_state()
        return self.home / "adapters" / job.adapter if is_trained(job, state, self.home) else None

    def ensure_worker(self) -> None:
        """Start a worker if any job has not ended and no worker lives."""
        if any(folder.read_state().state not in ENDED_STATUSES for folder in job_folders(self.root)):
            self._launcher.ensure_running()

    def _add(self, job: Job, data: Path | None, data_file: str) -> Job:
        """Write the folder of a new job, with a copy of `data` under this name, and queue the job."""
        make_private_dir(self.root)
        staged = self.root / f".{job.id}.new"
        try:
            make_dir(staged / "data")
            if data:
                copy_upload(data, staged / "data" / data_file)
            self._enqueue(job, JobFolder(self.root, job.id), staged)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        with suppress(PromptOrTuneError):  # the job is queued; the next look at the jobs tries again
            self.ensure_worker()
        return self.get_job(job.id)

    def _enqueue(self, job: Job, folder: JobFolder, staged: Path) -> None:
        """Rename the staged folder to the job's, so that it is never incomplete, and add a message to the queue."""
        with exclusive(self.root):
            check_name_is_free(job.adapter, self.home, self._unfinished_jobs())
            state = JobState(message="Waits for its turn.", queued=utc_timestamp(), generation=1)
            new = JobFolder(self.root, job.id, staged)
            new.write_request(job)
            new.write_state(state)
            staged.rename(folder.path)
            with open_queue(self.root) as queue:
                queue.put(job, state.generation)

    def _requeue(self, id: str, finish: bool) -> Job:
        folder = JobFolder(self.root, id)
        with exclusive(self.root):
            job, state = folder.read_job_and_state()
            if job.state not in ("stopped", "failed"):
                raise PromptOrTuneError(
                    f"The job '{job.adapter}' is {job.state}: only a stopped or failed one can be resumed."
                )
            if not job.config:
                raise PromptOrTuneError(job.message)
            if not self._has_work(job) and not is_trained(job, state, self.home):
                check_name_is_free(
                    job.adapter, self.home, [other for other in self._unfinished_jobs() if other.id != id]
                )
            folder.stop_path.unlink(missing_ok=True)
            state = replace(
                state,
                state="queued",
                stage="",
                message="Waits for its turn.",
                queued=utc_timestamp(),
                ended="",
                generation=state.generation + 1,
                finish=finish,
                crashes=0,
            )
            folder.write_state(state)
            with open_queue(self.root) as queue:
                queue.put(job, state.generation)
        self.ensure_worker()
        return self.get_job(id)

    def _unfinished_jobs(self) -> list[Job]:
        """Return the jobs that may still write an adapter of their name."""
        return [job for job in self.list_jobs() if not job.is_ended or self._has_work(job)]

    def _has_work(self, job: Job) -> bool:
        """Return whether the job, resumed, would continue from a checkpoint or behind a finished step."""
        if job.kind == "advise":
            return job.state != "done" and finished_steps(advice_folder(JobFolder(self.root, job.id))) > 0
        return last_checkpoint(job, self.home) is not None
