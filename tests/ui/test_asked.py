"""What the fields ask: a test problem keeps its id, its reference and its tests while its words are its own."""

from __future__ import annotations

from tasks.problem import AssertTest, Problem, StdioTest
from ui.compare.run import QuestionFields, build_problem, format_tests

CHOSEN = Problem(
    "starter-test-1", "reverse a string", "s[::-1]", (AssertTest("assert f('ab') == 'ba'", setup="import re"),)
)
TESTS = "assert f('ab') == 'ba'"


def test_a_test_problem_keeps_its_id_while_its_words_are_its_own() -> None:
    problem, note = build_problem(QuestionFields(" reverse a string\n", "s[::-1]", TESTS, CHOSEN))
    assert (problem.id, note) == ("starter-test-1", "")
    assert problem.tests == CHOSEN.tests, "the setup of its tests too, though the field does not show it"


def test_its_reference_and_tests_do_not_go_with_other_words() -> None:
    fields = QuestionFields("sort a list", "s[::-1]", TESTS, CHOSEN)
    problem, _ = build_problem(fields)
    assert (problem.id, problem.reference, problem.tests) == ("typed", None, ())
    assert fields.stale_reference
    assert fields.stale_tests


def test_what_a_person_gives_goes_with_any_words() -> None:
    fields = QuestionFields("sort a list", "sorted(l)", "assert f([2, 1]) == [1, 2]", CHOSEN)
    problem, note = build_problem(fields)
    assert (problem.id, problem.reference, note) == ("typed", "sorted(l)", "")
    assert problem.tests == (AssertTest("assert f([2, 1]) == [1, 2]"),)
    assert not fields.stale_reference
    assert not fields.stale_tests


def test_blank_fields_are_none() -> None:
    assert build_problem(QuestionFields("sort a list", "  ", "\n")) == (Problem("typed", "sort a list"), "")
    assert build_problem(QuestionFields("reverse a string", "", "", CHOSEN))[0].tests == ()


def test_tests_that_are_none_get_a_sentence_with_their_line() -> None:
    problem, note = build_problem(QuestionFields("sort a list", None, f"{TESTS}\nassert f( ==\n"))
    assert problem.tests == ()
    assert "line 2" in note.lower()
    assert note.endswith(".")


def test_shown_tests_mean_the_same_when_they_are_pasted() -> None:
    tests = (StdioTest("1 2\n3\n", "6\n"), StdioTest("", "0\n"))
    assert build_problem(QuestionFields("sum", None, format_tests(tests)))[0].tests == tests
