"""Engine configuration, status and Prometheus metrics: limits of one engine, and the load that it reports.

Prometheus metrics of an engine: load, batches, tokens, latencies, and adapters in memory. Latencies and batch sizes are
histograms, so that the last minutes of a server that has run for hours can be queried. Values that other objects count
already (waiting rows, adapters in memory) are read when the metrics are collected. Names follow vLLM's where it has an
equivalent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from errors import PromptOrTuneError

if TYPE_CHECKING:
    from serve.engine.adapter_cache import AdapterCacheStatus

EnginePhase = Literal["idle", "preparing", "generating", "closed"]
Outcome = Literal["answered", "refused", "cancelled", "failed"]
_PREFIX = "prompt_or_tune"
_SEQUENCE_BUCKETS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 160, 256)
_STEP_BUCKETS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
_WAIT_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


@dataclass(frozen=True)
class EngineConfig:
    """Limits of one engine. Work beyond them waits in the queue; a call is refused if the queue is full.

    `max_num_seqs` limits the running sequences of greedy decoding and sampling: a row with several samples has one
    sequence per sample. `max_num_beam_seqs` limits those of beam search; it is higher because the beams of a row
    share the KV cache of its prompt. `max_queued` limits the waiting rows. `adapter_timeout_s` is the time that a row
    waits for memory while all loaded adapters are in use. Raises PromptOrTuneError for a limit below 1.
    """

    max_num_seqs: int = 32
    max_num_beam_seqs: int = 160
    max_queued: int = 256
    max_loaded_adapters: int = 64
    max_loaded_adapter_bytes: int = 2 << 30
    adapter_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        for name in (
            "max_num_seqs",
            "max_num_beam_seqs",
            "max_queued",
            "max_loaded_adapters",
            "max_loaded_adapter_bytes",
        ):
            if getattr(self, name) < 1:
                raise PromptOrTuneError(f"The engine's limit {name} is {getattr(self, name)}: give at least 1.")

    @property
    def num_reserved_seqs(self) -> int:
        """Number of sequences reserved for owners without a running sequence.

        Without this reserve one owner with many long answers could fill the batch, and the first row of every other
        owner would wait until one of those answers ends.
        """
        return self.max_num_seqs // 8


@dataclass(frozen=True)
class EngineStatus:
    """Load of an engine: waiting rows, running sequences, and the estimated seconds until a new row would start.

    The phase "preparing" means that prompts are rendered or adapters loaded and no sequence is running yet.
    """

    queued: int
    num_seqs: int
    wait_seconds: float
    phase: EnginePhase


class Metrics:
    """Counters of one engine, in a registry of its own so that several engines in a process do not mix."""

    def __init__(
        self, status: Callable[[], EngineStatus], adapter_cache_status: Callable[[], AdapterCacheStatus]
    ) -> None:
        self.registry = CollectorRegistry()

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"{_PREFIX}_{name}", text, buckets=buckets, registry=self.registry)

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"{_PREFIX}_{name}", text, labels, registry=self.registry)

        self._batch_size = histogram("batch_num_seqs", "Sequences in a step.", _SEQUENCE_BUCKETS)
        self._step_seconds = histogram("step_seconds", "Duration of one step of a batch.", _STEP_BUCKETS)
        self._queue_seconds = histogram(
            "request_queue_time_seconds", "Time from the call until a row is added to the batch.", _WAIT_BUCKETS
        )
        self._first_token = histogram(
            "time_to_first_token_seconds", "Time from the call to the first token of a row.", _WAIT_BUCKETS
        )
        self._request_seconds = histogram(
            "e2e_request_latency_seconds", "Time from the call to the answer of a row.", _WAIT_BUCKETS
        )
        self._prompt_tokens = counter("prompt_tokens", "Prompt tokens of rows that were added to a batch.")
        self._generated_tokens = counter("generation_tokens", "Tokens generated.")
        finished = counter("finished_requests", "Rows by outcome.", ("outcome",))
        self._finished_rows = {
            outcome: finished.labels(outcome) for outcome in ("answered", "refused", "cancelled", "failed")
        }
        self._busy_refusals = counter("busy_refusals", "Calls refused because the queue was full.")
        self._failed_steps = counter("failed_steps", "Steps that failed and ended their batch.")
        self.registry.register(_LoadCollector(status))
        self.registry.register(_AdapterCacheCollector(adapter_cache_status))

    def observe_step(self, num_seqs: int, seconds: float) -> None:
        """Record one step of a batch of `num_seqs` sequences."""
        self._batch_size.observe(num_seqs)
        self._step_seconds.observe(seconds)

    def observe_start(self, queue_seconds: float, prompt_tokens: int) -> None:
        """Record that a row was added to the batch, `queue_seconds` after its call."""
        self._queue_seconds.observe(queue_seconds)
        self._prompt_tokens.inc(prompt_tokens)

    def observe_first_token(self, seconds: float) -> None:
        """Record the first token of a row, `seconds` after its call."""
        self._first_token.observe(seconds)

    def observe_finish(self, outcome: Outcome, seconds: float, tokens: int = 0) -> None:
        """Record the end of a row, `seconds` after its call. "refused" means that its input could not be used."""
        self._finished_rows[outcome].inc()
        self._generated_tokens.inc(tokens)
        if outcome == "answered":
            self._request_seconds.observe(seconds)

    def count_busy_refusal(self) -> None:
        """Count a call that was refused because the queue was full."""
        self._busy_refusals.inc()

    def count_failed_step(self) -> None:
        """Count a step that raised an exception."""
        self._failed_steps.inc()


class _LoadCollector(Collector):
    """Waiting rows, running sequences and estimated wait at the time of collection."""

    def __init__(self, status: Callable[[], EngineStatus]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        status = self._status()
        yield GaugeMetricFamily(f"{_PREFIX}_num_requests_waiting", "Rows that wait.", value=status.queued)
        yield GaugeMetricFamily(f"{_PREFIX}_num_seqs_running", "Sequences being generated.", value=status.num_seqs)
        yield GaugeMetricFamily(
            f"{_PREFIX}_wait_seconds", "Estimated time until a new row would start.", value=status.wait_seconds
        )


class _AdapterCacheCollector(Collector):
    """State and counters of the adapter cache at the time of collection."""

    def __init__(self, status: Callable[[], AdapterCacheStatus]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        status = self._status()
        yield GaugeMetricFamily(f"{_PREFIX}_adapters", "Adapters in memory.", value=status.count)
        yield GaugeMetricFamily(f"{_PREFIX}_adapter_bytes", "Memory of loaded adapters.", value=status.bytes)
        for name, text, value in (
            ("adapter_hits", "Rows whose adapter was in memory.", status.hits),
            ("adapter_loads", "Adapters loaded.", status.loads),
            ("adapter_evictions", "Adapters unloaded to free memory for others.", status.evictions),
            ("adapter_load_seconds", "Time spent loading adapters.", status.load_seconds),
        ):
            yield CounterMetricFamily(f"{_PREFIX}_{name}", text, value=value)
