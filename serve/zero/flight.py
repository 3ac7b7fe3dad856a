"""One caller's rows on their way to a lent GPU and back."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from threading import Event

from adapters.weights import shown
from serve.metrics import Metrics, Outcome
from serve.planning import Plan
from serve.rows import Answer, Candidate, Decoding, Finished, Partial, Request
from serve.scheduling.mailbox import Mailbox
from serve.zero.lending import Generate, News, Refused, Work
from tasks.extract import extract_code

_ENDED = "The GPU was taken away before this answer was whole: try again, with fewer tokens or fewer methods."
_log = logging.getLogger(__name__)


@dataclass
class Flight:
    """What one caller asked for at once. It is stopped when any of the `stops` is set. Times are of time.monotonic."""

    requests: tuple[Request, ...]
    decoding: Decoding
    mailbox: Mailbox
    metrics: Metrics
    stops: tuple[Event, ...]
    asked: float = field(default_factory=time.monotonic)

    def stopped(self) -> bool:
        """Whether nobody waits for the rest."""
        return any(stop.is_set() for stop in self.stops)

    def run(self, generate: Generate, plans: Sequence[Plan], work: Work) -> None:
        """Has the rows of `plans` generated in one batch; each gets exactly one Answer, whatever happens."""
        rows = [_Row(plan) for plan in plans]
        error = _ENDED
        if not self.stopped():
            try:
                with closing(generate(work)) as news:
                    for part in news:
                        refused = next((each.sentence for each in part if isinstance(each, Refused)), None)
                        if refused is not None:
                            error = refused
                            break
                        self._deliver(rows, part)
                        if self.stopped():
                            break
            except Exception as fault:  # noqa: BLE001 - `spaces` raises Gradio's errors and anything else
                error = self._sentence(fault)
        for row in rows:
            if not row.over:
                self._give_up(row, error)

    def end(self, answer: Answer, outcome: Outcome) -> None:
        """Gives the caller one row's answer."""
        tokens = sum(each.tokens for each in answer.samples or answer.candidates)
        self.metrics.ended(outcome, time.monotonic() - self.asked, tokens)
        self.mailbox.put([answer])

    def _deliver(self, rows: Sequence[_Row], news: Sequence[News]) -> None:
        now = time.monotonic()
        for event in news:
            if isinstance(event, Refused):
                continue
            row = rows[event.index]
            if row.began is None:
                # The row began when its batch did, which only its first word tells.
                row.began = now
                self.metrics.joined(now - self.asked, row.plan.answer.prompt_tokens)
                self.metrics.first_token(now - self.asked)
            index = row.plan.answer.index
            if isinstance(event, Finished):
                self._land(row, event)
            else:
                row.said = event
                if self.mailbox.wants_partials:
                    self.mailbox.put([replace(event, index=index)])

    def _land(self, row: _Row, finished: Finished) -> None:
        row.over = True
        known = row.known(self.asked)
        answer = replace(
            known,
            candidates=finished.candidates,
            samples=finished.samples,
            error=finished.error,
            notes=(*known.notes, *finished.notes),
            seconds=finished.seconds,
        )
        self.end(answer, "failed" if finished.error else "answered")

    def _give_up(self, row: _Row, error: str) -> None:
        """A row that has no end keeps what it has said; where the caller left that is all there is to say."""
        row.over = True
        seconds = 0.0 if row.began is None else time.monotonic() - row.began
        answer = replace(row.known(self.asked), candidates=row.candidates(), seconds=seconds)
        if self.stopped():
            self.end(replace(answer, cancelled=True), "cancelled")
        else:
            self.end(replace(answer, error=error), "failed")

    def _sentence(self, fault: Exception) -> str:
        """Why there was no GPU. ZeroGPU's own words say what is left of whose quota, and come as Gradio's errors."""
        if type(fault).__module__.partition(".")[0] in ("gradio", "spaces"):
            title = shown(str(getattr(fault, "title", "") or "ZeroGPU"))
            said = shown(" ".join(str(fault).split()).strip(". '\""), 300)
            return f"{title} ({said}): try again later, or log in with Hugging Face for more time on GPUs."
        _log.error("A call for a GPU failed.", exc_info=fault)
        self.metrics.fault()
        return f"The call for a GPU failed ({type(fault).__name__}): try again."


@dataclass
class _Row:
    """A planned row, and what it has said."""

    plan: Plan
    began: float | None = None
    said: Partial | None = None
    over: bool = False

    def known(self, asked: float) -> Answer:
        """What is known of its answer besides what it said."""
        now = time.monotonic() if self.began is None else self.began
        return replace(self.plan.answer, queued_seconds=now - asked)

    def candidates(self) -> tuple[Candidate, ...]:
        """What it said before it was given up. How likely that was only the other process knew."""
        if self.said is None or not self.said.text:
            return ()
        style = self.plan.row.style
        code = self.said.text if style is None else extract_code(self.said.text, style)
        return (Candidate(self.said.text, code, 0.0, self.said.tokens, finish="cancelled"),)
