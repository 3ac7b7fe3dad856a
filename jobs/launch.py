"""Starts the worker, and finds out whether one lives."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from errors import PeftArenaError
from jobs.locks import is_held
from serve.home import make_folder

PROGRAM = Path(__file__).resolve().parents[1]
# A worker that ends at once, say of a full disk, is not started again and again.
_PAUSE_SECONDS = 5.0


def worker_lock(home: Path) -> Path:
    """Locked by the one worker of a home for as long as it lives."""
    return home / "jobs" / "worker.lock"


class Launcher:
    """Starts `python -m jobs work` in a session of its own, so that it outlives the program that asked for it."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._lock = threading.Lock()
        self._started = float("-inf")

    def start(self) -> None:
        """Starts a worker unless one lives; should two be started at once, the second one ends by itself."""
        if is_held(worker_lock(self._home)):
            return
        with self._lock:
            if time.monotonic() - self._started < _PAUSE_SECONDS:
                return
            self._started = time.monotonic()
        # Only a thread that waits for its end keeps the system from remembering an ended worker for ever.
        threading.Thread(target=self._launch().wait, name="worker-watch", daemon=True).start()

    def _launch(self) -> subprocess.Popen[bytes]:
        make_folder(self._home / "jobs")
        try:
            with (self._home / "jobs" / "worker.log").open("ab") as log:
                return subprocess.Popen(
                    [sys.executable, "-m", "jobs", "work"],
                    cwd=PROGRAM,
                    env=environment(self._home),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        except OSError as fault:
            raise PeftArenaError(
                f"The process that works on jobs cannot be started ({fault.strerror or fault}): see {self._home}."
            ) from fault


def environment(home: Path) -> dict[str, str]:
    """The environment of processes that work for this home."""
    return {**os.environ, "PEFT_ARENA_HOME": str(home), "PYTHONUNBUFFERED": "1"}
