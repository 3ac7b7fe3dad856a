"""API endpoints of comparisons: `/compare` returns the records, `/stream` also the progress until then.

Both share the queue of the engine and the limits per visitor with the Run button of the page.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from threading import Event
from typing import Any

import gradio as gr

from errors import PromptOrTuneError
from ui.access.guard import action
from ui.compare.comparison import Column, Comparison, QuestionFields, build_problem, check_request, make_comparison
from ui.compare.steps import ComparisonUpdate, collect_records, run_comparison
from ui.context import Context
from ui.own_data import may_use_own

# Runs wait for the engine in the admission queue; only beyond this many do they wait in Gradio's queue.
MAX_WAITING = 48
DEFAULT_POOL = "starter"
STOPPED = "The comparison was stopped before it began: ask again."


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
