"""Two threads between many callers and one model: one makes rows ready, the other runs the model.

Only one thread may run the model (torch keeps a pool of threads for every thread that calls it). Meanwhile the other
one chooses examples, writes prompts and loads adapters, so that nobody who is being answered waits for a disk.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable, Sequence
from itertools import count
from typing import TypeVar
from weakref import WeakSet

from errors import BusyError
from serve.metrics import Metrics
from serve.planning import Plan
from serve.rows import Backend, Decoding, Request
from serve.scheduling.board import Board
from serve.scheduling.jobs import Call
from serve.scheduling.mailbox import Mailbox, Stream
from serve.scheduling.preparer import Preparer
from serve.scheduling.worker import Worker

_CLOSE_SECONDS = 2.0
T = TypeVar("T")


class Scheduler:
    """Answers calls from any thread. `plan` makes a request ready and may take its time."""

    def __init__(
        self, board: Board, backend: Backend, plan: Callable[[int, Request, Decoding], Plan], metrics: Metrics
    ) -> None:
        self._board = board
        self._metrics = metrics
        self._strangers = count()
        self._preparer = Preparer(board, plan, metrics)
        self._threads = (self._preparer.thread, Worker(board, backend, metrics).thread)
        for thread in self._threads:
            thread.start()
            _THREADS.add(thread)
        _RUNNING.add(self)

    def submit(
        self,
        requests: Sequence[Request],
        decoding: Decoding,
        cancel: threading.Event | None = None,
        owner: str = "",
        notify: Callable[[], None] | None = None,
        *,
        partials: bool = True,
        holds: object = None,
    ) -> Stream:
        """Queues a call; BusyError, with nothing queued, where too many rows wait already."""
        mailbox = Mailbox(len(requests), notify, partials)
        whose = owner or next(self._strangers)
        call = Call(requests, decoding, whose, cancel or threading.Event(), mailbox, time.monotonic())
        try:
            self._board.enter(call)
        except BusyError:
            self._metrics.busy()
            raise
        board = self._board
        return Stream(mailbox, lambda at_once: board.stop(call, at_once), holds)

    def run(self, work: Callable[[], T]) -> T:
        """Calls `work` where rows are made ready, and waits for what it gives."""
        return self._preparer.run(work)

    def close(self, abandon: bool = False) -> None:
        """Ends the threads once the rows that grow have their answers, or at once where all is to be abandoned.

        Rows that wait are given up. Waits a little for the threads, so that their model can be freed.
        """
        self._board.close(abandon)
        if not self._board.calls or abandon:
            for thread in self._threads:
                if thread is not threading.current_thread():
                    thread.join(_CLOSE_SECONDS)


_RUNNING: WeakSet[Scheduler] = WeakSet()
# Those of schedulers that nobody holds any more too: they are ending, and may not have ended yet.
_THREADS: WeakSet[threading.Thread] = WeakSet()


@atexit.register
def _close_all() -> None:
    """A thread within torch when the interpreter is torn down would crash it."""
    for scheduler in list(_RUNNING):
        scheduler.close(abandon=True)
    for thread in list(_THREADS):
        thread.join(_CLOSE_SECONDS)
