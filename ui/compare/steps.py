"""Steps of a comparison from the click to its records, and its API endpoints `/compare` and `/stream`.

API endpoints of comparisons: `/compare` returns the records, `/stream` also the progress until then. Both share the
queue of the engine and the limits per visitor with the Run button of the page.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from threading import Event
from typing import TYPE_CHECKING, Any

import gradio as gr

from common.format import utc_timestamp
from errors import PromptOrTuneError
from ui.access.guard import action, may_use_own
from ui.compare.comparison import (
    Column,
    Comparison,
    QuestionFields,
    build_problem,
    check_request,
    compare,
    make_comparison,
)
from ui.compare.verdict import verdict_text
from ui.compare.view import ComparisonView, finished_view, streaming_view
from ui.context import Context
from ui.test_bench import Record, TestProgress, make_record, test_answers

if TYPE_CHECKING:
    from serve.engine.llm_engine import LLMEngine

STOPPED_EARLY = "Stopped before it began."
_WAIT_SECONDS = 0.25
# Runs wait for the engine in the admission queue; only beyond this many do they wait in Gradio's queue.
MAX_WAITING = 48
DEFAULT_POOL = "starter"
STOPPED = "The comparison was stopped before it began: ask again."


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


def build_endpoints(context: Context) -> None:
    """Add both endpoints to the current Blocks; they share one concurrency limit."""
    for name, function in (("compare", compare_endpoint(context)), ("stream", stream_endpoint(context))):
        gr.api(function, api_name=name, concurrency_limit=MAX_WAITING, concurrency_id="programs")


def compare_endpoint(context: Context) -> Any:
    """Return the function behind `/compare`."""

    @action("compare")
    def compare(
        request: gr.Request,
        intent: str,
        methods: list[str],
        reference: str | None = None,
        tests: str | None = None,
        pool: str = DEFAULT_POOL,
    ) -> list[dict[str, Any]]:
        """Answers an intent with each method; one record per method, failures included.

        `methods` are names such as zero-shot, icl-8, rag-8, lora-starter, lora-starter+rag-8. `tests` are in
        any form of docs/pasted-tests.md, else it is an error before anything is answered; each record has their
        results in `tests`, or the reason why none ran in `tests_note`. `pool` is the data set of the examples of icl
        and rag; the owner of the app may name one of their own.
        """
        with _admitted(context, request, QuestionFields(intent, reference, tests), methods, pool) as (
            comparison,
            cancel,
        ):
            records = collect_records(context, comparison, cancel)
        if not records:
            raise PromptOrTuneError(STOPPED)
        return [dict(record) for record in records]

    return compare


def stream_endpoint(context: Context) -> Any:
    """Return the function behind `/stream`."""

    @action("compare")
    def stream(
        request: gr.Request,
        intent: str,
        methods: list[str],
        reference: str | None = None,
        tests: str | None = None,
        pool: str = DEFAULT_POOL,
    ) -> Iterator[dict[str, Any]]:
        """Streams a comparison like /compare: every change as {"status", "columns", "records"}.

        `status` is a line for people, such as the number of runs before this one. `columns` has for each method its
        `method`, `state` (waiting, streaming, done, failed, stopped), `text` and `tokens` so far, and `error`.
        `records` is empty until the last change, which has what /compare returns.
        """
        with _admitted(context, request, QuestionFields(intent, reference, tests), methods, pool) as (
            comparison,
            cancel,
        ):
            for update in run_comparison(context, comparison, cancel):
                yield _update_json(update)

    return stream


@contextmanager
def _admitted(
    context: Context, request: gr.Request, fields: QuestionFields, methods: list[str], pool: str
) -> Iterator[tuple[Comparison, Event]]:
    """Yield the comparison and the event that cancels it; the visitor's quota counts it before its tests are read."""
    check_request(fields.intent, fields.reference, methods)
    visitor = context.visitors.identify(request)
    with (
        context.cancel_registry.register(request.session_hash or "") as cancel,
        context.visitors.quota.reserve(visitor.id, len(methods), visitor.address),
    ):
        own = may_use_own(context, visitor)
        comparison = make_comparison(build_problem(fields), methods, pool=pool, tests_text=fields.tests or "", own=own)
        yield replace(comparison, owner=visitor.id, address=visitor.address), cancel


def _update_json(update: ComparisonUpdate) -> dict[str, Any]:
    return {
        "status": update.status,
        "columns": [_column_json(column) for column in update.columns],
        "records": [dict(record) for record in update.records],
    }


def _column_json(column: Column) -> dict[str, Any]:
    return {
        "method": column.method,
        "state": column.state,
        "text": column.text,
        "tokens": column.tokens,
        "error": column.error,
    }
