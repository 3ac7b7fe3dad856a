"""All jobs of one home, on disk, for whoever asks: pages, commands, several programs at once."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from errors import PeftArenaError
from jobs.checkpoints import checkpoint_of, is_trained, remove_checkpoints
from jobs.folder import JobFolder, Standing, changing, folders, new_id, now
from jobs.job import ENDED, Job, Progress, Serving, Verdict, Where
from jobs.launch import Launcher
from jobs.progress import progress_of
from jobs.queue import opened
from jobs.request import check_name, copy_data, safe_name, settled
from serve.home import make_folder

_LOG_BYTES = 1_000_000


class JobBoard:
    """Begins jobs and tells how they stand. Nothing is kept in memory that is not on disk; any thread may ask.

    Every method with an id raises UnknownNameError for one that no job has, and PeftArenaError, in one sentence, for
    what the job's state does not allow.
    """

    def __init__(self, home: Path) -> None:
        self.home = home.absolute()
        self.root = self.home / "jobs"
        self._launcher = Launcher(self.home)

    def submit(
        self,
        config: Mapping[str, Any],
        serving: Serving,
        *,
        owner: str = "",
        data_name: str = "",
        data: Path | None = None,
        where: Where = "here",
        flavor: str = "",
    ) -> Job:
        """Puts a new job into the queue and sees to it that a worker lives.

        `config` has TrainConfig's fields by name; `data`, an uploaded file, is copied into the job's folder and takes
        the place of dataset_name. Raises PeftArenaError, in one sentence, where the job could not train: settings, a
        name that is taken, data by a path.
        """
        make_folder(self.root)
        id = new_id()
        target = self.root / id / "data" / safe_name(data_name or data.name) if data else None
        values = json.loads(json.dumps(settled(config, serving, target), default=str))
        name = data_name or (data.name if data else str(values["dataset_name"]))
        job = Job(id, str(values["adapter_name"]), values, serving, name, owner, where, flavor, created=now())
        staged = self.root / f".{id}.new"
        try:
            make_folder(staged / "data")
            if data and target:
                copy_data(data, staged / "data" / target.name)
            self._place(job, JobFolder(self.root, id), staged)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        with suppress(PeftArenaError):  # the job waits all the same, and whoever looks at it tries again
            self.ensure_worker()
        return self.get(id)

    def jobs(self) -> list[Job]:
        """All jobs, newest first."""
        found = []
        for folder in folders(self.root):
            with suppress(PeftArenaError):  # deleted at this moment
                found.append(folder.read())
        busy = Counter(job.where for job, _ in found if job.state in ("running", "stopping"))
        waiting = [(job.where, standing.queued, job.id) for job, standing in found if job.state == "queued"]
        before = {id: busy[where] + sum(each[0] == where and each < (where, since, id) for each in waiting)
                  for where, since, id in waiting}  # fmt: skip
        newest = sorted((job for job, _ in found), key=lambda job: (job.created, job.id), reverse=True)
        return [replace(job, before=before.get(job.id, 0)) for job in newest]

    def get(self, id: str) -> Job:
        """The job as it stands."""
        job = JobFolder(self.root, id).job()
        if job.state == "queued":
            return next((each for each in self.jobs() if each.id == id), job)
        return job

    def progress(self, id: str) -> Progress:
        """How far its training is, also when it is over."""
        folder = JobFolder(self.root, id)
        job, standing = folder.read()
        run = self.home / "adapters" / f".{job.adapter}.run" / "log.jsonl"
        ours = not job.over or self.has_checkpoint(id)
        logs = [folder.curve, *([run] if ours else [])]
        return progress_of(standing, logs, float(job.config.get("num_train_epochs", 0.0)))

    def log(self, id: str, lines: int = 200) -> list[str]:
        """The last lines that it said."""
        folder = JobFolder(self.root, id)
        folder.job()
        try:
            with folder.log.open("rb") as file:
                file.seek(max(0, file.seek(0, 2) - _LOG_BYTES))
                text = file.read().decode("utf-8", "replace")
        except OSError:
            return []
        return text.splitlines()[-lines:] if lines > 0 else []

    def verdict(self, id: str) -> Verdict | None:
        """What its scores say, once it is scored."""
        folder = JobFolder(self.root, id)
        folder.job()
        return folder.verdict()

    def cancel(self, id: str) -> Job:
        """Stops it: one that waits at once, one that runs as soon as a checkpoint is saved."""
        folder = JobFolder(self.root, id)
        with changing(self.root):
            job, standing = folder.read()
            if job.over:
                raise PeftArenaError(f"The job '{job.adapter}' is not running: it is {job.state}.")
            if job.state == "queued":
                message = "Stopped before it went on." if standing.attempts else "Stopped before it began."
                folder.write_standing(replace(standing, state="stopped", message=message, ended=now()))
            else:
                folder.stop.touch()
                folder.write_standing(replace(standing, state="stopping", message="Stopping, with a checkpoint."))
        self.ensure_worker()
        return self.get(id)

    def resume(self, id: str) -> Job:
        """Goes on from the last checkpoint, or from where the scoring stood; without either it begins again."""
        return self._again(id, finish=False)

    def finish(self, id: str) -> Job:
        """Makes the adapter of its best checkpoint, without training on."""
        if not self.has_checkpoint(id):
            raise PeftArenaError(
                f"The job '{self.get(id).adapter}' has no checkpoint to make an adapter of: resume it."
            )
        return self._again(id, finish=True)

    def delete(self, id: str) -> None:
        """Removes an ended job with its checkpoints; a finished adapter stays."""
        folder = JobFolder(self.root, id)
        with changing(self.root):
            job = folder.job()
            if not job.over or folder.is_running():
                raise PeftArenaError(f"The job '{job.adapter}' is {job.state}: stop it before you delete it.")
            remove_checkpoints(job, self.home)
            gone = self.root / f".{id}.deleted"
            try:
                folder.path.rename(gone)
            except OSError as fault:
                raise PeftArenaError(f"{folder.path} cannot be deleted ({fault.strerror}).") from fault
        shutil.rmtree(gone, ignore_errors=True)

    def has_checkpoint(self, id: str) -> bool:
        """Whether there is a checkpoint from which it could go on."""
        return checkpoint_of(JobFolder(self.root, id).job(), self.home) is not None

    def adapter_folder(self, id: str) -> Path | None:
        """The adapter that it made; None before that, and when it was deleted since."""
        folder = JobFolder(self.root, id)
        job, standing = folder.read()
        return self.home / "adapters" / job.adapter if is_trained(job, standing, self.home) else None

    def ensure_worker(self) -> None:
        """Starts the process that works the queue off where there is work and none lives."""
        if any(folder.standing().state not in ENDED for folder in folders(self.root)):
            self._launcher.start()

    def _place(self, job: Job, folder: JobFolder, staged: Path) -> None:
        """The job's folder is there as a whole or not at all, and its message in the queue right after."""
        with changing(self.root):
            check_name(job.adapter, self.home, self._unfinished())
            standing = Standing(message="Waits for its turn.", queued=now(), ticket=1)
            new = JobFolder(self.root, job.id, staged)
            new.write_request(job)
            new.write_standing(standing)
            staged.rename(folder.path)
            with opened(self.root) as queue:
                queue.put(job, standing.ticket)

    def _again(self, id: str, finish: bool) -> Job:
        folder = JobFolder(self.root, id)
        with changing(self.root):
            job, standing = folder.read()
            if job.state not in ("stopped", "failed"):
                raise PeftArenaError(f"The job '{job.adapter}' is {job.state}: only one that was stopped goes on.")
            if not job.config:
                raise PeftArenaError(job.message)
            if checkpoint_of(job, self.home) is None and not is_trained(job, standing, self.home):
                check_name(job.adapter, self.home, [each for each in self._unfinished() if each.id != id])
            folder.stop.unlink(missing_ok=True)
            standing = replace(
                standing,
                state="queued",
                stage="",
                message="Waits for its turn.",
                queued=now(),
                ended="",
                ticket=standing.ticket + 1,
                finish=finish,
                crashes=0,
            )
            folder.write_standing(standing)
            with opened(self.root) as queue:
                queue.put(job, standing.ticket)
        self.ensure_worker()
        return self.get(id)

    def _unfinished(self) -> list[Job]:
        """Jobs that may yet write an adapter under their name."""
        return [job for job in self.jobs() if not job.over or checkpoint_of(job, self.home) is not None]
