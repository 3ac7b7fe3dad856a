"""A comparison from the click to its records: loading, place in line, growing columns, tests, the end."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from threading import Event
from typing import TYPE_CHECKING

from ui.compare.run import Column, Comparison, compare
from ui.compare.verdict import verdict_text
from ui.compare.view import ComparisonView, finished_view, streaming_view
from ui.context import Context
from ui.records import Record, make_record
from ui.test_bench import TestProgress, run_tests

if TYPE_CHECKING:
    from serve.engine.llm_engine import LLMEngine

STOPPED_EARLY = "Stopped before it began."
_WAIT_SECONDS = 0.25


@dataclass(frozen=True)
class ComparisonUpdate:
    """One repaint: a line of status, the columns as far as they are, and the records once there are any.

    `board` draws what a page shows where that changed; a program has no use for it.
    """

    status: str
    make_view: Callable[[], ComparisonView] | None = None
    records: tuple[Record, ...] = ()
    columns: tuple[Column, ...] = ()


def run_comparison(context: Context, comparison: Comparison, cancel: Event) -> Iterator[ComparisonUpdate]:
    """The run as a page shows it. Raises PromptOrTuneError when the model cannot be loaded."""
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
    with context.run_queue.enqueue() as place:
        while before := place.wait(_WAIT_SECONDS):
            yield ComparisonUpdate(f"Waiting: {before} run{'' if before == 1 else 's'} before yours.")
            if cancel.is_set():
                yield ComparisonUpdate(STOPPED_EARLY)
                return
        for columns in compare(engine, comparison, cancel, context.score):
            draw = partial(streaming_view, columns, comparison, engine.base, created)
            yield ComparisonUpdate(_progress_text(columns), draw, columns=columns)
    records = tuple(make_record(column, comparison, engine.base, created) for column in columns)
    # The engine is free for the next in line: whatever tests run, run beside it.
    for testing in _run_problem_tests(context, comparison, records, cancel):
        records = testing.records
        if testing.pending:
            yield ComparisonUpdate(testing.status, partial(finished_view, records, testing.pending), columns=columns)
    yield ComparisonUpdate(verdict_text(records), partial(finished_view, records), records, columns)


def collect_records(context: Context, comparison: Comparison, cancel: Event | None = None) -> tuple[Record, ...]:
    """The same comparison for a program: one record a method, in the order asked for; none where it never began."""
    (last,) = deque(run_comparison(context, comparison, cancel or Event()), maxlen=1)
    return last.records


def _run_problem_tests(
    context: Context, comparison: Comparison, records: tuple[Record, ...], cancel: Event
) -> Iterator[TestProgress]:
    if comparison.problem.tests:
        yield from run_tests(context.test_bench, records, comparison.problem.tests, cancel)


def utc_timestamp() -> str:
    """The time as an ISO text in UTC, with milliseconds so that two runs differ."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _progress_text(columns: Sequence[Column]) -> str:
    # Counts, not seconds: a screen reader speaks every change of this line.
    done = sum(column.state not in ("waiting", "streaming") for column in columns)
    if all(column.state in ("waiting", "failed") for column in columns):
        return "Reading the prompts."
    return f"Answering: {done} of {len(columns)} done."
