"""Starts the worker, and finds out whether one lives."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from errors import PromptOrTuneError
from jobs.locks import is_locked
from serve.home import make_dir

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
        except OSError as fault:
            raise PromptOrTuneError(
                f"The process that works on jobs cannot be started ({fault.strerror or fault}): see {self._home}."
            ) from fault


def worker_environment(home: Path) -> dict[str, str]:
    """The environment of processes that work for this home."""
    return {**os.environ, "PEFT_ARENA_HOME": str(home), "PYTHONUNBUFFERED": "1"}
