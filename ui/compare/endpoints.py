"""The comparison for programs: `/compare` answers at the end, `/stream` says how far every column is until then.

Both are what the page's Run is: the same line in front of the engine, the same limits for one visitor.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import gradio as gr

from errors import PromptOrTuneError
from ui.compare.run import Column, Comparison, QuestionFields, build_problem, make_comparison
from ui.compare.steps import ComparisonUpdate, collect_records, run_comparison
from ui.context import Context

# Runs wait in our own line for the engine, in order; only beyond this many does Gradio's queue keep them.
MAX_WAITING = 48
STOPPED = "The comparison was stopped before it began: ask again."


def build_endpoints(context: Context) -> None:
    """Adds both to the current Blocks, with the line of waiting runs in common."""
    for name, function in (("compare", compare_endpoint(context)), ("stream", stream_endpoint(context))):
        gr.api(function, api_name=name, concurrency_limit=MAX_WAITING, concurrency_id="programs")


def compare_endpoint(context: Context) -> Any:
    """The function behind `/compare`."""

    def compare(
        request: gr.Request, intent: str, methods: list[str], reference: str | None = None, tests: str | None = None
    ) -> list[dict[str, Any]]:
        """Answers an intent with each method; one record a method, failures included.

        `methods` are names such as zero-shot, icl-8, rag-8, lora-starter, lora-starter+rag-8. `tests` are asserts or
        input and output pairs; each record's `tests` says what they found, or `tests_note` why they did not run.
        """
        with _errors_as_gradio_errors():
            ask = _make_comparison(context, request, QuestionFields(intent, reference, tests), methods)
            session = request.session_hash or ""
            with (
                context.visitors.quota.reserve(ask.owner, len(ask.methods)),
                context.cancel_registry.register(session) as cancel,
            ):
                records = collect_records(context, ask, cancel)
            if not records:
                raise PromptOrTuneError(STOPPED)
        return [dict(record) for record in records]

    return compare


def stream_endpoint(context: Context) -> Any:
    """The function behind `/stream`."""

    def stream(
        request: gr.Request, intent: str, methods: list[str], reference: str | None = None, tests: str | None = None
    ) -> Iterator[dict[str, Any]]:
        """The same as /compare while it happens: every change as {"status", "columns", "records"}.

        `status` is a line for people, such as the place in the line. `columns` has for each method its `method`,
        `state` (waiting, streaming, done, failed, stopped), `text` and `tokens` so far, and `error`. `records` is empty
        until the last change, which has what /compare returns.
        """
        with _errors_as_gradio_errors():
            ask = _make_comparison(context, request, QuestionFields(intent, reference, tests), methods)
            session = request.session_hash or ""
            with (
                context.visitors.quota.reserve(ask.owner, len(ask.methods)),
                context.cancel_registry.register(session) as cancel,
            ):
                for step in run_comparison(context, ask, cancel):
                    yield _update_json(step)

    return stream


def _make_comparison(context: Context, request: gr.Request, fields: QuestionFields, methods: list[str]) -> Comparison:
    problem, note = build_problem(fields)
    ask = make_comparison(problem, methods, tests_text=fields.tests or "", tests_note=note)
    return replace(ask, owner=context.visitors.identify(request).id)


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


@contextmanager
def _errors_as_gradio_errors() -> Iterator[None]:
    """What a person can mend reaches the program that asked as its sentence."""
    try:
        yield
    except PromptOrTuneError as error:
        raise gr.Error(str(error), print_exception=False) from error
