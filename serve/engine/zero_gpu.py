"""The engine whose rows grow on a GPU that is lent for each call.

One caller's rows on their way to a lent GPU and back.
"""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from threading import Event

from adapters.store import Store
from common.format import quote_untrusted
from errors import BusyError, PromptOrTuneError
from serve.backends.local.backend import LocalBackend
from serve.backends.zero_gpu import GenerateFn, GpuEvent, GpuTask, GpuTaskFailure
from serve.engine.config import EngineConfig, EngineStatus
from serve.engine.input_processor import PreparedRequest
from serve.engine.llm_engine import LLMEngine
from serve.engine.metrics import Metrics, Outcome
from serve.engine.output_stream import OutputQueue, OutputStream
from serve.types import Candidate, PartialOutput, Request, RequestOutput, RowOutput, SamplingParams
from tasks.extract import extract_code
from tasks.retrieval import ExamplePools

_GPU_LOST_MESSAGE = (
    "The GPU was taken away before this answer was whole: try again, with fewer tokens or fewer methods."
)
_log = logging.getLogger(__name__)


@dataclass
class ZeroGpuRequest:
    """What one caller asked for at once. It is stopped when any of the `stops` is set. Times are of time.monotonic."""

    requests: tuple[Request, ...]
    decoding: SamplingParams
    output_queue: OutputQueue
    metrics: Metrics
    cancel_events: tuple[Event, ...]
    arrival_time: float = field(default_factory=time.monotonic)

    def is_cancelled(self) -> bool:
        """Whether nobody waits for the rest."""
        return any(stop.is_set() for stop in self.cancel_events)

    def run(self, generate: GenerateFn, prepared: Sequence[PreparedRequest], task: GpuTask) -> None:
        """Has the rows of `plans` generated in one batch; each gets exactly one RequestOutput, whatever happens."""
        rows = [_PendingRow(plan) for plan in prepared]
        error = _GPU_LOST_MESSAGE
        if not self.is_cancelled():
            try:
                with closing(generate(task)) as news:
                    for part in news:
                        refused = next((each.message for each in part if isinstance(each, GpuTaskFailure)), None)
                        if refused is not None:
                            error = refused
                            break
                        self._on_events(rows, part)
                        if self.is_cancelled():
                            break
            except Exception as fault:  # noqa: BLE001 - `spaces` raises Gradio's errors and anything else
                error = self._error_message(fault)
        for row in rows:
            if not row.is_finished:
                self._fail_row(row, error)

    def put_output(self, answer: RequestOutput, outcome: Outcome) -> None:
        """Gives the caller one row's answer."""
        tokens = sum(each.tokens for each in answer.samples or answer.candidates)
        self.metrics.observe_finish(outcome, time.monotonic() - self.arrival_time, tokens)
        self.output_queue.put([answer])

    def _on_events(self, rows: Sequence[_PendingRow], events: Sequence[GpuEvent]) -> None:
        now = time.monotonic()
        for event in events:
            if isinstance(event, GpuTaskFailure):
                continue
            row = rows[event.index]
            if row.started_at is None:
                # The row began when its batch did, which only its first word tells.
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
        known = row.base_output(self.arrival_time)
        answer = replace(
            known,
            candidates=finished.candidates,
            samples=finished.samples,
            error=finished.error,
            notes=(*known.notes, *finished.notes),
            seconds=finished.seconds,
        )
        self.put_output(answer, "failed" if finished.error else "answered")

    def _fail_row(self, row: _PendingRow, error: str) -> None:
        """A row that has no end keeps what it has said; where the caller left that is all there is to say."""
        row.is_finished = True
        seconds = 0.0 if row.started_at is None else time.monotonic() - row.started_at
        answer = replace(row.base_output(self.arrival_time), candidates=row.candidates(), seconds=seconds)
        if self.is_cancelled():
            self.put_output(replace(answer, cancelled=True), "cancelled")
        else:
            self.put_output(replace(answer, error=error), "failed")

    def _error_message(self, error: Exception) -> str:
        """Why there was no GPU. ZeroGPU's own words say what is left of whose quota, and come as Gradio's errors."""
        if type(error).__module__.partition(".")[0] in ("gradio", "spaces"):
            title = quote_untrusted(str(getattr(error, "title", "") or "ZeroGPU"))
            said = quote_untrusted(" ".join(str(error).split()).strip(". '\""), 300)
            return f"{title} ({said}): try again later, or log in with Hugging Face for more time on GPUs."
        _log.error("A call for a GPU failed.", exc_info=error)
        self.metrics.count_failed_step()
        return f"The call for a GPU failed ({type(error).__name__}): try again."


@dataclass
class _PendingRow:
    """A planned row, and what it has said."""

    prepared: PreparedRequest
    started_at: float | None = None
    last_partial: PartialOutput | None = None
    is_finished: bool = False

    def base_output(self, arrival_time: float) -> RequestOutput:
        """What is known of its answer besides what it said."""
        now = time.monotonic() if self.started_at is None else self.started_at
        return replace(self.prepared.output, queued_seconds=now - arrival_time)

    def candidates(self) -> tuple[Candidate, ...]:
        """What it said before it was given up. How likely that was only the other process knew."""
        if self.last_partial is None or not self.last_partial.text:
            return ()
        style = self.prepared.row.style
        code = self.last_partial.text if style is None else extract_code(self.last_partial.text, style)
        return (Candidate(self.last_partial.text, code, 0.0, self.last_partial.tokens, finish="cancelled"),)


# More calls than these wait for a GPU at most; each waits in a thread of its own.
MAX_WAITING_CALLS = 16
_BUSY_SECONDS = 15.0


class ZeroGpuEngine(LLMEngine):
    """Answers each call in one batch on a lent GPU; rows of different callers share none, as each has a GPU's quota.

    Of the usual scheduler only the thread that makes rows ready is used.
    """

    def __init__(
        self,
        backend: LocalBackend,
        store: Store,
        pools: ExamplePools,
        generate: GenerateFn,
        config: EngineConfig | None = None,
    ) -> None:
        from serve.backends.zero_gpu import PromptOnlyBackend

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
        """As Engine.submit. `owner` does not matter: ZeroGPU itself shares its GPUs among its visitors.

        Setting `cancel` is heard once a GPU was lent; while the call waits for one it goes on waiting.
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
        """As Engine.answer."""
        del owner
        stream = self._submit(requests, sampling_params, cancel, None, partials=False)
        answers = [event for event in stream if isinstance(event, RequestOutput)]
        return sorted(answers, key=lambda answer: answer.index)

    def status(self) -> EngineStatus:
        """The load at this moment, as far as this process sees it: not who else waits for ZeroGPU's GPUs."""
        with self._lock:
            if self._closed:
                return EngineStatus(0, self._rows, 0.0, "closed")
            seconds = _BUSY_SECONDS if self._calls >= MAX_WAITING_CALLS else 0.0
            return EngineStatus(0, self._rows, seconds, "generating" if self._rows else "idle")

    def close(self) -> None:
        """Takes nothing in any more; calls that have a GPU go on to their end."""
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
        mailbox = OutputQueue(len(requests), notify, partials)
        deserted = threading.Event()
        flight = ZeroGpuRequest(tuple(requests), decoding, mailbox, self.metrics, (cancel or deserted, deserted))
        # ZeroGPU finds in the caller's context who asks, and whose quota this is.
        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(self._run_request, flight), name="zero-gpu", daemon=True).start()
        return OutputStream(mailbox, lambda _: deserted.set(), keep_alive=self)

    def _admit(self, rows: int) -> None:
        with self._lock:
            if self._closed:
                raise PromptOrTuneError("The engine was closed: start it anew.")
            if self._calls >= MAX_WAITING_CALLS:
                self.metrics.count_busy_refusal()
                raise BusyError(
                    f"{self._calls} comparisons wait for a GPU: busy, about {_BUSY_SECONDS:.0f} s.", _BUSY_SECONDS
                )
            self._calls += 1
            self._rows += rows

    def _run_request(self, gpu_request: ZeroGpuRequest) -> None:
        plans: list[PreparedRequest] = []
        try:
            plans = self._prepare(gpu_request)
            for part in _split_batches(plans, gpu_request.decoding, self._config):
                gpu_request.run(self._generate, part, _make_task(part, gpu_request.decoding))
        except Exception as error:
            # A defect of ours must not leave the caller waiting for ever.
            self.metrics.count_failed_step()
            gpu_request.output_queue.fail(error)
            raise
        finally:
            for plan in plans:
                plan.release()
            with self._lock:
                self._calls -= 1
                self._rows -= len(gpu_request.requests)

    def _prepare(self, gpu_request: ZeroGpuRequest) -> list[PreparedRequest]:
        """Every request made ready; one that cannot be answered has its RequestOutput, and the others go on."""
        plans = []
        for index, request in enumerate(gpu_request.requests):
            planner = self._input_processor
            try:
                plans.append(self._core.run(lambda: planner.prepare(index, request, gpu_request.decoding)))  # noqa: B023
            except PromptOrTuneError as fault:
                waited = time.monotonic() - gpu_request.arrival_time
                gpu_request.put_output(
                    RequestOutput(index, request, error=str(fault), exception=fault, queued_seconds=waited), "refused"
                )
        return plans


def _split_batches(
    prepared: Sequence[PreparedRequest], decoding: SamplingParams, config: EngineConfig
) -> list[list[PreparedRequest]]:
    """The plans in batches of at most so many lines, each a call of its own for a GPU."""
    most = config.max_num_beam_seqs if decoding.mode == "beam" else config.max_num_seqs
    size = max(1, most // decoding.candidates)
    return [list(prepared[start : start + size]) for start in range(0, len(prepared), size)]


def _make_task(prepared: Sequence[PreparedRequest], decoding: SamplingParams) -> GpuTask:
    worn = {plan.lease.folder.name: plan.lease.folder for plan in prepared if plan.lease is not None}
    return GpuTask(tuple(plan.row for plan in prepared), tuple(worn.values()), decoding)
