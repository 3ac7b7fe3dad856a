"""Verdict of a comparison from scores and test results."""

from __future__ import annotations

from typing import Any

import pytest

from tests.ui.test_records import records
from ui.arena.events import without_partial_tests
from ui.compare.verdict import best_indices, verdict_text


def scored(method: Any, em: Any, codebleu: Any, *, parses: Any = 1.0, error: Any = None, cancelled: Any = False) -> Any:
    (record,) = records(("zero-shot",))
    scores = {"em": em, "codebleu": codebleu, "parses": parses}
    return record | {"method": method, "scores": scores, "error": error, "cancelled": cancelled}


def test_verdict_names_the_match_and_the_closest() -> None:
    runs = [scored("zero-shot", 0, 0.2), scored("rag-8", 0, 0.8), scored("lora-starter", 1, 1.0)]
    assert verdict_text(runs) == "lora-starter matches the reference; closest of the others is RAG 8."
    assert best_indices(runs) == {2}


def test_verdict_names_the_closest_without_a_match() -> None:
    runs = [scored("zero-shot", 0, 0.2), scored("rag-8", 0, 0.8), scored("icl-8", 0, 0.8)]
    assert verdict_text(runs) == "No answer matches the reference; RAG 8 and ICL 8 come closest (CodeBLEU 0.80)."
    assert best_indices(runs) == {1, 2}


def test_equal_scores_have_no_best_answer() -> None:
    same = [scored("zero-shot", 1, 1.0), scored("rag-8", 1, 1.0)]
    assert (verdict_text(same), best_indices(same)) == ("Every answer matches the reference.", frozenset())
    nothing = [scored("zero-shot", 0, 0.0), scored("rag-8", 0, 0.0)]
    assert (verdict_text(nothing), best_indices(nothing)) == ("No answer comes near the reference.", frozenset())


@pytest.mark.parametrize(
    ("parsing", "text"),
    [
        ([1, 1, 1], "All 3 answers parse as Python"),
        ([1, 0, 1], "2 of 3 answers parse as Python"),
        ([0, 0, 1], "1 of 3 answers parses as Python"),
        ([0, 0, 0], "None of 3 answers parse as Python"),
        ([1], "The answer parses as Python"),
        ([0], "The answer is not valid Python"),
    ],
)
def test_verdict_without_reference_counts_parsing_answers(parsing: Any, text: Any) -> None:
    runs = [scored("zero-shot", None, None, parses=value) for value in parsing]
    assert verdict_text(runs) == f"{text}; without a reference or tests there is nothing more to score."
    assert best_indices(runs) == frozenset()


def test_failed_and_stopped_answers_are_counted_but_not_best() -> None:
    runs = [
        scored("zero-shot", 0, 0.4),
        scored("lora-x", None, None, error="Broken."),
        scored("icl-8", None, None, cancelled=True),
    ]
    assert verdict_text(runs) == (
        "No answer matches the reference; zero-shot comes closest (CodeBLEU 0.40). "
        "1 method gave no answer; its column says why. 1 answer was stopped before its end and is not scored."
    )
    assert best_indices(runs) == {0}
    assert verdict_text([runs[1]]) == "1 method gave no answer; its column says why."


def after_tests(method: Any, passed: int, em: Any = None, codebleu: Any = None, *, of: int = 4) -> Any:
    record = scored(method, em, codebleu)
    tests = [{"passed": i < passed} for i in range(of)]
    return record | {"tests": tests, "scores": {"tests": passed / of, **record["scores"]}}


def test_passed_tests_have_precedence_over_exact_match_and_codebleu() -> None:
    runs = [after_tests("zero-shot", 1, 1, 1.0), after_tests("rag-8", 4, 0, 0.2), after_tests("icl-8", 2, 0, 0.9)]
    assert verdict_text(runs) == "RAG 8 passes all 4 tests; the others pass at most 2."
    assert best_indices(runs) == {1}
    assert verdict_text(runs[::2]) == "No answer passes all 4 tests; ICL 8 passes most (2 of 4)."
    assert best_indices(runs[::2]) == {1}


def test_reference_scores_decide_between_equal_test_results() -> None:
    runs = [after_tests("zero-shot", 4, 0, 0.3), after_tests("rag-8", 4, 0, 0.8), after_tests("icl-8", 0, 0, 0.9)]
    assert verdict_text(runs) == (
        "zero-shot and RAG 8 pass all 4 tests; the other passes none. "
        "Of these, RAG 8 comes closest to the reference (CodeBLEU 0.80)."
    )
    assert best_indices(runs) == {1}
    runs[0] = after_tests("zero-shot", 4, 1, 1.0)
    assert verdict_text(runs[:2]) == "Every answer passes all 4 tests. zero-shot also matches the reference."
    assert verdict_text(runs[:1]) == "The answer passes all 4 tests. It also matches the reference."


def test_reference_scores_decide_when_no_test_passes() -> None:
    runs = [after_tests("zero-shot", 0, 0, 0.3), after_tests("rag-8", 0, 0, 0.8)]
    assert verdict_text(runs) == (
        "No answer passes any of the 4 tests. No answer matches the reference; RAG 8 comes closest (CodeBLEU 0.80)."
    )
    assert best_indices(runs) == {1}
    nothing = [after_tests("zero-shot", 0), after_tests("rag-8", 0)]
    assert (verdict_text(nothing), best_indices(nothing)) == ("No answer passes any of the 4 tests.", frozenset())
    same = [after_tests("zero-shot", 1, of=2), after_tests("rag-8", 1, of=2)]
    assert (verdict_text(same), best_indices(same)) == (
        "No answer passes all 2 tests; each passes 1 of 2.",
        frozenset(),
    )


def test_answers_are_not_compared_where_one_was_not_tested() -> None:
    untested = scored("icl-8", 1, 1.0)
    runs = [after_tests("zero-shot", 4, 0, 0.3), untested, after_tests("rag-8", 0, 0, 0.2)]
    assert verdict_text(runs) == "The tests have not run on 1 of 3 answers, so these are not compared."
    assert best_indices(runs) == frozenset()
    failed = scored("lora-x", None, None, error="Broken.")
    stopped = scored("lora-y", None, None, cancelled=True)
    assert best_indices([runs[0], runs[2], failed, stopped]) == {0}
    assert best_indices([untested, scored("rag-8", 0, 0.2)]) == {0}, "where no test ran, the reference decides"


def test_test_results_of_one_answer_alone_are_dropped() -> None:
    before: list[Any] = [scored("zero-shot", 0, 0.3), scored("rag-8", 0, 0.2)]
    tested = after_tests("zero-shot", 4)
    noted: list[Any] = [record | {"tests_note": "The sandbox failed."} for record in before]
    assert without_partial_tests(before, [tested, noted[1]]) == tuple(noted)
    assert without_partial_tests(before, [tested, tested]) == (tested, tested)
