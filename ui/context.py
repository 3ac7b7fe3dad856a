"""Context: the objects that all pages share (engine, admission queue, visitors, test bench), and CancelRegistry."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from common.files import cache_dir
from common.hub import HubAccess, visitor_hub_access
from evaluate.scoring import score_code
from jobs.job import ServingOptions
from serve.engine.llm_engine import EngineLoader
from ui.access.guard import VisitorRegistry
from ui.access.policy import Visitor
from ui.access.quota import AdmissionQueue
from ui.compare.comparison import Scorer
from ui.test_bench import TestBench

# Runs of several people share the engine's batch; benchmarks/load_test.py tells what another number gives.
MAX_CONCURRENT_RUNS = 12


# How long a run waits for the first reader of its events, and goes on without one.
READER_SECONDS = 5.0
LEFT_SECONDS = 2.0


class CancelRegistry:
    """Events that cancel the running comparisons of each session. Thread-safe.

    Where the server tells who reads the events of a session (`is_watched`), a run begins when somebody does, and is
    cancelled when nobody has done so for LEFT_SECONDS.
    """

    def __init__(self) -> None:
        self.is_watched = False
        self._changed = threading.Condition()
        self._events: dict[str, list[threading.Event]] = {}
        self._readers: Counter[str] = Counter()

    @contextmanager
    def register(self, session: str) -> Iterator[threading.Event]:
        """Yield the event of one run; `cancel` sets it, and so does leaving the block. It is set if nobody reads."""
        event = threading.Event()
        with self._changed:
            self._events.setdefault(session, []).append(event)
            if self.is_watched and not self._changed.wait_for(
                lambda: self._readers[session] or event.is_set(), READER_SECONDS
            ):
                event.set()
            self._remove_unread(session)
        try:
            yield event
        finally:
            event.set()
            with self._changed:
                self._events[session].remove(event)
                if not self._events[session]:
                    del self._events[session]

    def cancel(self, session: str) -> None:
        """Cancel all runs of the session."""
        with self._changed:
            for event in self._events.get(session, ()):
                event.set()
            self._changed.notify_all()

    @contextmanager
    def reading(self, session: str) -> Iterator[None]:
        """Note that the events of the session are read until the block ends, in the event loop of the server."""
        with self._changed:
            self._readers[session] += 1
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._readers[session] -= 1
                self._remove_unread(session)
            # A page that ends one stream of events may be about to begin the next.
            asyncio.get_running_loop().call_later(LEFT_SECONDS, self._cancel_unread, session)

    def _cancel_unread(self, session: str) -> None:
        with self._changed:
            unread = not self._readers.get(session)
        if unread:
            self.cancel(session)

    def _remove_unread(self, session: str) -> None:
        if not self._readers.get(session):
            self._readers.pop(session, None)


def hub_access(context: Context, visitor: Visitor, token: str | None = None) -> HubAccess:
    """Return with whose token and cache the Hub is asked for a visitor: their `token`, else none.

    The owner of the app may use the login of the machine, and its cache also with a token of their own.
    """
    if context.visitors.policy.may(visitor, "use the machine's Hub token"):
        return HubAccess(token)
    return visitor_hub_access(context.home.absolute(), token)


@dataclass(frozen=True)
class Context:
    """Shared objects of all pages. `home` holds jobs, uploads and votes.

    `persistent` is False where `home` is lost on a restart, as on a Space without storage.
    """

    engine_loader: EngineLoader
    data_dir: Path | None = None
    run_queue: AdmissionQueue = field(default_factory=lambda: AdmissionQueue(MAX_CONCURRENT_RUNS))
    cancel_registry: CancelRegistry = field(default_factory=CancelRegistry)
    score: Scorer = score_code
    test_bench: TestBench = field(default_factory=TestBench)
    visitors: VisitorRegistry = field(default_factory=VisitorRegistry)
    serving: ServingOptions = field(default_factory=ServingOptions)
    home: Path = field(default_factory=cache_dir)
    persistent: bool = True
