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
from adapters.delete import delete, own_folder
from errors import PeftArenaError
from jobs.board import JobBoard
from jobs.checkpoints import checkpoint_of
from jobs.job import Job
from ui.context import Context
from ui.train.panel_words import Left
from ui.visitors import Visitor

WAKE_SECONDS = 10.0


@dataclass
class Desk:
    """The board, and the rules by which visitors act on it. Thread-safe."""

    context: Context
    board: JobBoard
    clock: Callable[[], float] = time.monotonic
    _woken: float = float("-inf")
    _zips: tempfile.TemporaryDirectory[str] = field(
        default_factory=lambda: tempfile.TemporaryDirectory(prefix="peft-arena-zips-")
    )
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def closed(self, visitor: Visitor) -> str | None:
        """Why this visitor sees no jobs: who may not train is shown nothing of others' data."""
        return self.context.visitors.may_train(visitor)

    def mine(self, visitor: Visitor, job: Job) -> bool:
        """Whether the job is this visitor's to change."""
        return visitor.owner or (bool(job.owner) and job.owner == visitor.id)

    def job(self, request: Any, id: str | None) -> Job:
        """The job, for changing it; PeftArenaError where the visitor behind `request` may not."""
        visitor = self.context.visitors.of(request)
        refused = self.closed(visitor)
        if refused:
            raise PeftArenaError(refused)
        if not id:
            raise PeftArenaError("Choose a job in the list first.")
        job = self.board.get(id)
        if not self.mine(visitor, job):
            raise PeftArenaError(
                f"The job of '{job.adapter}' is another visitor's: only who began it or this app's owner may change it."
            )
        return job

    def cancel(self, request: Any, id: str | None) -> None:
        """Stops it; a training that runs saves a checkpoint first."""
        self.board.cancel(self.job(request, id).id)

    def again(self, request: Any, id: str | None) -> None:
        """Resume, Retry, Start again: into the line once more, from the last checkpoint where there is one."""
        job = self.job(request, id)
        self._room(request)
        self.board.resume(job.id)

    def finish(self, request: Any, id: str | None) -> None:
        """Makes the adapter of the best checkpoint."""
        job = self.job(request, id)
        self._room(request)
        self.board.finish(job.id)

    def delete(self, request: Any, id: str | None, *, adapter: bool) -> None:
        """Takes an ended job away, and with `adapter` what came of it."""
        job = self.job(request, id)
        if adapter and job.over and self.board.adapter_folder(job.id):
            if any(each.adapter == job.adapter and each.created > job.created for each in self.board.jobs()):
                raise PeftArenaError(
                    f"'{job.adapter}' was made anew by a later job: delete this job alone, or the later one with it."
                )
            delete(own_folder(job.adapter, [self.context.home / "adapters"]))
        self.board.delete(job.id)

    def packed(self, request: Any, id: str | None) -> Path:
        """The finished adapter as a zip, in a folder from which Gradio may serve it."""
        job = self.job(request, id)
        folder = self.board.adapter_folder(job.id)
        if folder is None:
            raise PeftArenaError(f"There is no adapter '{job.adapter}' any more: train it again.")
        # In the machine's folder for temporary files: Gradio serves out of it, and not out of the user's home.
        return pack(folder, Path(self._zips.name) / job.id / f"{folder.name}.zip")

    def left(self, job: Job) -> Left:
        """What an ended job has left; nothing of one that still works on it."""
        if not job.over:
            return Left()
        last = checkpoint_of(job, self.context.home)
        step = int(last.name.rsplit("-", 1)[1]) if last else 0
        return Left(step, self.board.adapter_folder(job.id) is not None)

    def wake(self, jobs: Sequence[Job]) -> None:
        """Brings back a worker that was killed, where something waits for one. Asked at every look, so it is rare."""
        with self._lock:
            now = self.clock()
            if now - self._woken < WAKE_SECONDS or all(job.over for job in jobs):
                return
            self._woken = now
        self.board.ensure_worker()

    def _room(self, request: Any) -> None:
        visitor, limit = self.context.visitors.of(request), self.context.visitors.policy.limits.jobs_at_once
        count = sum(job.owner == visitor.id and not job.over for job in self.board.jobs())
        if 0 < limit <= count:
            raise PeftArenaError(
                f"You have {count} jobs that wait or run and {limit} is the limit for one person: "
                "wait for one of them, or cancel one."
            )
