"""Ends a job's process in good order: when a person asks for it, when its worker dies, when the system shuts down."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Literal

_POLL_SECONDS = 0.3
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)

# Who wants the process to end: a person, who stops the job, or the system, after which it goes on by itself.
StopReason = Literal["", "person", "system"]


class JobStoppedError(KeyboardInterrupt):
    """Raised in the main thread where no training is there to end its step. Libraries let it pass, as Ctrl-C."""


class StopWatcher:
    """Looks for a reason to end while the block lasts, and then stops the main thread once.

    While train trains, its own signal handlers stand: the step ends and a checkpoint is saved. Elsewhere JobStoppedError
    is raised. `attached`: the worker holds the other end of standard input, which ends with the worker however that
    dies; a Ctrl-C then is not meant for the job alone. `tick` is called every 0.3 seconds.
    """

    def __init__(self, stop_path: Path, attached: bool, on_poll: Callable[[], None]) -> None:
        self.stop_reason: StopReason = ""
        self._stop_path = stop_path
        self._attached = attached
        self._on_poll = on_poll
        self._closed = threading.Event()
        self._raised = False
        self._ignoring_stops = False
        self._previous_handlers: dict[int, Any] = {}

    def __enter__(self) -> StopWatcher:
        for number in _STOP_SIGNALS:
            self._previous_handlers[number] = signal.signal(number, self._on_signal)
        threading.Thread(target=self._poll, name="look-for-stop", daemon=True).start()
        if self._attached:
            threading.Thread(target=self._wait_for_worker_exit, name="look-for-worker", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def stop_requested(self) -> bool:
        """Whether the work is to end."""
        return bool(self.stop_reason)

    def ignore_stops(self) -> None:
        """From now on nothing is stopped: what is left takes moments."""
        self._ignoring_stops = True

    def _poll(self) -> None:
        while not self._closed.wait(_POLL_SECONDS):
            if self._stop_path.exists():
                self._request_stop("person")
            self._on_poll()

    def _wait_for_worker_exit(self) -> None:
        # Not through sys.stdin, whose lock a thread that waits would still hold when Python ends.
        with suppress(OSError):
            while os.read(0, 1024):
                pass
        self._request_stop("system")

    def _request_stop(self, reason: StopReason) -> None:
        if self.stop_reason or self._closed.is_set():
            return
        self.stop_reason = reason
        # To the main thread, so that a wait in it ends.
        if sys.platform == "win32":
            signal.raise_signal(signal.SIGTERM)
        else:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if not self.stop_reason:
            self.stop_reason = "person" if number == signal.SIGINT and not self._attached else "system"
        if not self._raised and not self._ignoring_stops:
            self._raised = True
            raise JobStoppedError
