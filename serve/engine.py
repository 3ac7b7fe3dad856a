"""From problems and methods to answers: many callers' rows in one batch, streamed row by row."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from threading import Event

from adapters.manifest import BaseIdentity
from adapters.store import Store
from serve.examples import Pools
from serve.method import Method, parse_method
from serve.metrics import Metrics
from serve.planning import Planner
from serve.residents import Residents
from serve.rows import Answer, Backend, Decoding, Partial, Request
from serve.scheduling.board import Board
from serve.scheduling.limits import EngineLimits, EngineStatus
from serve.scheduling.mailbox import Stream
from serve.scheduling.scheduler import Scheduler
from tasks.problem import Problem

__all__ = ["Engine", "EngineLimits", "EngineStatus", "Stream"]

_PROBE = Problem("probe", "probe")


class Engine:
    """Answers requests of many threads with one backend, all in one batch as far as the limits allow."""

    def __init__(self, backend: Backend, store: Store, pools: Pools, *, limits: EngineLimits | None = None) -> None:
        limits = limits or EngineLimits()
        board = Board(limits)
        self._backend = backend
        self._store = store
        self._pools = pools
        self._board = board
        self._residents = Residents(backend, store, max_count=limits.max_resident, max_bytes=limits.max_resident_bytes)
        self._metrics = Metrics(board.status, self._residents.status)
        self._planner = Planner(backend, store, pools, self._residents)
        self._scheduler = Scheduler(board, backend, self._planner.plan, self._metrics)
        # Its threads know nothing of the engine, so that one that nobody holds any more is freed with its model.
        weakref.finalize(self, board.close, abandon=False).atexit = False

    @property
    def base(self) -> BaseIdentity:
        """The base that answers."""
        return self._backend.base

    @property
    def store(self) -> Store:
        """Where adapters come from."""
        return self._store

    @property
    def residents(self) -> Residents:
        """The adapters in memory."""
        return self._residents

    @property
    def metrics(self) -> Metrics:
        """What the engine counts."""
        return self._metrics

    def adapters(self) -> list[str]:
        """Names of the adapters in the store; whether one fits this base shows when it is used."""
        return self._store.names()

    def methods(self) -> list[str]:
        """Suggested method names: zero-shot, ICL, RAG, then each adapter."""
        return ["zero-shot", "icl-8", "rag-8", *self.adapters()]

    def adapter_digest(self, name: str) -> str:
        """The digest of an adapter's weights; AdapterError where it may not be loaded."""
        return self._store.open(name, self.base).digest

    def stream(
        self, requests: Sequence[Request], decoding: Decoding, cancel: Event | None = None, owner: str = ""
    ) -> Iterator[Partial | Answer]:
        """All requests, together as far as they fit. Yields Partials as rows grow and exactly one Answer a request.

        A request that cannot be answered gets an Answer with `error`; the others go on. Of Partials that nobody has
        read the last of each row is kept. Setting `cancel`, or closing or dropping the iterator, stops within a step:
        rows in flight then answer with what they had said. `owner` is who asks, such as a key or a browser's session:
        owners share the batch evenly, and without one the call is an owner of its own. Raises BusyError at the call,
        with nothing begun, where too many rows wait already.
        """
        return self.submit(requests, decoding, cancel, owner)

    def submit(
        self,
        requests: Sequence[Request],
        decoding: Decoding,
        cancel: Event | None = None,
        owner: str = "",
        notify: Callable[[], None] | None = None,
    ) -> Stream:
        """`stream` for callers that must not block: `notify` is called, from a thread of the engine, when there is news
        for `Stream.ready`, and must return at once.
        """
        return self._scheduler.submit(requests, decoding, cancel, owner, notify, holds=self)

    def answer(
        self, requests: Sequence[Request], decoding: Decoding, cancel: Event | None = None, owner: str = ""
    ) -> list[Answer]:
        """`stream` to its end: one Answer a request, in their order."""
        stream = self._scheduler.submit(requests, decoding, cancel, owner, partials=False)
        answers = [event for event in stream if isinstance(event, Answer)]
        return sorted(answers, key=lambda answer: answer.index)

    def prompt_tokens(self, requests: Sequence[Request], decoding: Decoding) -> list[int]:
        """How many tokens each request's prompt has, examples and all; 0 where it cannot be answered."""
        planner = self._planner
        return self._scheduler.run(lambda: [planner.prompt_tokens(request, decoding) for request in requests])

    def count_tokens(self, text: str) -> int:
        """How many tokens the base reads for `text`."""
        return self._backend.count_tokens(text)

    def unavailable(self, method: Method) -> str | None:
        """Why this backend cannot do the method, in one sentence; None when it can."""
        return self._planner.unavailable(method)

    def status(self) -> EngineStatus:
        """The load at this moment."""
        return self._board.status()

    def warm_up(self, pool: str) -> None:
        """Loads the pool and its index, so that the first person to use RAG does not wait for them."""
        pools = self._pools
        self._scheduler.run(lambda: pools.choose(parse_method("rag-1", ()), _PROBE, pool))

    def close(self) -> None:
        """Takes nothing in any more. Rows that wait are given up, those that grow go on to their end."""
        self._scheduler.close()
        # Another engine's connections end; a backend in this process has nothing to close.
        close = getattr(self._backend, "close", None)
        if close is not None:
            close()
