"""The worker: takes jobs from the queue, one at a time (here, and elsewhere), each in a process of its own.

There is one worker a home. It outlives the app, and ends by itself a while after there is nothing left to do. Should it
be killed, the process of its job notices, saves a checkpoint and ends; the next worker waits for that and goes on.
"""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from io import FileIO
from pathlib import Path
from typing import Any

from errors import PromptOrTuneError
from jobs.folder import JobFolder, exclusive, job_folders
from jobs.launch import PROJECT_ROOT, worker_environment, worker_lock_path
from jobs.locks import acquire_lock
from jobs.queue import JobQueue, open_queue
from jobs.recovery import has_pending_jobs, recover_job, recover_jobs, remove_stale_folders
from serve.home import make_dir

IDLE_SECONDS = 60.0
_POLL_SECONDS = 0.25
_CHECK_SECONDS = 1.0
# How long a job whose worker died may take to save its checkpoint before the next worker begins another job.
_ORPHAN_SECONDS = 120.0
_logger = logging.getLogger(__name__)


def run_worker(home: Path, idle_seconds: float = IDLE_SECONDS) -> None:
    """Works the queue off, until nothing was to do for `idle_seconds` or a signal comes; at once if another does."""
    root = make_dir(home / "jobs")
    lock = acquire_lock(worker_lock_path(home))
    if lock is None:
        _logger.info("Another worker lives; nothing to do.")
        return
    with lock:
        worker = _Worker(home, root, idle_seconds, lock)
        with open_queue(root, worker.run_job) as queue:
            worker.serve(queue)


class _Worker:
    def __init__(self, home: Path, root: Path, idle_seconds: float, lock: FileIO) -> None:
        self._lock = lock
        self._home = home
        self._root = root
        self._idle_seconds = idle_seconds
        self._stop_event = threading.Event()
        self._active_ids: set[str] = set()
        self._last_active = time.monotonic()
        self._queue: JobQueue | None = None

    def serve(self, queue: JobQueue) -> None:
        """Runs Huey's consumers until there is nothing left to do."""
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
        """Works on one job in a process of its own: what Huey calls with each message."""
        self._active_ids.add(id)
        try:
            folder = JobFolder(self._root, id)
            standing = folder.read_state()
            if folder.path.is_dir() and standing.state == "queued" and standing.generation == generation:
                self._run_job_process(folder, generation)
        finally:
            self._last_active = time.monotonic()
            self._active_ids.discard(id)

    def _run_job_process(self, folder: JobFolder, generation: int) -> None:
        assert self._queue is not None  # noqa: S101 - for mypy; the consumer starts after it is set
        _logger.info("Job %s begins.", folder.id)
        with folder.log_path.open("ab") as log:
            # It reads its standard input to notice the worker's end.
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
        except PromptOrTuneError as fault:  # a full disk, say: what waits goes on waiting
            _logger.warning("%s", fault)

    def _end_if_idle(self, consumers: Sequence[Any]) -> None:
        """Whoever adds a job does so under the same lock, and then finds no worker and starts the next one."""
        with exclusive(self._root):
            if not has_pending_jobs(self._root):
                for consumer in consumers:
                    consumer.stop(graceful=True)
                self._lock.close()
                self._stop_event.set()

    def _on_signal(self, number: int, _frame: Any) -> None:
        _logger.info("Ended by signal %d.", number)
        self._stop_event.set()
