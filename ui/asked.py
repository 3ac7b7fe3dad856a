"""What the fields of the page ask: a problem with its reference and its tests, and what no longer belongs to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from errors import PromptOrTuneError
from tasks.pasted_tests import parse_pasted_tests
from tasks.problem import AssertTest, Problem, Test

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
    except PromptOrTuneError as fault:
        return (), str(fault)


def _is_filled(text: str | None) -> bool:
    return bool(text and text.strip())
