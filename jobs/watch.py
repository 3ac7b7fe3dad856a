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
_SIGNALS = (signal.SIGINT, signal.SIGTERM)

# Who wants the process to end: a person, who stops the job, or the system, after which it goes on by itself.
Asked = Literal["", "person", "system"]


class StoppedError(KeyboardInterrupt):
    """Raised in the main thread where no training is there to end its step. Libraries let it pass, as Ctrl-C."""


class Watch:
    """Looks for a reason to end while the block lasts, and then stops the main thread once.

    While train trains, its own signal handlers stand: the step ends and a checkpoint is saved. Elsewhere StoppedError
    is raised. `attached`: the worker holds the other end of standard input, which ends with the worker however that
    dies; a Ctrl-C then is not meant for the job alone. `tick` is called every 0.3 seconds.
    """

    def __init__(self, stop: Path, attached: bool, tick: Callable[[], None]) -> None:
        self.asked: Asked = ""
        self._stop = stop
        self._attached = attached
        self._tick = tick
        self._over = threading.Event()
        self._told = False
        self._shielded = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Watch:
        for number in _SIGNALS:
            self._before[number] = signal.signal(number, self._on_signal)
        threading.Thread(target=self._look, name="look-for-stop", daemon=True).start()
        if self._attached:
            threading.Thread(target=self._wait_for_end_of_worker, name="look-for-worker", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def stopped(self) -> bool:
        """Whether the work is to end."""
        return bool(self.asked)

    def shield(self) -> None:
        """From now on nothing is stopped: what is left takes moments."""
        self._shielded = True

    def _look(self) -> None:
        while not self._over.wait(_POLL_SECONDS):
            if self._stop.exists():
                self._end("person")
            self._tick()

    def _wait_for_end_of_worker(self) -> None:
        # Not through sys.stdin, whose lock a thread that waits would still hold when Python ends.
        with suppress(OSError):
            while os.read(0, 1024):
                pass
        self._end("system")

    def _end(self, who: Asked) -> None:
        if self.asked or self._over.is_set():
            return
        self.asked = who
        # To the main thread, so that a wait in it ends.
        if sys.platform == "win32":
            signal.raise_signal(signal.SIGTERM)
        else:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if not self.asked:
            self.asked = "person" if number == signal.SIGINT and not self._attached else "system"
        if not self._told and not self._shielded:
            self._told = True
            raise StoppedError
