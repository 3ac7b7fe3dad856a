"""A comparison from the click to its records: loading, place in line, growing columns, tests, the end."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from threading import Event
from typing import TYPE_CHECKING

from ui.board import Board, finished_board, growing_board
from ui.compare_run import Ask, Column, compare
from ui.context import Context
from ui.records import Record, make_record
from ui.testing import Testing, run_tests
from ui.verdict import verdict

if TYPE_CHECKING:
    from serve.engine import Engine

STOPPED_EARLY = "Stopped before it began."
_WAIT_SECONDS = 0.25


@dataclass(frozen=True)
class Step:
    """One repaint: a line of status, the columns as far as they are, and the records once there are any.

    `board` draws what a page shows where that changed; a program has no use for it.
    """

    status: str
    board: Callable[[], Board] | None = None
    records: tuple[Record, ...] = ()
    columns: tuple[Column, ...] = ()


def live_steps(context: Context, ask: Ask, cancel: Event) -> Iterator[Step]:
    """The run as a page shows it. Raises PeftArenaError when the model cannot be loaded."""
    engine: Engine | None = None
    while engine is None:
        engine = context.source.poll(_WAIT_SECONDS)
        if engine is None:
            state = context.source.state()
            yield Step(f"Waiting for the model ({state.message.rstrip('.')}). The run then starts by itself.")
        if cancel.is_set():
            yield Step(STOPPED_EARLY)
            return
    created = now()
    columns: tuple[Column, ...] = ()
    with context.line.join() as place:
        while before := place.wait(_WAIT_SECONDS):
            yield Step(f"Waiting: {before} run{'' if before == 1 else 's'} before yours.")
            if cancel.is_set():
                yield Step(STOPPED_EARLY)
                return
        for columns in compare(engine, ask, cancel, context.score):
            draw = partial(growing_board, columns, ask, engine.base, created)
            yield Step(_progress(columns), draw, columns=columns)
    records = tuple(make_record(column, ask, engine.base, created) for column in columns)
    # The engine is free for the next in line: whatever tests run, run beside it.
    for testing in _tests(context, ask, records, cancel):
        records = testing.records
        if testing.pending:
            yield Step(testing.status, partial(finished_board, records, testing.pending), columns=columns)
    yield Step(verdict(records), partial(finished_board, records), records, columns)


def answers(context: Context, ask: Ask, cancel: Event | None = None) -> tuple[Record, ...]:
    """The same comparison for a program: one record a method, in the order asked for; none where it never began."""
    (last,) = deque(live_steps(context, ask, cancel or Event()), maxlen=1)
    return last.records


def _tests(context: Context, ask: Ask, records: tuple[Record, ...], cancel: Event) -> Iterator[Testing]:
    if ask.problem.tests:
        yield from run_tests(context.bench, records, ask.problem.tests, cancel)


def now() -> str:
    """The time as an ISO text in UTC, with milliseconds so that two runs differ."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _progress(columns: Sequence[Column]) -> str:
    # Counts, not seconds: a screen reader speaks every change of this line.
    done = sum(column.state not in ("waiting", "streaming") for column in columns)
    if all(column.state in ("waiting", "failed") for column in columns):
        return "Reading the prompts."
    return f"Answering: {done} of {len(columns)} done."
