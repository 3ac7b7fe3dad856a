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

from errors import PeftArenaError
from jobs.folder import JobFolder, changing, folders
from jobs.launch import PROGRAM, environment, worker_lock
from jobs.locks import take
from jobs.queue import Queue, opened
from jobs.recovery import anything_to_do, remove_stale, settle, sweep
from serve.home import make_folder

IDLE_SECONDS = 60.0
_POLL_SECONDS = 0.25
_LOOK_SECONDS = 1.0
# How long a job whose worker died may take to save its checkpoint before the next worker begins another job.
_ORPHAN_SECONDS = 120.0
_log = logging.getLogger(__name__)


def work(home: Path, idle_seconds: float = IDLE_SECONDS) -> None:
    """Works the queue off, until nothing was to do for `idle_seconds` or a signal comes; at once if another does."""
    root = make_folder(home / "jobs")
    lock = take(worker_lock(home))
    if lock is None:
        _log.info("Another worker lives; nothing to do.")
        return
    with lock:
        worker = _Worker(home, root, idle_seconds, lock)
        with opened(root, worker.run) as queue:
            worker.serve(queue)


class _Worker:
    def __init__(self, home: Path, root: Path, idle_seconds: float, lock: FileIO) -> None:
        self._lock = lock
        self._home = home
        self._root = root
        self._idle_seconds = idle_seconds
        self._ended = threading.Event()
        self._busy: set[str] = set()
        self._active = time.monotonic()
        self._queue: Queue | None = None

    def serve(self, queue: Queue) -> None:
        """Runs Huey's consumers until there is nothing left to do."""
        self._queue = queue
        remove_stale(self._root)
        self._wait_for_orphans()
        sweep(self._root, queue)
        consumers = [
            huey.create_consumer(workers=1, periodic=False, initial_delay=0.1, max_delay=1.0, scheduler_interval=60)
            for huey in queue.hueys.values()
        ]
        for consumer in consumers:
            consumer.start()
        for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
            signal.signal(number, self._on_signal)
        self._active = time.monotonic()
        while not self._ended.wait(_LOOK_SECONDS):
            self._look_around(queue, consumers)
        for consumer in consumers:
            consumer.stop()

    def run(self, id: str, ticket: int) -> None:
        """Works on one job in a process of its own: what Huey calls with each message."""
        self._busy.add(id)
        try:
            folder = JobFolder(self._root, id)
            standing = folder.standing()
            if folder.path.is_dir() and standing.state == "queued" and standing.ticket == ticket:
                self._run(folder, ticket)
        finally:
            self._active = time.monotonic()
            self._busy.discard(id)

    def _run(self, folder: JobFolder, ticket: int) -> None:
        assert self._queue is not None  # noqa: S101 - for mypy; the consumer starts after it is set
        _log.info("Job %s begins.", folder.id)
        with folder.log.open("ab") as log:
            # It reads its standard input to notice the worker's end.
            process = subprocess.Popen(
                [sys.executable, "-m", "jobs", "run", folder.id, "--attached"],
                cwd=PROGRAM,
                env=environment(self._home),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
            )
            status = process.wait()
            if status < 0:
                log.write(f"{time.strftime('%H:%M:%S')}  The process was ended by signal {-status}.\n".encode())
        _log.info("Job %s ended with status %d.", folder.id, status)
        settle(folder, self._queue, ticket)
        time.sleep(min(folder.standing().crashes, 5))

    def _wait_for_orphans(self) -> None:
        deadline = time.monotonic() + _ORPHAN_SECONDS
        while any(folder.is_running() for folder in folders(self._root)) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)

    def _look_around(self, queue: Queue, consumers: Sequence[Any]) -> None:
        try:
            for consumer in consumers:
                consumer.check_worker_health()
            sweep(self._root, queue, self._busy)
            if not self._busy and time.monotonic() - self._active >= self._idle_seconds:
                self._end_if_idle(consumers)
        except PeftArenaError as fault:  # a full disk, say: what waits goes on waiting
            _log.warning("%s", fault)

    def _end_if_idle(self, consumers: Sequence[Any]) -> None:
        """Whoever adds a job does so under the same lock, and then finds no worker and starts the next one."""
        with changing(self._root):
            if not anything_to_do(self._root):
                for consumer in consumers:
                    consumer.stop(graceful=True)
                self._lock.close()
                self._ended.set()

    def _on_signal(self, number: int, _frame: Any) -> None:
        _log.info("Ended by signal %d.", number)
        self._ended.set()
