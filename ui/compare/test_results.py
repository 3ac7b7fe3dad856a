"""Which columns of a comparison say the same: letter by letter, or with the same syntax tree.

What the tests said of one answer, as HTML. Every text of a test, a program or a sandbox is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from evaluate.metrics.basic import exact_match, syntax_tree_match
from ui.code_html import code_html
from ui.labels import method_label
from ui.records import Record


def agreement_notes(records: Sequence[Record]) -> list[str]:
    """One sentence a column about which others gave the same answer; '' where it has no whole answer or is alone."""
    answered = [place for place, record in enumerate(records) if _is_complete_answer(record)]
    if len(answered) < 2:
        return [""] * len(records)
    return [_agreement_note(records, place, answered) if place in answered else "" for place in range(len(records))]


def _agreement_note(records: Sequence[Record], index: int, answered: Sequence[int]) -> str:
    mine = records[index]["code"]
    others = [other for other in answered if other != index]
    same = [other for other in others if exact_match(mine, records[other]["code"])]
    alike = [other for other in others if other not in same and syntax_tree_match(mine, records[other]["code"])]
    parts = [
        f"{kind} as {', '.join(method_label(records[other]['method']) for other in found)}"
        for kind, found in (("same code", same), ("same syntax tree", alike))
        if found
    ]
    text = "; ".join(parts) or "no other column says this"
    return text[0].upper() + text[1:]


def _is_complete_answer(record: Record) -> bool:
    return record["error"] is None and not record["cancelled"] and bool(record["code"].strip())


# A failing test is worth reading, ten of them are a wall: the rest folds out.
MAX_FAILURES = 2
MAX_TEXT_LENGTH = 1_200
MAX_INPUT_LENGTH = 60
UNPROTECTED_NOTE = "ran unprotected: what was expected lay beside the answer's own code, which could have cheated"


def running_tests_html(count: int) -> str:
    """While the tests of a column run, or wait for the others'."""
    return f'<p class="tally">Running {format_count_of_tests(count)}<span class="caret" aria-hidden="true"></span></p>'


def results_panel_html(results: Sequence[Mapping[str, Any]]) -> str:
    """The tally, the first failures with their reasons, and all tests in a fold; '' where none ran."""
    if not results:
        return ""
    failures = [result for result in results if not result["passed"]]
    shown = "".join(f"<li>{escape(_truncate(_failure_reason(result)))}</li>" for result in failures[:MAX_FAILURES])
    rest = len(failures) - MAX_FAILURES
    more = f'<p class="muted">and {rest} more below</p>' if rest > 0 else ""
    reasons = f'<ul class="reasons">{shown}</ul>' if shown else ""
    every = "".join(_result_item(number, result) for number, result in enumerate(results, start=1))
    return (
        f'<p class="tally">{escape(pass_count_text(results))}{_result_cells(results)}</p>'
        f"{reasons}{more}{_unprotected_note(results)}"
        f'<details><summary>All tests <span class="count">{len(results)}</span></summary>'
        f'<ol class="test-list">{every}</ol></details>'
    )


def pass_count_text(results: Sequence[Mapping[str, Any]]) -> str:
    """'3 of 5 tests pass', 'all 5 tests pass', 'none of 5 tests passes', 'the test passes'."""
    passed, total = sum(bool(result["passed"]) for result in results), len(results)
    if total == 1:
        return "The test passes" if passed else "The test fails"
    if passed == total:
        return f"All {total} tests pass"
    return f"{passed} of {total} tests pass{'es' if passed == 1 else ''}"


def format_count_of_tests(count: int) -> str:
    """'1 test', '5 tests'."""
    return f"{count} test{'' if count == 1 else 's'}"


def _failure_reason(result: Mapping[str, Any]) -> str:
    """The reason, with what was given where the reason does not name it."""
    reason, given = str(result["reason"]), " ".join(str(result["given"]).split())
    if result["kind"] != "stdio" and given in reason:
        return reason
    short = given if len(given) <= MAX_INPUT_LENGTH else f"{given[:MAX_INPUT_LENGTH]}…"
    return f"input '{short}': {reason}" if result["kind"] == "stdio" else f"{short}: {reason}"


def _result_cells(results: Sequence[Mapping[str, Any]]) -> str:
    # The tally says it in words; the cells only show where in the list the failures lie.
    cells = "".join(f'<span class="{"ok" if result["passed"] else "no"}"></span>' for result in results)
    return f'<span class="cells" aria-hidden="true">{cells}</span>'


def _unprotected_note(results: Sequence[Mapping[str, Any]]) -> str:
    count = sum(not result["protected"] for result in results)
    if not count:
        return ""
    who = (
        "The tests" if count == len(results) > 1 else "The test" if len(results) == 1 else format_count_of_tests(count)
    )
    return f'<p class="note">{who} {UNPROTECTED_NOTE}.</p>'


def _result_item(number: int, result: Mapping[str, Any]) -> str:
    passed = bool(result["passed"])
    pairs = [("expected", result["expected"]), ("got", result["got"])]
    values = "".join(
        f"<div><dt>{name}</dt><dd>{escape(_truncate(str(value)))}</dd></div>"
        for name, value in pairs
        if str(value).strip()
    )
    reason = "" if passed else f'<p class="reason">{escape(_truncate(str(result["reason"])))}</p>'
    mark = "passed" if passed else "failed"
    how = [] if result["protected"] else ["unprotected"]
    about = " · ".join([mark, *how, f"{result['seconds']:.2f} s"])
    given = (
        f'<pre class="code" tabindex="0" aria-label="Test {number}"><code>{code_html(_truncate(str(result["given"])))}'
    )
    return (
        f'<li class="{"ok" if passed else "no"}"><p class="about">{about}</p>{given}</code></pre>'
        f"{f'<dl>{values}</dl>' if values else ''}{reason}</li>"
    )


def _truncate(text: str) -> str:
    return (
        text
        if len(text) <= MAX_TEXT_LENGTH
        else f"{text[:MAX_TEXT_LENGTH]} … ({len(text) - MAX_TEXT_LENGTH:,} more characters)"
    )
