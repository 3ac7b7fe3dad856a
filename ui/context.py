"""What all pages share: the engine behind the page, the line in front of it, and the runs that can be stopped."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from evaluate.scoring import score_code
from jobs.job import Serving
from serve.engine_source import EngineSource
from serve.home import home
from ui.compare_run import Scorer
from ui.line import Line
from ui.testing import TestBench
from ui.visitors import Visitors

# Runs of several people share the engine's batch; benchmarks/visitors.py tells what another number gives.
RUNS_AT_ONCE = 12


class Stops:
    """For every session that runs, the event that stops it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._events: dict[str, list[threading.Event]] = {}

    @contextmanager
    def running(self, session: str) -> Iterator[threading.Event]:
        """An event for one run; set by `stop`, and when the block is left in whatever way."""
        event = threading.Event()
        with self._lock:
            self._events.setdefault(session, []).append(event)
        try:
            yield event
        finally:
            event.set()
            with self._lock:
                self._events[session].remove(event)
                if not self._events[session]:
                    del self._events[session]

    def stop(self, session: str) -> None:
        """Stops all runs of the session."""
        with self._lock:
            for event in self._events.get(session, ()):
                event.set()


@dataclass(frozen=True)
class Context:
    """One for the whole app; a page gets it when it is built. `home` holds what people made: jobs, uploads, votes.

    `lasting` says whether the home outlives a restart: a Space without storage starts from nothing each time.
    """

    source: EngineSource
    data_dir: Path | None = None
    line: Line = field(default_factory=lambda: Line(RUNS_AT_ONCE))
    stops: Stops = field(default_factory=Stops)
    score: Scorer = score_code
    bench: TestBench = field(default_factory=TestBench)
    visitors: Visitors = field(default_factory=Visitors)
    serving: Serving = field(default_factory=Serving)
    home: Path = field(default_factory=home)
    lasting: bool = True
