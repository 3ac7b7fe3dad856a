"""LLMEngine: answers requests of many threads in one batch; EngineLoader loads an engine in the background."""

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
from errors import AdapterError, PromptOrTuneError
from models.source import BaseIdentity
from serve.engine.adapter_cache import AdapterCache
from serve.engine.config import EngineConfig, EngineStatus, Metrics
from serve.engine.engine_core import EngineCoreClient
from serve.engine.input_processor import InputProcessor
from serve.engine.output_stream import OutputStream
from serve.engine.scheduler import RequestQueue
from serve.types import Backend, PartialOutput, Request, RequestOutput, SamplingParams
from tasks.methods import ExamplePools, Method, parse_method
from tasks.problem import Problem

__all__ = ["EngineConfig", "EngineStatus", "LLMEngine", "OutputStream"]

_PROBE_PROBLEM = Problem("probe", "probe")


class LLMEngine:
    """Answers the requests of many threads with one backend, batched together as far as the limits allow."""

    def __init__(
        self, backend: Backend, store: Store, pools: ExamplePools, *, config: EngineConfig | None = None
    ) -> None:
        config = config or EngineConfig()
        queue = RequestQueue(config)
        self._backend = backend
        self._store = store
        self._pools = pools
        self._queue = queue
        self._adapter_cache = AdapterCache(
            backend, store, max_count=config.max_loaded_adapters, max_bytes=config.max_loaded_adapter_bytes
        )
        self._metrics = Metrics(queue.status, self._adapter_cache.status)
        self._input_processor = InputProcessor(backend, store, pools, self._adapter_cache)
        self._core = EngineCoreClient(queue, backend, self._input_processor.prepare, self._metrics)
        # The threads refer to the queue and the backend, not to the engine: an engine that is not referenced any more
        # is collected, which closes the queue, ends the threads and frees the model. At exit engine_core does this.
        weakref.finalize(self, queue.close, abort_running=False).atexit = False

    @property
    def base(self) -> BaseIdentity:
        """Identity of the base model."""
        return self._backend.base

    @property
    def store(self) -> Store:
        """Store of the adapters on disk."""
        return self._store

    @property
    def adapter_cache(self) -> AdapterCache:
        """Cache of the adapters in memory."""
        return self._adapter_cache

    @property
    def metrics(self) -> Metrics:
        """Prometheus metrics."""
        return self._metrics

    def adapters(self) -> list[str]:
        """Return the names of all adapters in the store, without checking that they fit the base."""
        return self._store.names()

    def methods(self) -> list[str]:
        """Return suggested method names: zero-shot, ICL, RAG, then each adapter."""
        return ["zero-shot", "icl-8", "rag-8", *self.adapters()]

    def adapter_digest(self, name: str) -> str:
        """Return the digest of the adapter's weights; raises AdapterError if it must not be loaded."""
        return self._store.open(name, self.base).digest

    def stream(
        self, requests: Sequence[Request], sampling_params: SamplingParams, cancel: Event | None = None, owner: str = ""
    ) -> Iterator[PartialOutput | RequestOutput]:
        """Yield PartialOutputs while the requests are generated, and exactly one RequestOutput per request.

        A request that cannot be answered gets a RequestOutput with `error`; the others continue. Of unread
        PartialOutputs only the newest per sample is kept. Setting `cancel`, or closing or dropping the iterator, stops
        within one step; after `cancel`, running rows return the text generated so far. `owner` identifies the caller,
        for example an API key or browser session: owners share the batch evenly, and a call without one counts as an
        owner of its own. Raises BusyError at the call, with nothing queued, if too many rows wait already.
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
        """As `stream`, for callers that must not block.

        `notify` is called in a thread of the engine whenever `OutputStream.get_nowait` has something to return; it
        must return without blocking.
        """
        return self._core.submit(requests, sampling_params, cancel, owner, notify, keep_alive=self)

    def answer(
        self, requests: Sequence[Request], sampling_params: SamplingParams, cancel: Event | None = None, owner: str = ""
    ) -> list[RequestOutput]:
        """Generate all requests and return one RequestOutput per request, in their order."""
        stream = self._core.submit(requests, sampling_params, cancel, owner, partials=False)
        outputs = [event for event in stream if isinstance(event, RequestOutput)]
        return sorted(outputs, key=lambda output: output.index)

    def count_prompt_tokens(self, requests: Sequence[Request], sampling_params: SamplingParams) -> list[int]:
        """Return the prompt tokens of each request, examples included; 0 for one that cannot be answered."""
        processor = self._input_processor
        return self._core.run(lambda: [processor.count_prompt_tokens(request, sampling_params) for request in requests])

    def count_tokens(self, text: str) -> int:
        """Return the number of tokens in `text`."""
        return self._backend.count_tokens(text)

    def unsupported_reason(self, method: Method) -> str | None:
        """Return a message why this backend cannot run the method; None if it can."""
        return self._input_processor.unsupported_reason(method)

    def require_method(self, method: Method) -> None:
        """Raise PromptOrTuneError if this engine cannot answer with the method; its adapter is loaded to find out.

        An EngineError or BusyError says nothing about the method: the server failed to load the adapter, or there is
        no memory for it now.
        """
        reason = self.unsupported_reason(method)
        if reason is not None:
            raise AdapterError(reason)
        if method.adapter is not None:
            self._adapter_cache.acquire(method.adapter).release()

    @property
    def has_independent_rows(self) -> bool:
        """Whether the other rows of a batch change nothing in an answer: a server decides itself what it batches."""
        return bool(getattr(self._backend, "has_independent_rows", False))

    def status(self) -> EngineStatus:
        """Return the current load."""
        return self._queue.status()

    def warm_up(self, pool: str) -> None:
        """Load the example pool and its index, so that the first RAG request does not have to."""
        pools = self._pools
        self._core.run(lambda: pools.select(parse_method("rag-1", ()), _PROBE_PROBLEM, pool))

    def close(self) -> None:
        """Refuse further calls and cancel waiting rows; running rows are generated to their end."""
        self._core.close()
        # Only a remote backend has something to close: its connections.
        close = getattr(self._backend, "close", None)
        if close is not None:
            close()


ProgressFn = Callable[[str], None]
_PERCENT = re.compile(r"(\d{1,3}(?:\.\d+)?)\s?%")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadState:
    """Progress of loading. `fraction` is 0 to 1 if the last progress line contains a percentage, else None."""

    phase: Literal["loading", "ready", "failed"]
    message: str
    fraction: float | None = None


class EngineLoader:
    """Runs `build` once in a background thread, so that the pages and the API can start before the model is loaded.

    Keeps the last progress line and then the engine or the error.
    """

    def __init__(self, build: Callable[[ProgressFn], LLMEngine]) -> None:
        self._build = build
        self._lock = threading.Lock()
        self._finished = threading.Event()
        self._started = False
        self._state = LoadState("loading", "Loading the model")
        self._engine: LLMEngine | None = None

    def start(self) -> EngineLoader:
        """Start loading; further calls have no effect."""
        with self._lock:
            if not self._started:
                self._started = True
                threading.Thread(target=self._load, name="load-model", daemon=True).start()
        return self

    def state(self) -> LoadState:
        """Return the current progress."""
        return self._state

    def wait(self, seconds: float) -> LLMEngine | None:
        """Return the engine, or None if not loaded within `seconds`; raises PromptOrTuneError if loading failed."""
        self.start()
        if not self._finished.wait(seconds):
            return None
        if self._engine is None:
            raise PromptOrTuneError(self._state.message)
        return self._engine

    def engine(self) -> LLMEngine:
        """Return the engine once it is loaded; raises PromptOrTuneError if loading failed."""
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
        except Exception as error:  # noqa: BLE001 - `wait` must report any failure; the log has the traceback
            _log.exception("The model could not be loaded.")
            self._state = LoadState("failed", f"The model could not be loaded ({type(error).__name__}: {error}).")
        finally:
            self._finished.set()
