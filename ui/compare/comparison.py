"""One comparison: a question is sent to several methods, and their columns fill together from the engine's stream."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from threading import Event
from typing import TYPE_CHECKING, Literal

from errors import PromptOrTuneError
from evaluate.scoring import Score, score_code
from serve.types import PartialOutput, Request, RequestOutput, SamplingParams
from tasks.methods import MAX_INTENT_CHARS, MAX_NAME_CHARS, MAX_REFERENCE_CHARS, check_text, parse_method
from tasks.pasted_tests import parse_pasted_tests
from tasks.problem import Problem, Test, format_test
from ui.access.guard import check_dataset

if TYPE_CHECKING:
    from serve.engine.llm_engine import LLMEngine


MAX_COLUMNS = 8
REPAINT_SECONDS = 0.1
EMPTY_INTENT = "Say first what the Python should do: one sentence is enough."
NO_METHOD = "Add at least one method: each method gives one answer."

Scorer = Callable[[str, str | None], list[Score]]
ColumnState = Literal["waiting", "streaming", "done", "failed", "stopped"]


@dataclass(frozen=True)
class Comparison:
    """A problem, the names of the methods, the sampling parameters, and the data set of the examples.

    `tests_text` is the text of the tests field. `owner` is the visitor id and `address` the visitor's address: the
    engine is shared fairly between both.
    """

    problem: Problem
    methods: tuple[str, ...]
    decoding: SamplingParams = field(default_factory=SamplingParams)
    pool: str = "starter"
    tests_text: str = ""
    owner: str = ""
    address: str = ""


@dataclass(frozen=True)
class Column:
    """One method's answer so far. `error` is the message of a failed one."""

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
    own: bool = False,
) -> Comparison:
    """Build a comparison; `own` says that the visitor may use the data sets of the owner of the app.

    Raises PromptOrTuneError as `check_request` does, and for a pool that this visitor may not use.
    """
    check_request(problem.intent, problem.reference, methods)
    pool = check_dataset(pool, own=own, examples=True)
    return Comparison(problem, tuple(methods), decoding or SamplingParams(), pool, tests_text)


def check_request(intent: object, reference: object, methods: Sequence[object]) -> None:
    """Raise PromptOrTuneError without a question, without methods, beyond MAX_COLUMNS, and for too long texts.

    This takes no time, so it comes before the visitor's quota; parsing the tests comes after it.
    """
    if not check_text(intent, "The question", MAX_INTENT_CHARS).strip():
        raise PromptOrTuneError(EMPTY_INTENT)
    if reference is not None:
        check_text(reference, "The reference", MAX_REFERENCE_CHARS)
    if not isinstance(methods, list | tuple):
        raise PromptOrTuneError("The methods must be a list of names.")
    if not methods:
        raise PromptOrTuneError(NO_METHOD)
    if len(methods) > MAX_COLUMNS:
        raise PromptOrTuneError(f"{len(methods)} methods asked for: compare at most {MAX_COLUMNS} at once.")
    for name in methods:
        check_text(name, "The name of a method", MAX_NAME_CHARS)


def compare(
    engine: LLMEngine,
    comparison: Comparison,
    cancel: Event,
    score: Scorer = score_code,
    interval: float = REPAINT_SECONDS,
) -> Generator[tuple[Column, ...]]:
    """Yield all columns while they fill, at most once per `interval` seconds; the last value is complete.

    An unknown method fails in its own column. Closing the iterator, or `cancel`, stops the engine; `cancel` itself is
    not set, because the tests after the answers use it too.
    """
    stop = LinkedEvent(cancel)
    columns, requests, column_indices = _start_columns(engine, comparison)
    yield tuple(columns)
    last_yield = time.monotonic()
    stream = engine.stream(requests, comparison.decoding, stop, comparison.owner) if requests else iter(())
    try:
        for event in stream:
            i = column_indices[event.index]
            if isinstance(event, PartialOutput):
                if event.candidate:
                    continue  # a column streams its first sample only
                columns[i] = replace(columns[i], state="streaming", text=event.text, tokens=event.tokens)
            else:
                columns[i] = _finish_column(columns[i], event, comparison.problem.reference, score)
            if time.monotonic() - last_yield >= interval:
                yield tuple(columns)
                last_yield = time.monotonic()
    finally:
        stop.set()
        # Closed here, not by the garbage collector: the next run waits for the engine.
        close = getattr(stream, "close", None)
        if close is not None:
            close()
    yield tuple(columns)


class LinkedEvent(Event):
    """An event that is set when it or `other` is set."""

    def __init__(self, other: Event) -> None:
        super().__init__()
        self._other = other

    def is_set(self) -> bool:
        return super().is_set() or self._other.is_set()


def _start_columns(engine: LLMEngine, comparison: Comparison) -> tuple[list[Column], list[Request], list[int]]:
    """Return empty columns, the requests for the engine, and the index of the column of each request."""
    adapters = engine.adapters()
    columns: list[Column] = []
    requests: list[Request] = []
    column_indices: list[int] = []
    for i, name in enumerate(comparison.methods):
        try:
            method = parse_method(name, adapters)
        except PromptOrTuneError as error:
            columns.append(Column(name, "failed", error=str(error)))
            continue
        columns.append(Column(method.name))
        requests.append(Request(comparison.problem, method, comparison.pool))
        column_indices.append(i)
    return columns, requests, column_indices


def _finish_column(column: Column, answer: RequestOutput, reference: str | None, score: Scorer) -> Column:
    if answer.error is not None:
        return replace(column, state="failed", answer=answer, error=answer.error)
    state: ColumnState = "stopped" if answer.cancelled else "done"
    # An incomplete answer has no scores: they would count as those of the method.
    scores = () if answer.cancelled else tuple(score(answer.code, reference))
    return replace(column, state=state, text=answer.text, tokens=answer.tokens, answer=answer, scores=scores)


CUSTOM_PROBLEM_ID = "typed"


@dataclass(frozen=True)
class QuestionFields:
    """The question, the reference and the tests as the page has them, and the selected test problem."""

    intent: str
    reference: str | None = None
    tests: str | None = None
    selected_problem: Problem | None = None

    @property
    def is_custom_question(self) -> bool:
        """Whether the question differs from that of the selected problem, or no problem is selected."""
        return self.selected_problem is None or self.selected_problem.intent.strip() != self.intent.strip()

    @property
    def stale_reference(self) -> bool:
        """Whether the reference is that of the selected problem although the question was changed."""
        original = self.selected_problem.reference if self.selected_problem else None
        return _is_filled(self.reference) and self._question_changed and self.reference == original

    @property
    def stale_tests(self) -> bool:
        """Whether the tests are those of the selected problem although the question was changed."""
        return _is_filled(self.tests) and self._question_changed and self._tests_unchanged

    @property
    def _question_changed(self) -> bool:
        return self.selected_problem is not None and self.is_custom_question

    @property
    def _tests_unchanged(self) -> bool:
        return self.selected_problem is not None and self.tests == format_tests(self.selected_problem.tests)


def build_problem(fields: QuestionFields) -> Problem:
    """Return the problem. Raises DataError for tests that cannot be read.

    The selected problem keeps its id while the question is unchanged; by the id RAG excludes the problem itself from
    its examples. Its reference and tests are dropped when the question changes: scores would be meaningless.
    """
    code = fields.reference if _is_filled(fields.reference) and not fields.stale_reference else None
    tests = _parse_tests(fields)
    if fields.selected_problem is not None and not fields.is_custom_question:
        return replace(fields.selected_problem, reference=code, tests=tests)
    return Problem(CUSTOM_PROBLEM_ID, fields.intent, code, tests)


def format_tests(tests: Sequence[Test]) -> str:
    """Return tests as text that `parse_pasted_tests` reads."""
    return "\n".join(map(format_test, tests))


def _parse_tests(fields: QuestionFields) -> tuple[Test, ...]:
    text = fields.tests or ""
    if not _is_filled(text) or fields.stale_tests:
        return ()
    if fields.selected_problem is not None and fields._tests_unchanged:
        return fields.selected_problem.tests  # with their setup code, which the field does not contain
    return parse_pasted_tests(text)


def _is_filled(text: str | None) -> bool:
    return bool(text and text.strip())
