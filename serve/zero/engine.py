"""The engine whose rows grow on a GPU that is lent for each call."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Sequence

from adapters.store import Store
from errors import BusyError, PromptOrTuneError
from serve.backends.local.backend import LocalBackend
from serve.engine import LLMEngine
from serve.examples import ExamplePools
from serve.planning import PreparedRequest
from serve.rows import Request, RequestOutput, SamplingParams
from serve.scheduling.limits import EngineConfig, EngineStatus
from serve.scheduling.mailbox import OutputQueue, OutputStream
from serve.zero.flight import ZeroGpuRequest
from serve.zero.lending import GenerateFn, GpuTask

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
        from serve.zero.front import PromptOnlyBackend

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
        except Exception as fault:
            # A defect of ours must not leave the caller waiting for ever.
            self.metrics.count_failed_step()
            gpu_request.output_queue.fail(fault)
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
