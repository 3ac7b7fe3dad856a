"""What an engine counts, for Prometheus: load, batches, tokens, times, and adapters in memory.

Times and sizes are histograms, so that a server of several hours shows its last minutes too. What others count
already (rows that wait, adapters in memory) is read when the metrics are collected and costs nothing until then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from serve.engine.adapter_cache import AdapterCacheStatus
    from serve.engine.config import EngineStatus

Outcome = Literal["answered", "refused", "cancelled", "failed"]
_PREFIX = "prompt_or_tune"
_SEQUENCE_BUCKETS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 160, 256)
_STEP_BUCKETS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
_WAIT_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """The counters of one engine, in a registry of its own: several engines in a process keep theirs apart."""

    def __init__(
        self, status: Callable[[], EngineStatus], adapter_cache_status: Callable[[], AdapterCacheStatus]
    ) -> None:
        self.registry = CollectorRegistry()

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"{_PREFIX}_{name}", text, buckets=buckets, registry=self.registry)

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"{_PREFIX}_{name}", text, labels, registry=self.registry)

        self._batch_size = histogram("batch_lines", "Lines that grow in a step.", _SEQUENCE_BUCKETS)
        self._step_seconds = histogram("step_seconds", "Time of one step of a batch.", _STEP_BUCKETS)
        self._queue_seconds = histogram("queue_seconds", "From the call until a row joins the batch.", _WAIT_BUCKETS)
        self._first_token = histogram("first_token_seconds", "From the call to a row's first token.", _WAIT_BUCKETS)
        self._request_seconds = histogram("request_seconds", "From the call to a row's answer.", _WAIT_BUCKETS)
        self._prompt_tokens = counter("prompt_tokens", "Tokens of the prompts of rows that joined a batch.")
        self._generated_tokens = counter("generated_tokens", "Tokens of answers.")
        rows = counter("rows", "Rows by how they ended.", ("outcome",))
        self._finished_rows = {
            outcome: rows.labels(outcome) for outcome in ("answered", "refused", "cancelled", "failed")
        }
        self._busy_refusals = counter("busy_refusals", "Calls refused because the queue was full.")
        self._failed_steps = counter("faults", "Steps that failed and ended their batch.")
        self.registry.register(_LoadCollector(status))
        self.registry.register(_AdapterCacheCollector(adapter_cache_status))

    def observe_step(self, num_seqs: int, seconds: float) -> None:
        """One step of a batch of so many lines."""
        self._batch_size.observe(num_seqs)
        self._step_seconds.observe(seconds)

    def observe_start(self, queue_seconds: float, prompt_tokens: int) -> None:
        """A row joins the batch so long after its call."""
        self._queue_seconds.observe(queue_seconds)
        self._prompt_tokens.inc(prompt_tokens)

    def observe_first_token(self, seconds: float) -> None:
        """A row has its first token, so long after its call."""
        self._first_token.observe(seconds)

    def observe_finish(self, outcome: Outcome, seconds: float, tokens: int = 0) -> None:
        """A row has ended, so long after its call; refused is what could not be answered as it was asked."""
        self._finished_rows[outcome].inc()
        self._generated_tokens.inc(tokens)
        if outcome == "answered":
            self._request_seconds.observe(seconds)

    def count_busy_refusal(self) -> None:
        """A call was refused, because too many rows wait."""
        self._busy_refusals.inc()

    def count_failed_step(self) -> None:
        """A step failed."""
        self._failed_steps.inc()


class _LoadCollector(Collector):
    """Rows that wait and lines that grow, as they are when somebody looks."""

    def __init__(self, status: Callable[[], EngineStatus]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        now = self._status()
        yield GaugeMetricFamily(f"{_PREFIX}_queue_rows", "Rows that wait.", value=now.queued)
        yield GaugeMetricFamily(f"{_PREFIX}_lines", "Lines that grow.", value=now.num_seqs)
        yield GaugeMetricFamily(
            f"{_PREFIX}_wait_seconds", "About how long until a new row starts.", value=now.wait_seconds
        )


class _AdapterCacheCollector(Collector):
    """The adapters in memory and how they came there."""

    def __init__(self, status: Callable[[], AdapterCacheStatus]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        now = self._status()
        yield GaugeMetricFamily(f"{_PREFIX}_adapters", "Adapters in memory.", value=now.count)
        yield GaugeMetricFamily(f"{_PREFIX}_adapter_bytes", "Memory that they take.", value=now.bytes)
        for name, text, value in (
            ("adapter_hits", "Rows whose adapter was in memory.", now.hits),
            ("adapter_loads", "Adapters loaded.", now.loads),
            ("adapter_evictions", "Adapters that left memory to make room.", now.evictions),
            ("adapter_load_seconds", "Time spent loading adapters.", now.load_seconds),
        ):
            yield CounterMetricFamily(f"{_PREFIX}_{name}", text, value=value)
