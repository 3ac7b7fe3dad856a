"""Comparison and columns from engine stream.

One comparison: an intent goes to several methods, and their columns fill together.

The page and the endpoint both run through `compare`, so what a person sees and what a program gets is the same.

What the fields of the page ask: a problem with its reference and its tests, and what no longer belongs to it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from threading import Event
from typing import TYPE_CHECKING, Literal

from errors import PromptOrTuneError
from evaluate.scoring import Score, score_code
from serve.types import PartialOutput, Request, RequestOutput, SamplingParams
from tasks.methods import parse_method
from tasks.pasted_tests import parse_pasted_tests
from tasks.problem import AssertTest, Problem, Test

if TYPE_CHECKING:
    from serve.engine.llm_engine import LLMEngine


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


CUSTOM_PROBLEM_ID = "typed"


@dataclass(frozen=True)
class QuestionFields:
    """The words of the question, the reference and the tests as they stand on the page, and the chosen problem."""

    intent: str
    reference: str | None = None
    tests: str | None = None
    selected_problem: Problem | None = None

    @property
    def is_custom_question(self) -> bool:
        """Whether the question is no longer that of the chosen problem, or there is none."""
        return self.selected_problem is None or self.selected_problem.intent.strip() != self.intent.strip()

    @property
    def stale_reference(self) -> bool:
        """Whether the reference belongs to a test problem whose words are no longer those of the question."""
        theirs = self.selected_problem.reference if self.selected_problem else None
        return _is_filled(self.reference) and self._question_changed and self.reference == theirs

    @property
    def stale_tests(self) -> bool:
        """The same of the tests."""
        return _is_filled(self.tests) and self._question_changed and self._tests_unchanged

    @property
    def _question_changed(self) -> bool:
        return self.selected_problem is not None and self.is_custom_question

    @property
    def _tests_unchanged(self) -> bool:
        return self.selected_problem is not None and self.tests == format_tests(self.selected_problem.tests)


def build_problem(fields: QuestionFields) -> tuple[Problem, str]:
    """What is asked, and the sentence why its tests are none ('' where they are good or there are none).

    The chosen problem keeps its id while its intent is untouched, and with it RAG never retrieves its own answer. Its
    reference and its tests do not go with other words: scores against them would say nothing.
    """
    code = fields.reference if _is_filled(fields.reference) and not fields.stale_reference else None
    tests, note = _parse_tests(fields)
    if fields.selected_problem is not None and not fields.is_custom_question:
        return replace(fields.selected_problem, reference=code, tests=tests), note
    return Problem(CUSTOM_PROBLEM_ID, fields.intent, code, tests), note


def format_tests(tests: Sequence[Test]) -> str:
    """Tests as a person would paste them."""
    return "\n".join(
        test.code if isinstance(test, AssertTest) else f"input:\n{test.stdin}\noutput:\n{test.expected}\n"
        for test in tests
    )


def _parse_tests(fields: QuestionFields) -> tuple[tuple[Test, ...], str]:
    text = fields.tests or ""
    if not _is_filled(text) or fields.stale_tests:
        return (), ""
    if fields.selected_problem is not None and fields._tests_unchanged:
        return fields.selected_problem.tests, ""  # with their setup, which the field does not show
    try:
        return parse_pasted_tests(text), ""
    except PromptOrTuneError as error:
        return (), str(error)


def _is_filled(text: str | None) -> bool:
    return bool(text and text.strip())
