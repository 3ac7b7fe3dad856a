"""From problems and methods to answers: many callers' rows in one batch, streamed row by row."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from threading import Event

from adapters.manifest import BaseIdentity
from adapters.store import Store
from serve.examples import ExamplePools
from serve.method import Method, parse_method
from serve.metrics import Metrics
from serve.planning import InputProcessor
from serve.residents import AdapterCache
from serve.rows import Backend, PartialOutput, Request, RequestOutput, SamplingParams
from serve.scheduling.board import RequestQueue
from serve.scheduling.limits import EngineConfig, EngineStatus
from serve.scheduling.mailbox import OutputStream
from serve.scheduling.scheduler import EngineCoreClient
from tasks.problem import Problem

__all__ = ["EngineConfig", "EngineStatus", "LLMEngine", "OutputStream"]

_PROBE_PROBLEM = Problem("probe", "probe")


class LLMEngine:
    """Answers requests of many threads with one backend, all in one batch as far as the limits allow."""

    def __init__(
        self, backend: Backend, store: Store, pools: ExamplePools, *, config: EngineConfig | None = None
    ) -> None:
        config = config or EngineConfig()
        board = RequestQueue(config)
        self._backend = backend
        self._store = store
        self._pools = pools
        self._queue = board
        self._adapter_cache = AdapterCache(
            backend, store, max_count=config.max_loaded_adapters, max_bytes=config.max_loaded_adapter_bytes
        )
        self._metrics = Metrics(board.status, self._adapter_cache.status)
        self._input_processor = InputProcessor(backend, store, pools, self._adapter_cache)
        self._core = EngineCoreClient(board, backend, self._input_processor.prepare, self._metrics)
        # Its threads know nothing of the engine, so that one that nobody holds any more is freed with its model.
        weakref.finalize(self, board.close, abort_running=False).atexit = False

    @property
    def base(self) -> BaseIdentity:
        """The base that answers."""
        return self._backend.base

    @property
    def store(self) -> Store:
        """Where adapters come from."""
        return self._store

    @property
    def adapter_cache(self) -> AdapterCache:
        """The adapters in memory."""
        return self._adapter_cache

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
        self, requests: Sequence[Request], sampling_params: SamplingParams, cancel: Event | None = None, owner: str = ""
    ) -> Iterator[PartialOutput | RequestOutput]:
        """All requests, together as far as they fit. Yields Partials as rows grow and exactly one RequestOutput a request.

        A request that cannot be answered gets an RequestOutput with `error`; the others go on. Of Partials that nobody has
        read the last of each row is kept. Setting `cancel`, or closing or dropping the iterator, stops within a step:
        rows in flight then answer with what they had said. `owner` is who asks, such as a key or a browser's session:
        owners share the batch evenly, and without one the call is an owner of its own. Raises BusyError at the call,
        with nothing begun, where too many rows wait already.
        """
        return self.submit(requests, sampling_params, cancel, owner)

    def submit(
        self,
        requests: Sequence[Request],
        sampling_params: SamplingParams,
        cancel: Event | None = None,
        owner: str = "",
        notify: Callable[[], None] | None = None,
    ) -> OutputStream:
        """`stream` for callers that must not block: `notify` is called, from a thread of the engine, when there is news
        for `Stream.ready`, and must return at once.
        """
        return self._core.submit(requests, sampling_params, cancel, owner, notify, keep_alive=self)

    def answer(
        self, requests: Sequence[Request], sampling_params: SamplingParams, cancel: Event | None = None, owner: str = ""
    ) -> list[RequestOutput]:
        """`stream` to its end: one RequestOutput a request, in their order."""
        stream = self._core.submit(requests, sampling_params, cancel, owner, partials=False)
        answers = [event for event in stream if isinstance(event, RequestOutput)]
        return sorted(answers, key=lambda answer: answer.index)

    def count_prompt_tokens(self, requests: Sequence[Request], sampling_params: SamplingParams) -> list[int]:
        """How many tokens each request's prompt has, examples and all; 0 where it cannot be answered."""
        planner = self._input_processor
        return self._core.run(lambda: [planner.count_prompt_tokens(request, sampling_params) for request in requests])

    def count_tokens(self, text: str) -> int:
        """How many tokens the base reads for `text`."""
        return self._backend.count_tokens(text)

    def unsupported_reason(self, method: Method) -> str | None:
        """Why this backend cannot do the method, in one sentence; None when it can."""
        return self._input_processor.unsupported_reason(method)

    def status(self) -> EngineStatus:
        """The load at this moment."""
        return self._queue.status()

    def warm_up(self, pool: str) -> None:
        """Loads the pool and its index, so that the first person to use RAG does not wait for them."""
        pools = self._pools
        self._core.run(lambda: pools.select(parse_method("rag-1", ()), _PROBE_PROBLEM, pool))

    def close(self) -> None:
        """Takes nothing in any more. Rows that wait are given up, those that grow go on to their end."""
        self._core.close()
        # Another engine's connections end; a backend in this process has nothing to close.
        close = getattr(self._backend, "close", None)
        if close is not None:
            close()
