"""The comparison for programs: `/compare` answers at the end, `/stream` says how far every column is until then.

Both are what the page's Run is: the same line in front of the engine, the same limits for one visitor.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import gradio as gr

from errors import PeftArenaError
from ui.asked import Fields, problem_of
from ui.compare_run import Ask, Column, make_ask
from ui.context import Context
from ui.live import Step, answers, live_steps

# Runs wait in our own line for the engine, in order; only beyond this many does Gradio's queue keep them.
MAX_WAITING = 48
STOPPED = "The comparison was stopped before it began: ask again."


def build_endpoints(context: Context) -> None:
    """Adds both to the current Blocks, with the line of waiting runs in common."""
    for name, function in (("compare", endpoint(context)), ("stream", stream_endpoint(context))):
        gr.api(function, api_name=name, concurrency_limit=MAX_WAITING, concurrency_id="programs")


def endpoint(context: Context) -> Any:
    """The function behind `/compare`."""

    def compare(
        request: gr.Request, intent: str, methods: list[str], reference: str | None = None, tests: str | None = None
    ) -> list[dict[str, Any]]:
        """Answers an intent with each method; one record a method, failures included.

        `methods` are names such as zero-shot, icl-8, rag-8, lora-starter, lora-starter+rag-8. `tests` are asserts or
        input and output pairs; each record's `tests` says what they found, or `tests_note` why they did not run.
        """
        with _in_one_sentence():
            ask = _ask(context, request, Fields(intent, reference, tests), methods)
            session = request.session_hash or ""
            with context.visitors.quota.rows(ask.owner, len(ask.methods)), context.stops.running(session) as cancel:
                records = answers(context, ask, cancel)
            if not records:
                raise PeftArenaError(STOPPED)
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
        with _in_one_sentence():
            ask = _ask(context, request, Fields(intent, reference, tests), methods)
            session = request.session_hash or ""
            with context.visitors.quota.rows(ask.owner, len(ask.methods)), context.stops.running(session) as cancel:
                for step in live_steps(context, ask, cancel):
                    yield _change(step)

    return stream


def _ask(context: Context, request: gr.Request, fields: Fields, methods: list[str]) -> Ask:
    problem, note = problem_of(fields)
    ask = make_ask(problem, methods, tests_text=fields.tests or "", tests_note=note)
    return replace(ask, owner=context.visitors.of(request).id)


def _change(step: Step) -> dict[str, Any]:
    return {
        "status": step.status,
        "columns": [_column(column) for column in step.columns],
        "records": [dict(record) for record in step.records],
    }


def _column(column: Column) -> dict[str, Any]:
    return {
        "method": column.method,
        "state": column.state,
        "text": column.text,
        "tokens": column.tokens,
        "error": column.error,
    }


@contextmanager
def _in_one_sentence() -> Iterator[None]:
    """What a person can mend reaches the program that asked as its sentence."""
    try:
        yield
    except PeftArenaError as fault:
        raise gr.Error(str(fault), print_exception=False) from fault
