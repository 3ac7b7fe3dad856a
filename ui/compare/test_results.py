"""Test results of one answer as HTML, and which columns of a comparison agree.

Every text of a test, a program or a sandbox is escaped by the templates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from evaluate.metrics.basic import exact_match, syntax_tree_match
from ui.html import code_html, render
from ui.labels import method_label
from ui.records import Record

# Only the first failures are listed above the fold with all tests.
MAX_FAILURES = 2
MAX_TEXT_LENGTH = 1_200
MAX_INPUT_LENGTH = 60
UNPROTECTED_NOTE = "ran unprotected: what was expected lay beside the answer's own code, which could have cheated"


def agreement_notes(records: Sequence[Record]) -> list[str]:
    """Return a note for each record that names the columns with the same answer; '' without a complete answer."""
    answered = [i for i, record in enumerate(records) if _is_complete_answer(record)]
    if len(answered) < 2:
        return [""] * len(records)
    return [_agreement_note(records, i, answered) if i in answered else "" for i in range(len(records))]


def _agreement_note(records: Sequence[Record], index: int, answered: Sequence[int]) -> str:
    mine = records[index]["code"]
    others = [other for other in answered if other != index]
    same = [other for other in others if exact_match(mine, records[other]["code"])]
    alike = [other for other in others if other not in same and syntax_tree_match(mine, records[other]["code"])]
    parts = [
        f"{kind} as {', '.join(method_label(records[other]['method']) for other in group)}"
        for kind, group in (("same code", same), ("same syntax tree", alike))
        if group
    ]
    text = "; ".join(parts) or "no other column says this"
    return text[0].upper() + text[1:]


def _is_complete_answer(record: Record) -> bool:
    return record["error"] is None and not record["cancelled"] and bool(record["code"].strip())


def running_tests_html(count: int) -> Markup:
    """Return the panel of a column whose tests are running or waiting."""
    return Markup('<p class="tally">Running {}<span class="caret" aria-hidden="true"></span></p>').format(
        format_count_of_tests(count)
    )


def results_panel_html(results: Sequence[Mapping[str, Any]]) -> Markup:
    """Return the tally, the first failures with their reasons, and all tests in a fold; '' without results."""
    if not results:
        return Markup("")
    failures = [_truncate(_failure_reason(result)) for result in results if not result["passed"]]
    return render(
        "compare/test_results.html.jinja",
        tally=pass_count_text(results),
        failures=failures[:MAX_FAILURES],
        more_failures=len(failures) - MAX_FAILURES,
        unprotected=_unprotected_note(results),
        results=[_result_values(result) for result in results],
    )


def pass_count_text(results: Sequence[Mapping[str, Any]]) -> str:
    """Return '3 of 5 tests pass', 'All 5 tests pass' or 'The test passes'."""
    passed, total = sum(bool(result["passed"]) for result in results), len(results)
    if total == 1:
        return "The test passes" if passed else "The test fails"
    if passed == total:
        return f"All {total} tests pass"
    return f"{passed} of {total} tests pass{'es' if passed == 1 else ''}"


def format_count_of_tests(count: int) -> str:
    """Return '1 test', '5 tests'."""
    return f"{count} test{'' if count == 1 else 's'}"


def _failure_reason(result: Mapping[str, Any]) -> str:
    """Return the reason, with the input where the reason does not contain it."""
    reason, given = str(result["reason"]), " ".join(str(result["given"]).split())
    if result["kind"] != "stdio" and given in reason:
        return reason
    short = given if len(given) <= MAX_INPUT_LENGTH else f"{given[:MAX_INPUT_LENGTH]}…"
    return f"input '{short}': {reason}" if result["kind"] == "stdio" else f"{short}: {reason}"


def _unprotected_note(results: Sequence[Mapping[str, Any]]) -> str:
    count = sum(not result["protected"] for result in results)
    if not count:
        return ""
    tests = (
        "The tests" if count == len(results) > 1 else "The test" if len(results) == 1 else format_count_of_tests(count)
    )
    return f"{tests} {UNPROTECTED_NOTE}."


def _result_values(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that the template needs for one test."""
    passed = bool(result["passed"])
    about = ["passed" if passed else "failed", *([] if result["protected"] else ["unprotected"])]
    values = [("expected", str(result["expected"])), ("got", str(result["got"]))]
    return {
        "passed": passed,
        "about": " · ".join([*about, f"{result['seconds']:.2f} s"]),
        "given": code_html(_truncate(str(result["given"]))),
        "values": [(name, _truncate(value)) for name, value in values if value.strip()],
        "reason": "" if passed else _truncate(str(result["reason"])),
    }


def _truncate(text: str) -> str:
    if len(text) <= MAX_TEXT_LENGTH:
        return text
    return f"{text[:MAX_TEXT_LENGTH]} … ({len(text) - MAX_TEXT_LENGTH:,} more characters)"
