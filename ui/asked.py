"""What the fields of the page ask: a problem with its reference and its tests, and what no longer belongs to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from errors import PeftArenaError
from tasks.pasted_tests import parse_pasted_tests
from tasks.problem import AssertTest, Problem, Test

TYPED_ID = "typed"


@dataclass(frozen=True)
class Fields:
    """The words of the question, the reference and the tests as they stand on the page, and the chosen problem."""

    intent: str
    reference: str | None = None
    tests: str | None = None
    chosen: Problem | None = None

    @property
    def own_words(self) -> bool:
        """Whether the question is no longer that of the chosen problem, or there is none."""
        return self.chosen is None or self.chosen.intent.strip() != self.intent.strip()

    @property
    def lost_reference(self) -> bool:
        """Whether the reference belongs to a test problem whose words are no longer those of the question."""
        theirs = self.chosen.reference if self.chosen else None
        return _stays(self.reference) and self._moved_on and self.reference == theirs

    @property
    def lost_tests(self) -> bool:
        """The same of the tests."""
        return _stays(self.tests) and self._moved_on and self._untouched_tests

    @property
    def _moved_on(self) -> bool:
        return self.chosen is not None and self.own_words

    @property
    def _untouched_tests(self) -> bool:
        return self.chosen is not None and self.tests == shown_tests(self.chosen.tests)


def problem_of(fields: Fields) -> tuple[Problem, str]:
    """What is asked, and the sentence why its tests are none ('' where they are good or there are none).

    The chosen problem keeps its id while its intent is untouched, and with it RAG never retrieves its own answer. Its
    reference and its tests do not go with other words: scores against them would say nothing.
    """
    code = fields.reference if _stays(fields.reference) and not fields.lost_reference else None
    tests, note = _tests(fields)
    if fields.chosen is not None and not fields.own_words:
        return replace(fields.chosen, reference=code, tests=tests), note
    return Problem(TYPED_ID, fields.intent, code, tests), note


def shown_tests(tests: Sequence[Test]) -> str:
    """Tests as a person would paste them."""
    return "\n".join(
        test.code if isinstance(test, AssertTest) else f"input:\n{test.stdin}\noutput:\n{test.expected}\n"
        for test in tests
    )


def _tests(fields: Fields) -> tuple[tuple[Test, ...], str]:
    text = fields.tests or ""
    if not _stays(text) or fields.lost_tests:
        return (), ""
    if fields.chosen is not None and fields._untouched_tests:
        return fields.chosen.tests, ""  # with their setup, which the field does not show
    try:
        return parse_pasted_tests(text), ""
    except PeftArenaError as fault:
        return (), str(fault)


def _stays(text: str | None) -> bool:
    return bool(text and text.strip())
