"""ZeroGPU: generation where a GPU is available for seconds at a time, in a process forked for each call.

How ZeroGPU works (package `spaces` 0.51.3, which only such Spaces have): a function decorated by `spaces.GPU` runs in a
forked process in which torch sees a real GPU; the parent process has none. Tensors that were moved to "cuda" before the
app was launched are moved to the GPU in each such process. Threads do not survive a fork, and the emulation of CUDA in
the parent process works in its main thread only. Therefore:

- `import_spaces` is called first, in the main thread. Still there and before the app is launched,
  `load_base_for_gpu` loads the base on the CPU, where bitsandbytes also quantizes it, and moves it to "cuda" (loading
  directly onto "cuda" reads files in other threads, which the emulation does not cover), and `gpu_function` decorates
  the generating function;
- the parent process selects examples, builds prompts and checks adapters, which takes no GPU time;
- the forked process only generates, with adapters that it loads itself and keeps as long as it lives.

Tested with a stand-in for `spaces` that forks, on a tiny base without a GPU, and by loading and moving the embedded
base, unquantized and NF4, under the emulation of the real package. Not tested on ZeroGPU itself.
"""

from __future__ import annotations

import contextvars
import importlib
import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from threading import Event
from typing import Any, Literal

from adapters.store import AdapterFolder, Store
from adapters.weights import WEIGHTS_NAME
from common.files import ProgressFn
from common.format import quote_untrusted
from errors import BusyError, PromptOrTuneError
from models.loader import LoadedBase, load_base
from models.resources import single_thread
from models.source import BaseIdentity
from serve.backends.local.backend import LocalBackend
from serve.engine.config import EngineConfig, EngineStatus, Metrics, Outcome
from serve.engine.input_processor import PreparedRequest
from serve.engine.llm_engine import LLMEngine
from serve.engine.output_stream import OutputQueue, OutputStream
from serve.types import Batch, Candidate, PartialOutput, Request, RequestOutput, Row, RowOutput, SamplingParams
from tasks.extract import extract_code
from tasks.methods import ExamplePools
from tasks.prompt import Message

_GPU_LOST_MESSAGE = "The GPU time ended before this answer was complete: try again, with fewer tokens or fewer methods."
_log = logging.getLogger(__name__)


class PromptOnlyBackend:
    """Implements the parts of Backend (serve/types.py) that the parent process needs; it does not generate.

    Adapters are only recorded here: the forked process loads them.
    """

    def __init__(self, backend: LocalBackend) -> None:
        self._backend = backend
        self._bytes: dict[str, int] = {}

    @property
    def base(self) -> BaseIdentity:
        """The identity of the loaded base."""
        return self._backend.base

    def apply_chat_template(self, messages: Sequence[Message]) -> str:
        """Render `messages` with the base's chat template."""
        return self._backend.apply_chat_template(messages)

    def count_tokens(self, text: str) -> int:
        """Return the number of tokens of `text`."""
        return self._backend.count_tokens(text)

    def load_adapter(self, folder: AdapterFolder) -> None:
        """Record the size of a checked adapter."""
        self._bytes[folder.name] = (folder.path / WEIGHTS_NAME).stat().st_size

    def unload_adapter(self, name: str) -> None:
        """Remove the adapter's record."""
        self._bytes.pop(name, None)

    def adapter_bytes(self, name: str) -> int:
        """Return the size of the adapter's file."""
        return self._bytes[name]

    def open_batch(self, mode: Literal["step", "beam"]) -> Batch:
        """Raise NotImplementedError: this process does not generate."""
        raise NotImplementedError(f"Batches ({mode}) run in the GPU process: see serve/engine/zero_gpu.py.")

    def generate(
        self, rows: Sequence[Row], sampling_params: SamplingParams, cancel: Event
    ) -> Iterator[PartialOutput | RowOutput]:
        """Raise NotImplementedError: this process does not generate."""
        raise NotImplementedError(f"{len(rows)} rows need the GPU process: see serve/engine/zero_gpu.py.")


# The longest duration of a call; ZeroGPU ends it then. Visitors without login have about two minutes a day.
MAX_GPU_SECONDS = 120
_START_SECONDS = 10.0  # moving the base to the GPU and loading adapters
_SECONDS_PER_TOKEN = 0.05
_FLUSH_SECONDS = 0.05  # how often events are sent to the parent process
_MAX_LOADED_ADAPTERS = 16


@dataclass(frozen=True)
class GpuTask:
    """Rows for one batch with the same sampling parameters, and the folders of their adapters."""

    rows: tuple[Row, ...]
    adapters: tuple[AdapterFolder, ...]
    decoding: SamplingParams


@dataclass(frozen=True)
class GpuTaskFailure:
    """The message of a PromptOrTuneError in the forked process: ZeroGPU returns only the class name of exceptions."""

    message: str


GpuEvent = PartialOutput | RowOutput | GpuTaskFailure
GenerateFn = Callable[[GpuTask], Generator[Sequence[GpuEvent]]]


def import_spaces() -> Any:
    """Import the package `spaces`, which must happen before CUDA is used; raises PromptOrTuneError if it is missing."""
    try:
        return importlib.import_module("spaces")
    except ImportError as error:
        raise PromptOrTuneError(
            "This Space has ZeroGPU and no package 'spaces': choose the Gradio SDK, which includes it."
        ) from error


def load_base_for_gpu(
    base: str, quantization: str, report: ProgressFn, trust_remote_code: bool = False, device: str = "cuda"
) -> LoadedBase:
    """Load the base for the GPU processes; call it in the main thread, after `import_spaces` and before the launch."""
    loaded = load_base(base, quantization, "cpu", report, trust_remote_code)
    # Any, because the annotation of PreTrainedModel.to does not accept a device name.
    model: Any = loaded.model
    return LoadedBase(model.to(device), loaded.tokenizer, replace(loaded.identity, device=device))


def gpu_function(backend: LocalBackend, spaces: Any) -> GenerateFn:
    """Return the function that generates on a GPU; call it before the launch, which needs to find such a function."""
    loaded_digests: dict[str, str] = {}  # in the forked process: name -> digest of each loaded adapter

    def generate(task: GpuTask) -> Generator[Sequence[GpuEvent]]:
        # OpenMP's thread pools do not survive a fork, and next to a GPU they are not needed.
        with single_thread():
            try:
                _load_adapters(backend, task.adapters, loaded_digests)
            except PromptOrTuneError as error:
                yield (GpuTaskFailure(str(error)),)
                return
            events: list[GpuEvent] = []
            flushed_at = time.monotonic()
            for event in backend.generate(task.rows, task.decoding, Event()):
                events.append(event)
                if isinstance(event, RowOutput) or time.monotonic() - flushed_at >= _FLUSH_SECONDS:
                    yield tuple(events)
                    events, flushed_at = [], time.monotonic()
            if events:
                yield tuple(events)

    gpu_generate: GenerateFn = spaces.GPU(generate, duration=gpu_seconds)
    return gpu_generate


def gpu_seconds(task: GpuTask) -> int:
    """Return the requested duration of a call: shorter calls start earlier in ZeroGPU's queue."""
    cost_factor = 2 if task.decoding.mode == "beam" else 1
    return min(MAX_GPU_SECONDS, round(_START_SECONDS + cost_factor * _SECONDS_PER_TOKEN * task.decoding.max_new_tokens))


def _load_adapters(backend: LocalBackend, folders: Sequence[AdapterFolder], loaded: dict[str, str]) -> None:
    """Load missing and changed adapters; unload the oldest unused ones beyond the limit."""
    for folder in folders:
        if loaded.get(folder.name) != folder.digest:
            backend.load_adapter(folder)
            loaded[folder.name] = folder.digest
    needed = {folder.name for folder in folders}
    for name in [name for name in loaded if name not in needed][: max(0, len(loaded) - _MAX_LOADED_ADAPTERS)]:
        backend.unload_adapter(name)
        del loaded[name]


@dataclass
class ZeroGpuRequest:
    """All requests of one call, cancelled when any of the `cancel_events` is set. Times are from time.monotonic."""

    requests: tuple[Request, ...]
    decoding: SamplingParams
    output_queue: OutputQueue
    metrics: Metrics
    cancel_events: tuple[Event, ...]
    arrival_time: float = field(default_factory=time.monotonic)

    def is_cancelled(self) -> bool:
        """Return whether the caller has cancelled or gone."""
        return any(stop.is_set() for stop in self.cancel_events)

    def run(self, generate: GenerateFn, prepared: Sequence[PreparedRequest], task: GpuTask) -> None:
        """Generate the prepared rows in one batch; each gets exactly one RequestOutput, also after any error."""
        rows = [_PendingRow(prepared_row) for prepared_row in prepared]
        error = _GPU_LOST_MESSAGE
        if not self.is_cancelled():
            try:
                with closing(generate(task)) as event_lists:
                    for events in event_lists:
                        refusal = next((event.message for event in events if isinstance(event, GpuTaskFailure)), None)
                        if refusal is not None:
                            error = refusal
                            break
                        self._on_events(rows, events)
                        if self.is_cancelled():
                            break
            except Exception as exception:  # noqa: BLE001 - `spaces` raises Gradio's errors and anything else
                error = self._error_message(exception)
        for row in rows:
            if not row.is_finished:
                self._fail_row(row, error)

    def put_output(self, output: RequestOutput, outcome: Outcome) -> None:
        """Put one row's output into the caller's queue."""
        tokens = sum(candidate.tokens for candidate in output.samples or output.candidates)
        self.metrics.observe_finish(outcome, time.monotonic() - self.arrival_time, tokens)
        self.output_queue.put([output])

    def _on_events(self, rows: Sequence[_PendingRow], events: Sequence[GpuEvent]) -> None:
        now = time.monotonic()
        for event in events:
            if isinstance(event, GpuTaskFailure):
                continue
            row = rows[event.index]
            if row.started_at is None:
                # The batch starts in the other process; its start is known only by the row's first event.
                row.started_at = now
                self.metrics.observe_start(now - self.arrival_time, row.prepared.output.prompt_tokens)
                self.metrics.observe_first_token(now - self.arrival_time)
            index = row.prepared.output.index
            if isinstance(event, RowOutput):
                self._finish_row(row, event)
            else:
                row.last_partial = event
                if self.output_queue.wants_partials:
                    self.output_queue.put([replace(event, index=index)])

    def _finish_row(self, row: _PendingRow, finished: RowOutput) -> None:
        row.is_finished = True
        base = row.base_output(self.arrival_time)
        output = replace(
            base,
            candidates=finished.candidates,
            samples=finished.samples,
            error=finished.error,
            exception=finished.exception,
            notes=(*base.notes, *finished.notes),
            seconds=finished.seconds,
        )
        self.put_output(output, "failed" if finished.error else "answered")

    def _fail_row(self, row: _PendingRow, error: str) -> None:
        """End an unfinished row with its partial text: as cancelled if the caller has gone, else with `error`."""
        row.is_finished = True
        seconds = 0.0 if row.started_at is None else time.monotonic() - row.started_at
        output = replace(row.base_output(self.arrival_time), candidates=row.candidates(), seconds=seconds)
        if self.is_cancelled():
            self.put_output(replace(output, cancelled=True), "cancelled")
        else:
            self.put_output(replace(output, error=error), "failed")

    def _error_message(self, error: Exception) -> str:
        """Return the message for a failed GPU call; ZeroGPU reports quotas in errors of Gradio, which are quoted."""
        if type(error).__module__.partition(".")[0] in ("gradio", "spaces"):
            title = quote_untrusted(str(getattr(error, "title", "") or "ZeroGPU"))
            message = quote_untrusted(" ".join(str(error).split()).strip(". '\""), 300)
            return f"{title} ({message}): try again later, or log in with Hugging Face for more time on GPUs."
        _log.error("A call for a GPU failed.", exc_info=error)
        self.metrics.count_failed_step()
        return f"The call for a GPU failed ({type(error).__name__}): try again."


@dataclass
class _PendingRow:
    """A prepared row and its progress."""

    prepared: PreparedRequest
    started_at: float | None = None
    last_partial: PartialOutput | None = None
    is_finished: bool = False

    def base_output(self, arrival_time: float) -> RequestOutput:
        """Return the row's output without its text."""
        now = time.monotonic() if self.started_at is None else self.started_at
        return replace(self.prepared.output, queued_seconds=now - arrival_time)

    def candidates(self) -> tuple[Candidate, ...]:
        """Return the partial text as a candidate; its log-probability is known only in the other process and is 0."""
        if self.last_partial is None or not self.last_partial.text:
            return ()
        style = self.prepared.row.style
        code = self.last_partial.text if style is None else extract_code(self.last_partial.text, style)
        return (Candidate(self.last_partial.text, code, 0.0, self.last_partial.tokens, finish="cancelled"),)


# The most calls that wait for a GPU at a time, because each waits in its own thread.
MAX_WAITING_CALLS = 16
_BUSY_SECONDS = 15.0


class ZeroGpuEngine(LLMEngine):
    """Answers each call in batches of its own, because GPU time is charged to the caller's quota.

    Of the engine core only the input thread is used, which prepares rows.
    """

    def __init__(
        self,
        backend: LocalBackend,
        store: Store,
        pools: ExamplePools,
        generate: GenerateFn,
        config: EngineConfig | None = None,
    ) -> None:

        super().__init__(PromptOnlyBackend(backend), store, pools, config=config)
        self._config = config or EngineConfig()
        self._generate = generate
        self._lock = threading.Lock()
        self._calls = 0
        self._rows = 0
        self._closed = False

    def submit(
        self,
        requests: Sequence[Request],
        sampling_params: SamplingParams,
        cancel: threading.Event | None = None,
        owner: str = "",
        notify: Callable[[], None] | None = None,
    ) -> OutputStream:
        """Implements LLMEngine.submit. `owner` is ignored: ZeroGPU schedules its visitors itself.

        `cancel` takes effect once the call has a GPU, not while it waits for one.
        """
        del owner
        return self._submit(requests, sampling_params, cancel, notify, partials=True)

    def answer(
        self,
        requests: Sequence[Request],
        sampling_params: SamplingParams,
        cancel: threading.Event | None = None,
        owner: str = "",
    ) -> list[RequestOutput]:
        """Implements LLMEngine.answer."""
        del owner
        stream = self._submit(requests, sampling_params, cancel, None, partials=False)
        outputs = [event for event in stream if isinstance(event, RequestOutput)]
        return sorted(outputs, key=lambda output: output.index)

    def status(self) -> EngineStatus:
        """Return the load of this process; how many others wait for ZeroGPU's GPUs is unknown."""
        with self._lock:
            if self._closed:
                return EngineStatus(0, self._rows, 0.0, "closed")
            seconds = _BUSY_SECONDS if self._calls >= MAX_WAITING_CALLS else 0.0
            return EngineStatus(0, self._rows, seconds, "generating" if self._rows else "idle")

    def close(self) -> None:
        """Refuse new calls; running ones continue to their end."""
        with self._lock:
            self._closed = True
        super().close()

    def _submit(
        self,
        requests: Sequence[Request],
        decoding: SamplingParams,
        cancel: threading.Event | None,
        notify: Callable[[], None] | None,
        *,
        partials: bool,
    ) -> OutputStream:
        self._admit(len(requests))
        output_queue = OutputQueue(len(requests), notify, partials)
        abandoned = threading.Event()
        gpu_request = ZeroGpuRequest(
            tuple(requests), decoding, output_queue, self.metrics, (cancel or abandoned, abandoned)
        )
        # ZeroGPU finds the user, and so the quota, in the context variables of the calling thread.
        context = contextvars.copy_context()
        threading.Thread(
            target=context.run, args=(self._run_request, gpu_request), name="zero-gpu", daemon=True
        ).start()
        return OutputStream(output_queue, lambda _: abandoned.set(), keep_alive=self)

    def _admit(self, rows: int) -> None:
        with self._lock:
            if self._closed:
                raise PromptOrTuneError("The engine was closed: start it again.")
            if self._calls >= MAX_WAITING_CALLS:
                self.metrics.count_busy_refusal()
                raise BusyError(
                    f"{self._calls} comparisons wait for a GPU: busy, about {_BUSY_SECONDS:.0f} s.", _BUSY_SECONDS
                )
            self._calls += 1
            self._rows += rows

    def _run_request(self, gpu_request: ZeroGpuRequest) -> None:
        prepared: list[PreparedRequest] = []
        try:
            prepared = self._prepare(gpu_request)
            for part in _split_batches(prepared, gpu_request.decoding, self._config):
                gpu_request.run(self._generate, part, _make_task(part, gpu_request.decoding))
        except Exception as error:
            # After a defect the caller must not wait for ever.
            self.metrics.count_failed_step()
            gpu_request.output_queue.fail(error)
            raise
        finally:
            for prepared_row in prepared:
                prepared_row.release()
            with self._lock:
                self._calls -= 1
                self._rows -= len(gpu_request.requests)

    def _prepare(self, gpu_request: ZeroGpuRequest) -> list[PreparedRequest]:
        """Prepare all requests; one that cannot be answered gets its RequestOutput, and the others continue."""
        prepared = []
        for index, request in enumerate(gpu_request.requests):
            input_processor = self._input_processor
            try:
                prepared.append(self._core.run(lambda: input_processor.prepare(index, request, gpu_request.decoding)))  # noqa: B023
            except PromptOrTuneError as error:
                queued_seconds = time.monotonic() - gpu_request.arrival_time
                gpu_request.put_output(
                    RequestOutput(index, request, error=str(error), exception=error, queued_seconds=queued_seconds),
                    "refused",
                )
        return prepared


def _split_batches(
    prepared: Sequence[PreparedRequest], decoding: SamplingParams, config: EngineConfig
) -> list[list[PreparedRequest]]:
    """Split prepared rows into batches within the limit of sequences; each is a GPU call of its own."""
    limit = config.max_num_beam_seqs if decoding.mode == "beam" else config.max_num_seqs
    size = max(1, limit // decoding.candidates)
    return [list(prepared[start : start + size]) for start in range(0, len(prepared), size)]


def _make_task(prepared: Sequence[PreparedRequest], decoding: SamplingParams) -> GpuTask:
    folders = {
        prepared_row.lease.folder.name: prepared_row.lease.folder
        for prepared_row in prepared
        if prepared_row.lease is not None
    }
    return GpuTask(tuple(prepared_row.row for prepared_row in prepared), tuple(folders.values()), decoding)
