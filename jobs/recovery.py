"""Puts right what ended processes left: jobs that no process works on, and messages that the queue has lost."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from jobs.folder import JobFolder, JobState, exclusive, job_folders, utc_timestamp
from jobs.queue import JobQueue

# So often a job's process may end unasked, without getting any further, before a person is asked.
MAX_CRASHES = 5
_STAGED_FOLDER = re.compile(r"\.[0-9a-f-]+\.(new|deleted)")
_STALE_SECONDS = 3600.0


def recover_job(folder: JobFolder, queue: JobQueue, generation: int | None = None) -> None:
    """Of a job whose process has ended: what was to be stopped is stopped, all else waits again, before the others.

    A job whose process lives is left alone, and one that waits as well, but with this ticket: its process ended before
    it could so much as begin.
    """
    with exclusive(folder.path.parent):
        standing = folder.read_state()
        begun = standing.state in ("running", "stopping") or (
            standing.state == "queued" and standing.generation == generation
        )
        if not folder.path.is_dir() or not begun or folder.is_running():
            return
        if standing.state == "stopping":
            message = "Stopped; its process had ended already. What it had saved is kept."
            folder.write_state(replace(standing, state="stopped", stage="", message=message, ended=utc_timestamp()))
            folder.stop_path.unlink(missing_ok=True)
        elif standing.crashes + 1 >= MAX_CRASHES:
            message = (
                f"The job's process was ended {MAX_CRASHES} times without getting any further, and nobody said why: "
                "see that there is enough memory, then resume it."
            )
            folder.write_state(replace(standing, state="failed", message=message, ended=utc_timestamp()))
        else:
            _requeue(folder, standing, queue)


def recover_jobs(root: Path, queue: JobQueue, active_ids: Collection[str] = ()) -> None:
    """Settles jobs without a process and puts waiting ones into the queue that it lacks, but for those in `busy`."""
    for folder in job_folders(root):
        if folder.id in active_ids:
            continue
        standing = folder.read_state()
        if standing.state in ("running", "stopping"):
            recover_job(folder, queue)
        elif standing.state == "queued":
            _requeue_if_missing(folder, queue)


def has_pending_jobs(root: Path) -> bool:
    """Whether a job waits or runs."""
    return any(folder.read_state().state in ("queued", "running", "stopping") for folder in job_folders(root))


def remove_stale_folders(root: Path) -> None:
    """Removes folders of jobs that were being made or deleted when a program was killed."""
    for path in root.glob(".*"):
        if _STAGED_FOLDER.fullmatch(path.name) and time.time() - path.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(path, ignore_errors=True)


def _requeue(folder: JobFolder, state: JobState, queue: JobQueue) -> None:
    waiting = replace(
        state,
        state="queued",
        stage="",
        message="Was interrupted, and goes on by itself.",
        generation=state.generation + 1,
        crashes=state.crashes + 1,
        anchor=(0, 0.0),
    )
    folder.write_state(waiting)
    queue.put(folder.read_job(), waiting.generation, at_front=True)


def _requeue_if_missing(folder: JobFolder, queue: JobQueue) -> None:
    with exclusive(folder.path.parent):
        standing = folder.read_state()
        if standing.state == "queued" and (folder.id, standing.generation) not in queue.pending():
            queue.put(folder.read_job(), standing.generation)
