"""HTML of test results, and agreement of columns."""

from __future__ import annotations

from typing import Any

import pytest

from tests.ui.test_compare_view import Reader, assert_harmless
from tests.ui.test_records import records
from ui.compare.view import agreement_notes, finished_view, pass_count_text, results_panel_html


def records_with_code(*codes: str | None, **changes: Any) -> list[Any]:
    (record,) = records(("zero-shot",))
    names = ("zero-shot", "icl-8", "rag-8", "lora-x")
    return [
        record | {"method": name, "code": code or "", "error": None if code is not None else "Broken."} | changes
        for name, code in zip(names, codes, strict=False)
    ]


def test_agreement_prefers_same_code_over_same_tree() -> None:
    notes = agreement_notes(records_with_code("x = 'a'", "x = 'a' ", 'x = "a"', "y"))
    assert notes == [
        "Same code as ICL 8; same syntax tree as RAG 8",
        "Same code as zero-shot; same syntax tree as RAG 8",
        "Same syntax tree as zero-shot, ICL 8",
        "No other column says this",
    ]


def test_failed_and_empty_answers_have_no_agreement() -> None:
    assert agreement_notes(records_with_code("x", None, "", "x")) == [
        "Same code as lora-x",
        "",
        "",
        "Same code as zero-shot",
    ]
    assert agreement_notes(records_with_code("x", None)) == ["", ""]


def test_agreement_is_displayed_only_without_a_reference() -> None:
    alone = finished_view(records_with_code("x", "x", reference=None))["cards"][0]["numbers"]
    assert "Same code as ICL 8." in Reader(alone).text
    assert "CodeBLEU" not in Reader(alone).text
    against = Reader(finished_view(records_with_code("x", "x", reference="y"))["cards"][0]["numbers"]).text
    assert "Same code" not in against
    assert "data flow" in against


def result(*, passed: bool = False, protected: bool = True, reason: str = "wrong") -> dict[str, Any]:
    return {
        "passed": passed, "kind": "call", "given": "f(1)", "expected": "2", "got": "3", "reason": reason,
        "status": "ok", "protected": protected, "seconds": 0.1,
    }  # fmt: skip


def test_panel_shows_the_tally_and_the_first_failures() -> None:
    text = assert_harmless(results_panel_html([result(passed=True), *[result(reason=f"reason {n}") for n in range(4)]]))
    assert text.startswith("1 of 5 tests passes")
    assert text.index("reason 1") < text.index("and 2 more below") < text.index("reason 3")
    assert "unprotected" not in text
    assert results_panel_html([]) == ""


def test_reason_contains_the_input() -> None:
    printed = result(reason="printed nothing, expected '4'") | {"kind": "stdio", "given": "2\n3\n"}
    assert "input '2 3': printed nothing, expected '4'" in Reader(results_panel_html([printed])).text
    assert (
        "f(1): ended before it answered" in Reader(results_panel_html([result(reason="ended before it answered")])).text
    )
    assert Reader(results_panel_html([result(reason="f(1) gave 3, expected 2")])).text.count("f(1) gave 3") == 2


def test_panel_notes_unprotected_tests() -> None:
    assert "1 test ran unprotected" in Reader(results_panel_html([result(), result(protected=False)])).text
    assert "The tests ran unprotected" in Reader(results_panel_html([result(protected=False)] * 2)).text


@pytest.mark.parametrize(
    ("passed", "words"),
    [
        ([True], "The test passes"),
        ([False], "The test fails"),
        ([True] * 3, "All 3 tests pass"),
        ([False] * 3, "0 of 3 tests pass"),
        ([True, False], "1 of 2 tests passes"),
    ],
)
def test_pass_count_is_described(passed: list[bool], words: str) -> None:
    assert pass_count_text([result(passed=value) for value in passed]) == words
