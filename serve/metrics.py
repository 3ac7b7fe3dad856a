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
    from serve.ledger import ResidentsStatus
    from serve.scheduling.limits import EngineStatus

Outcome = Literal["answered", "refused", "cancelled", "failed"]
_PREFIX = "peft_arena"
_LINES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 160, 256)
_STEP = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
_WAIT = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """The counters of one engine, in a registry of its own: several engines in a process keep theirs apart."""

    def __init__(self, status: Callable[[], EngineStatus], residents: Callable[[], ResidentsStatus]) -> None:
        self.registry = CollectorRegistry()

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"{_PREFIX}_{name}", text, buckets=buckets, registry=self.registry)

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"{_PREFIX}_{name}", text, labels, registry=self.registry)

        self._batch = histogram("batch_lines", "Lines that grow in a step.", _LINES)
        self._step = histogram("step_seconds", "Time of one step of a batch.", _STEP)
        self._queued = histogram("queue_seconds", "From the call until a row joins the batch.", _WAIT)
        self._first = histogram("first_token_seconds", "From the call to a row's first token.", _WAIT)
        self._request = histogram("request_seconds", "From the call to a row's answer.", _WAIT)
        self._prompt_tokens = counter("prompt_tokens", "Tokens of the prompts of rows that joined a batch.")
        self._generated = counter("generated_tokens", "Tokens of answers.")
        rows = counter("rows", "Rows by how they ended.", ("outcome",))
        self._rows = {outcome: rows.labels(outcome) for outcome in ("answered", "refused", "cancelled", "failed")}
        self._busy = counter("busy_refusals", "Calls refused because the queue was full.")
        self._faults = counter("faults", "Steps that failed and ended their batch.")
        self.registry.register(_Load(status))
        self.registry.register(_Adapters(residents))

    def stepped(self, lines: int, seconds: float) -> None:
        """One step of a batch of so many lines."""
        self._batch.observe(lines)
        self._step.observe(seconds)

    def joined(self, waited: float, prompt_tokens: int) -> None:
        """A row joins the batch so long after its call."""
        self._queued.observe(waited)
        self._prompt_tokens.inc(prompt_tokens)

    def first_token(self, seconds: float) -> None:
        """A row has its first token, so long after its call."""
        self._first.observe(seconds)

    def ended(self, outcome: Outcome, seconds: float, tokens: int = 0) -> None:
        """A row has ended, so long after its call; refused is what could not be answered as it was asked."""
        self._rows[outcome].inc()
        self._generated.inc(tokens)
        if outcome == "answered":
            self._request.observe(seconds)

    def busy(self) -> None:
        """A call was refused, because too many rows wait."""
        self._busy.inc()

    def fault(self) -> None:
        """A step failed."""
        self._faults.inc()


class _Load(Collector):
    """Rows that wait and lines that grow, as they are when somebody looks."""

    def __init__(self, status: Callable[[], EngineStatus]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        now = self._status()
        yield GaugeMetricFamily(f"{_PREFIX}_queue_rows", "Rows that wait.", value=now.queued)
        yield GaugeMetricFamily(f"{_PREFIX}_lines", "Lines that grow.", value=now.lines)
        yield GaugeMetricFamily(f"{_PREFIX}_wait_seconds", "About how long until a new row starts.", value=now.seconds)


class _Adapters(Collector):
    """The adapters in memory and how they came there."""

    def __init__(self, residents: Callable[[], ResidentsStatus]) -> None:
        self._residents = residents

    def collect(self) -> Iterator[Metric]:
        now = self._residents()
        yield GaugeMetricFamily(f"{_PREFIX}_adapters", "Adapters in memory.", value=now.count)
        yield GaugeMetricFamily(f"{_PREFIX}_adapter_bytes", "Memory that they take.", value=now.bytes)
        for name, text, value in (
            ("adapter_hits", "Rows whose adapter was in memory.", now.hits),
            ("adapter_loads", "Adapters loaded.", now.loads),
            ("adapter_evictions", "Adapters that left memory to make room.", now.evictions),
            ("adapter_load_seconds", "Time spent loading adapters.", now.load_seconds),
        ):
            yield CounterMetricFamily(f"{_PREFIX}_{name}", text, value=value)
