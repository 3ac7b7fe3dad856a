"""The engine whose rows grow on a GPU that is lent for each call."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Sequence

from adapters.store import Store
from errors import BusyError, PeftArenaError
from serve.backends.local.backend import LocalBackend
from serve.engine import Engine
from serve.examples import Pools
from serve.planning import Plan
from serve.rows import Answer, Decoding, Request
from serve.scheduling.limits import EngineLimits, EngineStatus
from serve.scheduling.mailbox import Mailbox, Stream
from serve.zero.flight import Flight
from serve.zero.lending import Generate, Work

# More calls than these wait for a GPU at most; each waits in a thread of its own.
MOST_CALLS = 16
_BUSY_SECONDS = 15.0


class ZeroEngine(Engine):
    """Answers each call in one batch on a lent GPU; rows of different callers share none, as each has a GPU's quota.

    Of the usual scheduler only the thread that makes rows ready is used.
    """

    def __init__(
        self,
        backend: LocalBackend,
        store: Store,
        pools: Pools,
        generate: Generate,
        limits: EngineLimits | None = None,
    ) -> None:
        from serve.zero.front import Front

        super().__init__(Front(backend), store, pools, limits=limits)
        self._limits = limits or EngineLimits()
        self._generate = generate
        self._lock = threading.Lock()
        self._calls = 0
        self._rows = 0
        self._closed = False

    def submit(
        self,
        requests: Sequence[Request],
        decoding: Decoding,
        cancel: threading.Event | None = None,
        owner: str = "",
        notify: Callable[[], None] | None = None,
    ) -> Stream:
        """As Engine.submit. `owner` does not matter: ZeroGPU itself shares its GPUs among its visitors.

        Setting `cancel` is heard once a GPU was lent; while the call waits for one it goes on waiting.
        """
        del owner
        return self._submit(requests, decoding, cancel, notify, partials=True)

    def answer(
        self,
        requests: Sequence[Request],
        decoding: Decoding,
        cancel: threading.Event | None = None,
        owner: str = "",
    ) -> list[Answer]:
        """As Engine.answer."""
        del owner
        stream = self._submit(requests, decoding, cancel, None, partials=False)
        answers = [event for event in stream if isinstance(event, Answer)]
        return sorted(answers, key=lambda answer: answer.index)

    def status(self) -> EngineStatus:
        """The load at this moment, as far as this process sees it: not who else waits for ZeroGPU's GPUs."""
        with self._lock:
            if self._closed:
                return EngineStatus(0, self._rows, 0.0, "closed")
            seconds = _BUSY_SECONDS if self._calls >= MOST_CALLS else 0.0
            return EngineStatus(0, self._rows, seconds, "generating" if self._rows else "idle")

    def close(self) -> None:
        """Takes nothing in any more; calls that have a GPU go on to their end."""
        with self._lock:
            self._closed = True
        super().close()

    def _submit(
        self,
        requests: Sequence[Request],
        decoding: Decoding,
        cancel: threading.Event | None,
        notify: Callable[[], None] | None,
        *,
        partials: bool,
    ) -> Stream:
        self._enter(len(requests))
        mailbox = Mailbox(len(requests), notify, partials)
        deserted = threading.Event()
        flight = Flight(tuple(requests), decoding, mailbox, self.metrics, (cancel or deserted, deserted))
        # ZeroGPU finds in the caller's context who asks, and whose quota this is.
        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(self._fly, flight), name="zero-gpu", daemon=True).start()
        return Stream(mailbox, lambda _: deserted.set(), holds=self)

    def _enter(self, rows: int) -> None:
        with self._lock:
            if self._closed:
                raise PeftArenaError("The engine was closed: start it anew.")
            if self._calls >= MOST_CALLS:
                self.metrics.busy()
                raise BusyError(
                    f"{self._calls} comparisons wait for a GPU: busy, about {_BUSY_SECONDS:.0f} s.", _BUSY_SECONDS
                )
            self._calls += 1
            self._rows += rows

    def _fly(self, flight: Flight) -> None:
        plans: list[Plan] = []
        try:
            plans = self._plans(flight)
            for part in _parts(plans, flight.decoding, self._limits):
                flight.run(self._generate, part, _work(part, flight.decoding))
        except Exception as fault:
            # A defect of ours must not leave the caller waiting for ever.
            self.metrics.fault()
            flight.mailbox.fail(fault)
            raise
        finally:
            for plan in plans:
                plan.release()
            with self._lock:
                self._calls -= 1
                self._rows -= len(flight.requests)

    def _plans(self, flight: Flight) -> list[Plan]:
        """Every request made ready; one that cannot be answered has its Answer, and the others go on."""
        plans = []
        for index, request in enumerate(flight.requests):
            planner = self._planner
            try:
                plans.append(self._scheduler.run(lambda: planner.plan(index, request, flight.decoding)))  # noqa: B023
            except PeftArenaError as fault:
                waited = time.monotonic() - flight.asked
                flight.end(Answer(index, request, error=str(fault), fault=fault, queued_seconds=waited), "refused")
        return plans


def _parts(plans: Sequence[Plan], decoding: Decoding, limits: EngineLimits) -> list[list[Plan]]:
    """The plans in batches of at most so many lines, each a call of its own for a GPU."""
    most = limits.max_beam_lines if decoding.mode == "beam" else limits.max_lines
    size = max(1, most // decoding.candidates)
    return [list(plans[start : start + size]) for start in range(0, len(plans), size)]


def _work(plans: Sequence[Plan], decoding: Decoding) -> Work:
    worn = {plan.lease.folder.name: plan.lease.folder for plan in plans if plan.lease is not None}
    return Work(tuple(plan.row for plan in plans), tuple(worn.values()), decoding)
