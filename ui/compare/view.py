"""Comparison view: the question, and a card with answer, metrics, tests and details for each method.

Test results of one answer as HTML, and which columns of a comparison agree. Every text of a test, a program or a
sandbox is escaped by the templates.

The values are drawn by js/comparison.js, section by section. Every text of a person, a model or a file is escaped by
its template or by Pygments.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict

from markupsafe import Markup, escape

from evaluate.metrics.basic import exact_match, syntax_tree_match
from models.source import BaseIdentity
from ui.compare.comparison import Column, Comparison
from ui.compare.verdict import best_indices
from ui.components import (
    base_label,
    code_html,
    decoding_label,
    format_date,
    format_time,
    method_hint,
    method_label,
    model_label,
    plain_html,
    render,
    streaming_html,
)
from ui.test_bench import Record, make_record

# Only the first failures are listed above the fold with all tests.
MAX_FAILURES = 2
MAX_TEXT_LENGTH = 1_200
MAX_INPUT_LENGTH = 60
UNPROTECTED_NOTE = "ran unprotected: what was expected lay beside the answer's own code, which could have cheated"
DASH = "–"
FIRST_EXAMPLE_PATH = Path(__file__).with_name("first_example.json")
_METRIC_LABELS = {
    "tests": "Tests passed",
    "parses": "Parses as Python",
    "em": "Exact match",
    "em_tree": "Same syntax tree",
    "codebleu": "CodeBLEU",
    "codebleu.ngram": "· tokens in a row",
    "codebleu.weighted_ngram": "· the same, keywords first",
    "codebleu.syntax": "· syntax",
    "codebleu.dataflow": "· data flow",
}
_CODEBLEU_PARTS = {"ngram": "n-gram", "weighted_ngram": "weighted", "syntax": "syntax", "dataflow": "data flow"}
_log = logging.getLogger(__name__)


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


class ColumnView(TypedDict):
    """The sections of one column as HTML; `raw` is its code, for copying and comparing."""

    label: str
    state: str
    best: bool
    head: str
    code: str
    numbers: str
    tests: str
    details: str
    raw: str


class ComparisonView(TypedDict):
    """All columns under the question. A new `run` makes the page draw everything anew."""

    run: str
    head: str
    cards: list[ColumnView]
    reference: str | None


@dataclass(frozen=True)
class RecordedExample:
    """A recorded run, and the ids of the validation rows of house that are suggested (record_example.py)."""

    suggestions: tuple[str, ...]
    records: tuple[Record, ...]


def streaming_column(column: Column) -> ColumnView:
    """Return the view of a column that waits for its first token or is streaming."""
    badge = {"waiting": "reading the prompt", "streaming": "answering"}.get(column.state, "")
    return ColumnView(
        label=method_label(column.method),
        state=column.state,
        best=False,
        head=_column_header(method_label(column.method), method_hint(column.method), badge, can_copy=False),
        code=_code_block(streaming_html(column.text)),
        numbers=_metrics_html([("tokens", str(column.tokens) if column.tokens else DASH)]),
        tests="",
        details="",
        raw="",
    )


def finished_column(
    record: Record, *, is_best: bool, label: str = "", agreement: str = "", tests_running: bool = False
) -> ColumnView:
    """Return the view of a record: just answered, from the history, or from the recorded example.

    `label` replaces the name of the method; `agreement` names the columns with the same answer; `tests_running` shows
    that its tests have not ended.
    """
    failed = record["error"] is not None
    state = "failed" if failed else "stopped" if record["cancelled"] else "done"
    badge = _best_badge(record) if is_best else {"failed": "no answer", "stopped": "stopped"}.get(state, "")
    label = label or method_label(record["method"])
    return ColumnView(
        label=label,
        state=state,
        best=is_best,
        head=_column_header(label, method_hint(record["method"]), badge, can_copy=bool(record["code"].strip())),
        code=_failed_html(record) if failed else _answer_html(record["code"]),
        numbers="" if failed else _result_metrics(record, agreement),
        tests=running_tests_html(len(record["asked_tests"])) if tests_running else results_panel_html(record["tests"]),
        details=_details_html(record),
        raw=record["code"],
    )


def _best_badge(record: Record) -> str:
    if record["scores"].get("tests") == 1:
        return "passes"
    return "matches" if record["scores"].get("em") == 1 else "closest"


def _column_header(label: str, hint: str, badge: str, *, can_copy: bool) -> str:
    # A plain string: callers edit it.
    return str(render("compare/column_header.html.jinja", label=label, hint=hint, badge=badge, can_copy=can_copy))


def _code_block(html: Markup) -> Markup:
    return Markup('<pre class="code" tabindex="0"><code>{}</code></pre>').format(html)


def _answer_html(code: str) -> Markup:
    return _code_block(code_html(code)) if code.strip() else Markup('<p class="muted">An empty answer.</p>')


def _failed_html(record: Record) -> Markup:
    """Return the error message, and the part of the answer before it if there is any."""
    message = Markup('<p class="error-message">{}</p>').format(record["error"] or "")
    return message + _answer_html(record["code"]) if record["code"].strip() else message


def _metrics_html(
    metrics: Sequence[tuple[str, str]],
    codebleu_parts: Sequence[tuple[str, str, str]] = (),
    notes: Sequence[str] = (),
) -> Markup:
    return render("compare/metrics.html.jinja", metrics=metrics, codebleu_parts=codebleu_parts, notes=notes)


def _result_metrics(record: Record, agreement: str) -> Markup:
    scores = record["scores"]
    rate = record["tokens_per_second"]
    metrics = [
        ("parses", _yes_no(scores.get("parses"))),
        *(_reference_metrics(scores) if record["reference"] else []),
        ("tokens", str(record["tokens"])),
        ("seconds", f"{record['seconds']:.{1 if record['seconds'] >= 1 else 2}f}"),
        *([("tokens/s", f"{rate:.0f}")] if rate is not None else []),
    ]
    notes = [f"{agreement}."] if agreement else []
    return _metrics_html(metrics, _codebleu_parts(scores), [*notes, *record["notes"]])


def _reference_metrics(scores: Mapping[str, float | None]) -> list[tuple[str, str]]:
    return [("EM", _format_number(scores.get("em"), 0)), ("CodeBLEU", _format_number(scores.get("codebleu"), 2))]


def _codebleu_parts(scores: Mapping[str, float | None]) -> list[tuple[str, str, str]]:
    """Return (label, value, width of its bar) of the four parts of CodeBLEU; [] without CodeBLEU."""
    if scores.get("codebleu") is None:
        return []
    values = [(label, scores.get(f"codebleu.{part}")) for part, label in _CODEBLEU_PARTS.items()]
    return [(label, _format_number(value, 2), f"{value or 0:.0%}") for label, value in values]


def _yes_no(value: float | None) -> str:
    return DASH if value is None else "yes" if value else "no"


def _format_number(value: float | None, digits: int) -> str:
    return DASH if value is None else f"{value:.{digits}f}"


def _details_html(record: Record) -> Markup:
    scores = record["scores"].items()
    return render(
        "compare/column_details.html.jinja",
        has_code=bool(record["code"].strip()),
        candidates=list(_candidates(record["candidates"][1:])),
        examples=[(plain_html(example["intent"]), code_html(example["code"])) for example in record["examples"]],
        prompt=plain_html(record["prompt"]),
        prompt_tokens=record["prompt_tokens"],
        output=plain_html(record["text"]),
        tokens=record["tokens"],
        scores=[(_METRIC_LABELS.get(metric, metric), _format_number(value, 3)) for metric, value in scores],
        score_reasons=dict.fromkeys(record["score_reasons"].values()),
    )


def _candidates(candidates: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Markup | None]]:
    for candidate in candidates:
        code = str(candidate["code"])
        yield " · ".join(_candidate_facts(candidate)), code_html(code) if code.strip() else None


def _candidate_facts(candidate: Mapping[str, Any]) -> list[str]:
    facts = [f"log-probability {candidate['logprob']:.2f}", f"{candidate['tokens']} tokens"]
    if candidate.get("times", 1) > 1:
        facts.append(f"given {candidate['times']} times")
    if candidate.get("tests"):
        facts.append(pass_count_text(candidate["tests"]))
    return facts


def empty_view() -> ComparisonView:
    """Return the view of a first visit without a recorded example."""
    return ComparisonView(run="", head=render("compare/empty.html.jinja"), cards=[], reference=None)


def streaming_view(
    columns: Sequence[Column], comparison: Comparison, base: BaseIdentity, created: str
) -> ComparisonView:
    """Return the view of a running comparison; columns that are done show their scores."""
    cards = [
        streaming_column(column)
        if column.state in ("waiting", "streaming")
        else finished_column(make_record(column, comparison, base, created), is_best=False)
        for column in columns
    ]
    about = f"{base_label(base)} · {decoding_label(asdict(comparison.decoding))}"
    reference = comparison.problem.reference
    head = _view_header(comparison.problem.intent, about, reference)
    return ComparisonView(run=created, head=head, cards=cards, reference=reference)


def example_view(example: RecordedExample) -> ComparisonView:
    """Return the view of the recorded example, marked as such, with its model, date and source."""
    first = example.records[0]
    model = model_label(first["base_id"], first["quantization"], first["device"])
    settings = f"{format_date(first['created'])} with {model}, {decoding_label(first['decoding'])}"
    about = f"a validation row that only the adapter solves, recorded on {settings}"
    return _records_view(example.records, Markup('<span class="badge">example</span> ') + about)


def finished_view(records: Sequence[Record], pending: Collection[int] = ()) -> ComparisonView:
    """Return the view of records. No column is marked as best while the tests of those at `pending` run."""
    first = records[0]
    model = model_label(first["base_id"], first["quantization"], first["device"])
    about = f"{format_time(first['created'])} · {model} · {decoding_label(first['decoding'])}"
    return _records_view(records, escape(about), pending)


def _records_view(records: Sequence[Record], about: Markup, pending: Collection[int] = ()) -> ComparisonView:
    first = records[0]
    best = frozenset() if pending else best_indices(records)
    reference = first["reference"]
    agreements = [""] * len(records) if reference else agreement_notes(records)
    cards = [
        finished_column(record, is_best=i in best, agreement=agreements[i], tests_running=i in pending)
        for i, record in enumerate(records)
    ]
    note = next((record["tests_note"] for record in records if record["tests_note"]), "")
    head = _view_header(first["intent"], about + _tests_summary(records), reference, note)
    return ComparisonView(run=first["created"], head=head, cards=cards, reference=reference)


def _tests_summary(records: Sequence[Record]) -> str:
    """Return the number of tests and the sandbox in which they ran; '' if none ran."""
    tested = next((record for record in records if record["sandbox"]), None)
    return f" · {format_count_of_tests(len(tested['tests']))} in the sandbox ({tested['sandbox']})" if tested else ""


def load_first_example(path: Path = FIRST_EXAMPLE_PATH) -> RecordedExample | None:
    """Read the recorded run of a first visit; None if the file is missing or unreadable."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        example = RecordedExample(tuple(map(str, values["suggestions"])), tuple(values["records"]))
        example_view(example)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        _log.warning("%s cannot be read (%s): the page begins empty; record it anew.", path, error)
        return None
    return example


def _view_header(intent: str, about: str, reference: str | None, tests_note: str = "") -> Markup:
    return header_html(_shorten(intent), about, reference, tests_note=tests_note)


def header_html(
    question: str, about: str, reference: str | None, *, is_long: bool = False, tests_note: str = "", verdict: str = ""
) -> Markup:
    """Return the header of a comparison: the question, facts about the run, and the reference in a fold."""
    return render(
        "compare/header.html.jinja",
        question=question,
        long=is_long,
        about=about,
        reference=Markup(reference_details(reference)) if reference else "",  # noqa: S704 - a template
        tests_note=tests_note,
        verdict=verdict,
    )


def reference_details(reference: str) -> str:
    """Return the reference code in a fold."""
    # A plain string: callers edit it.
    return str(render("compare/reference.html.jinja", code=code_html(reference)))


def _shorten(text: str, limit: int = 280) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else line[:limit].rstrip() + " …"
