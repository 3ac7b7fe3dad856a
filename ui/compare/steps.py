"""Steps of a comparison, from the click to its records: model loading, queue, streaming columns, tests."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Event
from typing import TYPE_CHECKING

from common.format import utc_timestamp
from ui.compare.comparison import Column, Comparison, compare
from ui.compare.verdict import verdict_text
from ui.compare.view import ComparisonView, finished_view, streaming_view
from ui.context import Context
from ui.records import Record, make_record
from ui.test_bench import TestProgress, test_answers

if TYPE_CHECKING:
    from serve.engine.llm_engine import LLMEngine

STOPPED_EARLY = "Stopped before it began."
_WAIT_SECONDS = 0.25


@dataclass(frozen=True)
class ComparisonUpdate:
    """One update: the status text, the columns so far, and at the end the records.

    `make_view` builds the view of the page if it changed; the endpoints do not call it.
    """

    status: str
    make_view: Callable[[], ComparisonView] | None = None
    records: tuple[Record, ...] = ()
    columns: tuple[Column, ...] = ()


def run_comparison(context: Context, comparison: Comparison, cancel: Event) -> Iterator[ComparisonUpdate]:
    """Run a comparison and yield its updates. Raises PromptOrTuneError if the model cannot be loaded."""
    engine: LLMEngine | None = None
    while engine is None:
        engine = context.engine_loader.wait(_WAIT_SECONDS)
        if engine is None:
            state = context.engine_loader.state()
            yield ComparisonUpdate(
                f"Waiting for the model ({state.message.rstrip('.')}). The run then starts by itself."
            )
        if cancel.is_set():
            yield ComparisonUpdate(STOPPED_EARLY)
            return
    created = utc_timestamp()
    columns: tuple[Column, ...] = ()
    with context.run_queue.enqueue(comparison.owner, comparison.address) as ticket:
        while ahead := ticket.wait(_WAIT_SECONDS):
            yield ComparisonUpdate(f"Waiting: {ahead} run{'' if ahead == 1 else 's'} before yours.")
            if cancel.is_set():
                yield ComparisonUpdate(STOPPED_EARLY)
                return
        for columns in compare(engine, comparison, cancel, context.score):
            make_view = partial(streaming_view, columns, comparison, engine.base, created)
            yield ComparisonUpdate(_progress_text(columns), make_view, columns=columns)
    records = tuple(make_record(column, comparison, engine.base, created) for column in columns)
    # The engine is free for the next run while the tests run.
    for progress in _run_problem_tests(context, comparison, records, cancel):
        records = progress.records
        if progress.pending:
            make_view = partial(finished_view, records, progress.pending)
            yield ComparisonUpdate(progress.status, make_view, columns=columns)
    yield ComparisonUpdate(verdict_text(records), partial(finished_view, records), records, columns)


def collect_records(context: Context, comparison: Comparison, cancel: Event | None = None) -> tuple[Record, ...]:
    """Run a comparison to its end; return a record per method in their order, () if it was stopped before it began."""
    (last,) = deque(run_comparison(context, comparison, cancel or Event()), maxlen=1)
    return last.records


def _run_problem_tests(
    context: Context, comparison: Comparison, records: tuple[Record, ...], cancel: Event
) -> Iterator[TestProgress]:
    if comparison.problem.tests:
        yield from test_answers(context.test_bench, records, comparison.problem, cancel)


def _progress_text(columns: Sequence[Column]) -> str:
    # Counts, not seconds: screen readers announce every change of this text.
    done = sum(column.state not in ("waiting", "streaming") for column in columns)
    if all(column.state in ("waiting", "failed") for column in columns):
        return "Reading the prompts."
    return f"Answering: {done} of {len(columns)} done."
