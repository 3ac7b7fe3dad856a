"""Puts right what ended processes left: jobs that no process works on, and messages that the queue has lost."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from jobs.folder import JobFolder, Standing, changing, folders, now
from jobs.queue import Queue

# So often a job's process may end unasked, without getting any further, before a person is asked.
MOST_CRASHES = 5
_STAGED = re.compile(r"\.[0-9a-f-]+\.(new|deleted)")
_STALE_SECONDS = 3600.0


def settle(folder: JobFolder, queue: Queue, ticket: int | None = None) -> None:
    """Of a job whose process has ended: what was to be stopped is stopped, all else waits again, before the others.

    A job whose process lives is left alone, and one that waits as well, but with this ticket: its process ended before
    it could so much as begin.
    """
    with changing(folder.path.parent):
        standing = folder.standing()
        begun = standing.state in ("running", "stopping") or (standing.state == "queued" and standing.ticket == ticket)
        if not folder.path.is_dir() or not begun or folder.is_running():
            return
        if standing.state == "stopping":
            message = "Stopped; its process had ended already. What it had saved is kept."
            folder.write_standing(replace(standing, state="stopped", stage="", message=message, ended=now()))
            folder.stop.unlink(missing_ok=True)
        elif standing.crashes + 1 >= MOST_CRASHES:
            message = (
                f"The job's process was ended {MOST_CRASHES} times without getting any further, and nobody said why: "
                "see that there is enough memory, then resume it."
            )
            folder.write_standing(replace(standing, state="failed", message=message, ended=now()))
        else:
            _wait_again(folder, standing, queue)


def sweep(root: Path, queue: Queue, busy: Collection[str] = ()) -> None:
    """Settles jobs without a process and puts waiting ones into the queue that it lacks, but for those in `busy`."""
    for folder in folders(root):
        if folder.id in busy:
            continue
        standing = folder.standing()
        if standing.state in ("running", "stopping"):
            settle(folder, queue)
        elif standing.state == "queued":
            _put_if_lost(folder, queue)


def anything_to_do(root: Path) -> bool:
    """Whether a job waits or runs."""
    return any(folder.standing().state in ("queued", "running", "stopping") for folder in folders(root))


def remove_stale(root: Path) -> None:
    """Removes folders of jobs that were being made or deleted when a program was killed."""
    for path in root.glob(".*"):
        if _STAGED.fullmatch(path.name) and time.time() - path.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(path, ignore_errors=True)


def _wait_again(folder: JobFolder, standing: Standing, queue: Queue) -> None:
    waiting = replace(
        standing,
        state="queued",
        stage="",
        message="Was interrupted, and goes on by itself.",
        ticket=standing.ticket + 1,
        crashes=standing.crashes + 1,
        anchor=(0, 0.0),
    )
    folder.write_standing(waiting)
    queue.put(folder.job(), waiting.ticket, first=True)


def _put_if_lost(folder: JobFolder, queue: Queue) -> None:
    with changing(folder.path.parent):
        standing = folder.standing()
        if standing.state == "queued" and (folder.id, standing.ticket) not in queue.waiting():
            queue.put(folder.job(), standing.ticket)
