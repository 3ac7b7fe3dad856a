"""One caller's rows on their way to a lent GPU and back."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from threading import Event

from adapters.weights import quote_untrusted
from serve.metrics import Metrics, Outcome
from serve.planning import PreparedRequest
from serve.rows import Candidate, PartialOutput, Request, RequestOutput, RowOutput, SamplingParams
from serve.scheduling.mailbox import OutputQueue
from serve.zero.lending import GenerateFn, GpuEvent, GpuTask, GpuTaskFailure
from tasks.extract import extract_code

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
