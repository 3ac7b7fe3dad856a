"""Worker process: runs queued jobs, each in a process of its own, and recovers from processes that died.

There is one worker per home. It runs one local and one remote job at a time, outlives the app, and ends by itself some
time after the last job. If it is killed, the process of its job notices that, saves a checkpoint and ends; the next
worker waits for this and then continues the job. Recovery queues jobs that no process runs, and restores messages that
the queue has lost.
"""

from __future__ import annotations

import logging
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from common.files import acquire_lock, make_private_dir
from common.format import utc_timestamp
from errors import PromptOrTuneError
from jobs.api import PROJECT_ROOT, worker_environment, worker_lock_path
from jobs.queue import JobQueue, open_queue
from jobs.store import JobFolder, JobState, exclusive, job_folders

# A job fails after its process ended unexpectedly this many times without getting further.
MAX_CRASHES = 5
_STAGED_FOLDER = re.compile(r"\.[0-9a-f-]+\.(new|deleted)")
_STALE_SECONDS = 3600.0
IDLE_SECONDS = 60.0
_POLL_SECONDS = 0.25
_CHECK_SECONDS = 1.0
# How long a job whose worker died may take to save its checkpoint before the next worker begins another job.
_ORPHAN_SECONDS = 120.0
_logger = logging.getLogger(__name__)


def recover_job(folder: JobFolder, queue: JobQueue, generation: int | None = None) -> None:
    """Settle a job whose process has ended: mark a stopping job as stopped, queue any other again before all others.

    A job with a living process is not changed, nor is a queued one, unless its state has this `generation`: then its
    process ended before it could mark the job as running.
    """
    with exclusive(folder.path.parent):
        state = folder.read_state()
        is_affected = state.state in ("running", "stopping") or (
            state.state == "queued" and state.generation == generation
        )
        if not folder.path.is_dir() or not is_affected or folder.is_running():
            return
        if state.state == "stopping":
            message = "Stopped; its process had ended already. Its saved checkpoints remain."
            folder.write_state(replace(state, state="stopped", stage="", message=message, ended=utc_timestamp()))
            folder.stop_path.unlink(missing_ok=True)
        elif state.crashes + 1 >= MAX_CRASHES:
            message = (
                f"The job's process ended {MAX_CRASHES} times for unknown reasons without getting any further: check "
                "that there is enough memory, then resume it."
            )
            folder.write_state(replace(state, state="failed", message=message, ended=utc_timestamp()))
        else:
            _requeue(folder, state, queue)


def recover_jobs(root: Path, queue: JobQueue, active_ids: Collection[str] = ()) -> None:
    """Settle jobs without a process, and queue waiting jobs that the queue lacks, except those in `active_ids`."""
    for folder in job_folders(root):
        if folder.id in active_ids:
            continue
        state = folder.read_state()
        if state.state in ("running", "stopping"):
            recover_job(folder, queue)
        elif state.state == "queued":
            _requeue_if_missing(folder, queue)


def has_pending_jobs(root: Path) -> bool:
    """Return whether a job is queued or running."""
    return any(folder.read_state().state in ("queued", "running", "stopping") for folder in job_folders(root))


def remove_stale_folders(root: Path) -> None:
    """Delete the temporary folders that programs left which were killed while they added or deleted a job."""
    for path in root.glob(".*"):
        if _STAGED_FOLDER.fullmatch(path.name) and time.time() - path.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(path, ignore_errors=True)


def _requeue(folder: JobFolder, state: JobState, queue: JobQueue) -> None:
    queued = replace(
        state,
        state="queued",
        stage="",
        message="Was interrupted, and continues by itself.",
        generation=state.generation + 1,
        crashes=state.crashes + 1,
        anchor=(0, 0.0),
    )
    folder.write_state(queued)
    queue.put(folder.read_job(), queued.generation, at_front=True)


def _requeue_if_missing(folder: JobFolder, queue: JobQueue) -> None:
    with exclusive(folder.path.parent):
        state = folder.read_state()
        if state.state == "queued" and (folder.id, state.generation) not in queue.pending():
            queue.put(folder.read_job(), state.generation)


def run_worker(home: Path, idle_seconds: float = IDLE_SECONDS) -> None:
    """Run queued jobs until there were none for `idle_seconds`, or a signal comes. Returns if another worker lives."""
    root = make_private_dir(home / "jobs")
    lock = acquire_lock(worker_lock_path(home))
    if lock is None:
        _logger.info("Another worker is running; this one ends.")
        return
    with lock:
        worker = _Worker(home, root, idle_seconds, lock.lock)
        with open_queue(root, worker.run_job) as queue:
            worker.serve(queue)


class _Worker:
    def __init__(self, home: Path, root: Path, idle_seconds: float, lock: FileLock) -> None:
        self._lock = lock
        self._home = home
        self._root = root
        self._idle_seconds = idle_seconds
        self._stop_event = threading.Event()
        self._active_ids: set[str] = set()
        self._last_active = time.monotonic()
        self._queue: JobQueue | None = None

    def serve(self, queue: JobQueue) -> None:
        """Run Huey's consumers until there are no more jobs."""
        self._queue = queue
        remove_stale_folders(self._root)
        self._wait_for_orphans()
        recover_jobs(self._root, queue)
        consumers = [
            huey.create_consumer(workers=1, periodic=False, initial_delay=0.1, max_delay=1.0, scheduler_interval=60)
            for huey in queue.hueys.values()
        ]
        for consumer in consumers:
            consumer.start()
        for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
            signal.signal(number, self._on_signal)
        self._last_active = time.monotonic()
        while not self._stop_event.wait(_CHECK_SECONDS):
            self._check_queue(queue, consumers)
        for consumer in consumers:
            consumer.stop()

    def run_job(self, id: str, generation: int) -> None:
        """Run one job in a process of its own. Huey calls this with each message."""
        self._active_ids.add(id)
        try:
            folder = JobFolder(self._root, id)
            state = folder.read_state()
            if folder.path.is_dir() and state.state == "queued" and state.generation == generation:
                self._run_job_process(folder, generation)
        finally:
            self._last_active = time.monotonic()
            self._active_ids.discard(id)

    def _run_job_process(self, folder: JobFolder, generation: int) -> None:
        assert self._queue is not None  # noqa: S101 - for mypy; the consumer starts after it is set
        _logger.info("Starting job %s.", folder.id)
        folder.log_path.touch(0o600)
        with folder.log_path.open("ab") as log:
            # The job process reads its standard input to notice the end of the worker.
            process = subprocess.Popen(
                [sys.executable, "-m", "jobs", "run", folder.id, "--attached"],
                cwd=PROJECT_ROOT,
                env=worker_environment(self._home),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
            )
            status = process.wait()
            if status < 0:
                log.write(f"{time.strftime('%H:%M:%S')}  The process was ended by signal {-status}.\n".encode())
        _logger.info("Job %s ended with status %d.", folder.id, status)
        recover_job(folder, self._queue, generation)
        time.sleep(min(folder.read_state().crashes, 5))

    def _wait_for_orphans(self) -> None:
        deadline = time.monotonic() + _ORPHAN_SECONDS
        while any(folder.is_running() for folder in job_folders(self._root)) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)

    def _check_queue(self, queue: JobQueue, consumers: Sequence[Any]) -> None:
        try:
            for consumer in consumers:
                consumer.check_worker_health()
            recover_jobs(self._root, queue, self._active_ids)
            if not self._active_ids and time.monotonic() - self._last_active >= self._idle_seconds:
                self._end_if_idle(consumers)
        except PromptOrTuneError as error:  # for example a full disk: the jobs stay queued
            _logger.warning("%s", error)

    def _end_if_idle(self, consumers: Sequence[Any]) -> None:
        """End if no job is left. A program that adds a job holds the same lock, and then starts the next worker."""
        with exclusive(self._root):
            if not has_pending_jobs(self._root):
                for consumer in consumers:
                    consumer.stop(graceful=True)
                self._lock.release()
                self._stop_event.set()

    def _on_signal(self, number: int, _frame: Any) -> None:
        _logger.info("Stopping on signal %d.", number)
        self._stop_event.set()
