"""One comparison: an intent goes to several methods, and their columns fill together.

The page and the endpoint both run through `compare`, so what a person sees and what a program gets is the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from threading import Event
from typing import TYPE_CHECKING, Literal

from errors import PromptOrTuneError
from evaluate.scoring import Score, score_code
from serve.method import parse_method
from serve.rows import PartialOutput, Request, RequestOutput, SamplingParams
from tasks.problem import Problem

if TYPE_CHECKING:
    from serve.engine import LLMEngine

MAX_COLUMNS = 8
REPAINT_SECONDS = 0.1
EMPTY_INTENT = "Say first what the Python should do: one sentence is enough."
NO_METHOD = "Add at least one method: the answers need someone to give them."

Scorer = Callable[[str, str | None], list[Score]]
ColumnState = Literal["waiting", "streaming", "done", "failed", "stopped"]


@dataclass(frozen=True)
class Comparison:
    """What is compared: one problem, the names of the methods, how tokens are chosen, where examples come from.

    `tests_text` is what stood in the field of tests, and `tests_note` says why that is no tests. `owner` is who asks:
    owners share the engine evenly.
    """

    problem: Problem
    methods: tuple[str, ...]
    decoding: SamplingParams = field(default_factory=SamplingParams)
    pool: str = "starter"
    tests_text: str = ""
    tests_note: str = ""
    owner: str = ""


@dataclass(frozen=True)
class Column:
    """One method's answer as far as it has come. `error` is its sentence when it failed."""

    method: str
    state: ColumnState = "waiting"
    text: str = ""
    tokens: int = 0
    answer: RequestOutput | None = None
    scores: tuple[Score, ...] = ()
    error: str | None = None


def make_comparison(
    problem: Problem,
    methods: Sequence[str],
    decoding: SamplingParams | None = None,
    pool: str = "starter",
    *,
    tests_text: str = "",
    tests_note: str = "",
) -> Comparison:
    """The comparison asked for; PromptOrTuneError in one sentence when there is nothing to answer or nobody to."""
    if not problem.intent.strip():
        raise PromptOrTuneError(EMPTY_INTENT)
    if not methods:
        raise PromptOrTuneError(NO_METHOD)
    if len(methods) > MAX_COLUMNS:
        raise PromptOrTuneError(f"{len(methods)} methods asked for: compare at most {MAX_COLUMNS} at once.")
    return Comparison(problem, tuple(methods), decoding or SamplingParams(), pool, tests_text, tests_note)


def compare(
    engine: LLMEngine,
    comparison: Comparison,
    cancel: Event,
    score: Scorer = score_code,
    interval: float = REPAINT_SECONDS,
) -> Generator[tuple[Column, ...]]:
    """All columns, again and again as they grow, at most once in `every` seconds; the last ones are complete.

    A name that is no method fails in its own column. Closing the iterator, or `cancel`, stops the engine; `cancel` is
    left as it is, for what comes after the answers.
    """
    stop = LinkedEvent(cancel)
    columns, requests, places = _start_columns(engine, comparison)
    yield tuple(columns)
    painted = time.monotonic()
    stream = engine.stream(requests, comparison.decoding, stop, comparison.owner) if requests else iter(())
    try:
        for event in stream:
            place = places[event.index]
            if isinstance(event, PartialOutput):
                if event.candidate:
                    continue  # a column shows the first sample as it grows
                columns[place] = replace(columns[place], state="streaming", text=event.text, tokens=event.tokens)
            else:
                columns[place] = _finish_column(columns[place], event, comparison.problem.reference, score)
            if time.monotonic() - painted >= interval:
                yield tuple(columns)
                painted = time.monotonic()
    finally:
        stop.set()
        # Ended here and not left to the collector: whoever is next in line waits for the engine.
        close = getattr(stream, "close", None)
        if close is not None:
            close()
    yield tuple(columns)


class LinkedEvent(Event):
    """Set when it is set itself, or when the event is that it was made with."""

    def __init__(self, other: Event) -> None:
        super().__init__()
        self._other = other

    def is_set(self) -> bool:
        return super().is_set() or self._other.is_set()


def _start_columns(engine: LLMEngine, comparison: Comparison) -> tuple[list[Column], list[Request], list[int]]:
    """Empty columns, the engine's requests, and for each request the column it belongs to."""
    adapters = engine.adapters()
    columns: list[Column] = []
    requests: list[Request] = []
    places: list[int] = []
    for place, name in enumerate(comparison.methods):
        try:
            method = parse_method(name, adapters)
        except PromptOrTuneError as fault:
            columns.append(Column(name, "failed", error=str(fault)))
            continue
        columns.append(Column(method.name))
        requests.append(Request(comparison.problem, method, comparison.pool))
        places.append(place)
    return columns, requests, places


def _finish_column(column: Column, answer: RequestOutput, reference: str | None, score: Scorer) -> Column:
    if answer.error is not None:
        return replace(column, state="failed", answer=answer, error=answer.error)
    state: ColumnState = "stopped" if answer.cancelled else "done"
    # Half an answer has no score: it would be read as the method's.
    scores = () if answer.cancelled else tuple(score(answer.code, reference))
    return replace(column, state=state, text=answer.text, tokens=answer.tokens, answer=answer, scores=scores)
