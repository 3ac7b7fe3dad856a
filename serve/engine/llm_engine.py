"""LLMEngine: submit, stream, answer; background loading.

From problems and methods to answers: many callers' rows in one batch, streamed row by row.

Where pages and the API get their engine from: both stand while the model is loaded behind them.
"""

from __future__ import annotations

import logging
import re
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from threading import Event
from typing import Literal

from adapters.store import Store
from errors import PromptOrTuneError
from models.identity import BaseIdentity
from serve.engine.adapter_cache import AdapterCache
from serve.engine.config import EngineConfig, EngineStatus
from serve.engine.engine_core import EngineCoreClient
from serve.engine.input_processor import InputProcessor
from serve.engine.metrics import Metrics
from serve.engine.output_stream import OutputStream
from serve.engine.scheduler import RequestQueue
from serve.types import Backend, PartialOutput, Request, RequestOutput, SamplingParams
from tasks.methods import Method, parse_method
from tasks.problem import Problem
from tasks.retrieval import ExamplePools

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


ProgressFn = Callable[[str], None]
_PERCENT = re.compile(r"(\d{1,3}(?:\.\d+)?)\s?%")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadState:
    """How far the loading is. `fraction` is 0 to 1 where the last line of progress names a percentage."""

    phase: Literal["loading", "ready", "failed"]
    message: str
    fraction: float | None = None


class EngineLoader:
    """Runs `build` once in a thread of its own and keeps its last line of progress, its engine or its failure."""

    def __init__(self, build: Callable[[ProgressFn], LLMEngine]) -> None:
        self._build = build
        self._lock = threading.Lock()
        self._finished = threading.Event()
        self._started = False
        self._state = LoadState("loading", "Loading the model")
        self._engine: LLMEngine | None = None

    def start(self) -> EngineLoader:
        """Begins to load, once; further calls do nothing."""
        with self._lock:
            if not self._started:
                self._started = True
                threading.Thread(target=self._load, name="load-model", daemon=True).start()
        return self

    def state(self) -> LoadState:
        return self._state

    def wait(self, seconds: float) -> LLMEngine | None:
        """The engine, or None when it is not ready within `seconds`; PromptOrTuneError when it will never be."""
        self.start()
        if not self._finished.wait(seconds):
            return None
        if self._engine is None:
            raise PromptOrTuneError(self._state.message)
        return self._engine

    def engine(self) -> LLMEngine:
        """The engine, however long it takes; PromptOrTuneError when loading failed."""
        while True:
            engine = self.wait(60)
            if engine is not None:
                return engine

    def _on_progress(self, message: str) -> None:
        percent = _PERCENT.search(message)
        fraction = min(float(percent[1]) / 100, 1.0) if percent else None
        self._state = LoadState("loading", message.strip() or self._state.message, fraction)

    def _load(self) -> None:
        try:
            self._engine = self._build(self._on_progress)
            self._state = LoadState("ready", "Ready", 1.0)
        except PromptOrTuneError as error:
            self._state = LoadState("failed", str(error))
        except Exception as error:  # noqa: BLE001 - whoever waits must hear of any failure; it is logged whole
            _log.exception("The model could not be loaded.")
            self._state = LoadState("failed", f"The model could not be loaded ({type(error).__name__}: {error}).")
        finally:
            self._finished.set()
