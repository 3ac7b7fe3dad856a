"""Board, cards, test results.

The board: what stands under the question, from nothing yet to finished columns, as one value for js/comparison.js.

A column as HTML, in sections that the page repaints one by one (see js/comparison.js).

Every text that a person, a model or a file wrote passes through `escape` or Pygments before it is part of the HTML.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any, TypedDict

from models.identity import BaseIdentity
from ui.code_html import code_html, plain_html, streaming_html
from ui.compare.run import Column, Comparison
from ui.compare.test_results import (
    agreement_notes,
    format_count_of_tests,
    pass_count_text,
    results_panel_html,
    running_tests_html,
)
from ui.compare.verdict import best_indices
from ui.labels import base_label, decoding_label, format_date, format_time, method_hint, method_label, model_label
from ui.records import Record, make_record

DASH = "–"
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


class ColumnView(TypedDict):
    """The sections of one column, as HTML, and what the page needs to copy and compare its code."""

    label: str
    state: str
    best: bool
    head: str
    code: str
    numbers: str
    tests: str
    details: str
    raw: str


def streaming_column(column: Column) -> ColumnView:
    """A column that waits for its first token or grows."""
    badge = {"waiting": "reading the prompt", "streaming": "answering"}.get(column.state, "")
    return ColumnView(
        label=method_label(column.method),
        state=column.state,
        best=False,
        head=_column_header(method_label(column.method), method_hint(column.method), badge, can_copy=False),
        code=f'<pre class="code" tabindex="0"><code>{streaming_html(column.text)}</code></pre>',
        numbers=_metrics_html([("tokens", str(column.tokens) if column.tokens else DASH)]),
        tests="",
        details="",
        raw="",
    )


def finished_column(
    record: Record, *, is_best: bool, label: str = "", agreement: str = "", tests_running: bool = False
) -> ColumnView:
    """A column from its record: just answered, from the history, or from the recorded example.

    `label` stands for the method where its name is not enough; `agreement` says which other columns gave the same
    answer; `testing` that its tests are still running.
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
        code=_failed_html(record) if failed else _code_block(record["code"]),
        numbers="" if failed else _result_metrics(record, agreement),
        tests=running_tests_html(len(record["asked_tests"])) if tests_running else results_panel_html(record["tests"]),
        details=_details_sections(record),
        raw=record["code"],
    )


def _best_badge(record: Record) -> str:
    if record["scores"].get("tests") == 1:
        return "passes"
    return "matches" if record["scores"].get("em") == 1 else "closest"


def _column_header(label: str, hint: str, badge: str, *, can_copy: bool) -> str:
    mark = f'<span class="badge">{escape(badge)}</span>' if badge else ""
    copy = '<button type="button" class="copy" data-copy>Copy</button>' if can_copy else ""
    return f'<h3>{escape(label)}</h3>{mark}{copy}<p class="hint">{escape(hint)}</p>'


def _code_block(code: str) -> str:
    if not code.strip():
        return '<p class="muted">An empty answer.</p>'
    return f'<pre class="code" tabindex="0"><code>{code_html(code)}</code></pre>'


def _error_html(message: str) -> str:
    return f'<p class="error-message">{escape(message)}</p>'


def _failed_html(record: Record) -> str:
    """The sentence, and what had been said before it, where there was anything."""
    said = record["code"]
    return _error_html(record["error"] or "") + (_code_block(said) if said.strip() else "")


def _metrics_html(pairs: Sequence[tuple[str, str]], note: str = "") -> str:
    cells = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in pairs)
    return f'<dl class="numbers">{cells}</dl>{note}'


def _result_metrics(record: Record, agreement: str) -> str:
    scores = record["scores"]
    rate = record["tokens_per_second"]
    pairs = [
        ("parses", _yes_no(scores.get("parses"))),
        *(_reference_metrics(scores) if record["reference"] else []),
        ("tokens", str(record["tokens"])),
        ("seconds", f"{record['seconds']:.{1 if record['seconds'] >= 1 else 2}f}"),
        *([("tokens/s", f"{rate:.0f}")] if rate is not None else []),
    ]
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in record["notes"])
    agreed = f'<p class="note">{escape(agreement)}.</p>' if agreement else ""
    return _metrics_html(pairs, _codebleu_parts(scores) + agreed + notes)


def _reference_metrics(scores: Mapping[str, float | None]) -> list[tuple[str, str]]:
    return [("EM", _format_number(scores.get("em"), 0)), ("CodeBLEU", _format_number(scores.get("codebleu"), 2))]


def _codebleu_parts(scores: Mapping[str, float | None]) -> str:
    """The four parts of CodeBLEU, each with a bar; '' where there is no CodeBLEU."""
    if scores.get("codebleu") is None:
        return ""
    cells = "".join(
        f"<div><dt>{escape(label)}</dt><dd>{_format_number(scores.get(f'codebleu.{part}'), 2)}"
        f'<span class="bar" aria-hidden="true"><span style="width:{scores.get(f"codebleu.{part}") or 0:.0%}"></span>'
        "</span></dd></div>"
        for part, label in _CODEBLEU_PARTS.items()
    )
    return f'<dl class="parts" aria-label="The four parts of CodeBLEU">{cells}</dl>'


def _yes_no(value: float | None) -> str:
    return DASH if value is None else "yes" if value else "no"


def _format_number(value: float | None, digits: int) -> str:
    return DASH if value is None else f"{value:.{digits}f}"


def _details_sections(record: Record) -> str:
    sections = []
    if record["code"].strip():
        sections.append(_diff_details())
    if len(record["candidates"]) > 1:
        others = record["candidates"][1:]
        sections.append(
            _details_html("Other candidates", str(len(others)), "".join(_candidate_html(other) for other in others))
        )
    if record["examples"]:
        shown = "".join(
            f'<li><p>{plain_html(example["intent"])}</p><pre class="code" tabindex="0"><code>'
            f"{code_html(example['code'])}</code></pre></li>"
            for example in record["examples"]
        )
        sections.append(
            _details_html("Examples in the prompt", str(len(record["examples"])), f'<ol class="examples">{shown}</ol>')
        )
    if record["prompt"]:
        sections.append(
            _details_html("Exact prompt", f"{record['prompt_tokens']} tokens", _text_block(record["prompt"]))
        )
    if record["text"]:
        sections.append(_details_html("Raw output", f"{record['tokens']} tokens", _text_block(record["text"])))
    if record["scores"]:
        sections.append(_details_html("All scores", "", _score_table(record)))
    return "".join(sections)


def _details_html(title: str, count: str, body: str) -> str:
    mark = f' <span class="count">{escape(count)}</span>' if count else ""
    return f"<details><summary>{escape(title)}{mark}</summary><div>{body}</div></details>"


def _diff_details() -> str:
    # The page fills the choice and asks for the difference when it is opened: all pairs at once would be many.
    return (
        "<details data-diff><summary>Difference</summary><div>"
        '<label class="against">against <select></select></label><div data-diff-body></div></div></details>'
    )


def _text_block(text: str) -> str:
    return f'<pre class="code" tabindex="0"><code>{plain_html(text)}</code></pre>'


def _candidate_html(candidate: Mapping[str, Any]) -> str:
    code = str(candidate["code"])
    body = f'<pre class="code" tabindex="0"><code>{code_html(code)}</code></pre>' if code.strip() else ""
    return f'<p class="muted">{" · ".join(_candidate_facts(candidate))}</p>{body}'


def _candidate_facts(candidate: Mapping[str, Any]) -> list[str]:
    facts = [f"log-probability {candidate['logprob']:.2f}", f"{candidate['tokens']} tokens"]
    if candidate.get("times", 1) > 1:
        facts.append(f"said {candidate['times']} times")
    if candidate.get("tests"):
        facts.append(escape(pass_count_text(candidate["tests"])))
    return facts


def _score_table(record: Record) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(_METRIC_LABELS.get(metric, metric))}</th><td>{_format_number(value, 3)}</td></tr>'
        for metric, value in record["scores"].items()
    )
    reasons = dict.fromkeys(record["score_reasons"].values())
    notes = "".join(f'<p class="muted">{escape(reason)}</p>' for reason in reasons)
    return f'<table class="scores"><tbody>{rows}</tbody></table>{notes}'


FIRST_EXAMPLE_PATH = Path(__file__).with_name("first_example.json")
_log = logging.getLogger(__name__)


class ComparisonView(TypedDict):
    """`run` changes with every comparison, so that the page knows when to begin anew."""

    run: str
    head: str
    cards: list[ColumnView]
    reference: str | None


@dataclass(frozen=True)
class RecordedExample:
    """A recorded run, and whose its problem and its examples are ('' for our own)."""

    source: str
    records: tuple[Record, ...]


EMPTY_HTML = (
    "<h2>One model, several ways to ask it</h2>"
    "<p>Say what a piece of Python should do. A small model answers once with no help, once with fixed examples, "
    "once with the examples nearest to your words, and once with a trained adapter.</p>"
    "<p>The answers come side by side, from one batch of one quantized model; with a reference they are scored.</p>"
    "<p>No idea yet? Take one of the examples above, or a test problem. Ctrl+Enter runs.</p>"
)


def empty_view() -> ComparisonView:
    """What a first visit sees while there is no recorded example."""
    return ComparisonView(run="", head=f'<div class="empty">{EMPTY_HTML}</div>', cards=[], reference=None)


def streaming_view(
    columns: Sequence[Column], comparison: Comparison, base: BaseIdentity, created: str
) -> ComparisonView:
    """Columns that are being filled; those that are done already show their scores."""
    cards = [
        streaming_column(column)
        if column.state in ("waiting", "streaming")
        else finished_column(make_record(column, comparison, base, created), is_best=False)
        for column in columns
    ]
    about = f"{escape(base_label(base))} · {escape(decoding_label(asdict(comparison.decoding)))}"
    reference = comparison.problem.reference
    head = _view_header(comparison.problem.intent, about, reference, comparison.tests_note)
    return ComparisonView(run=created, head=head, cards=cards, reference=reference)


def example_view(example: RecordedExample) -> ComparisonView:
    """The recorded example, marked as such, with its model, its date and its source."""
    first = example.records[0]
    model = model_label(first["base_id"], first["quantization"], first["device"])
    tag = '<span class="badge">example</span>'
    how = escape(f"{format_date(first['created'])} with {model}, {decoding_label(first['decoding'])}")
    source = f". Problem and examples: {escape(example.source)}" if example.source else ""
    return _records_view(example.records, f"{tag} chosen because the answers differ, recorded on {how}{source}")


def finished_view(records: Sequence[Record], pending: Collection[int] = ()) -> ComparisonView:
    """Columns from records. While the tests of those at `pending` still run, none is marked as best."""
    first = records[0]
    model = model_label(first["base_id"], first["quantization"], first["device"])
    about = f"{format_time(first['created'])} · {escape(model)} · {escape(decoding_label(first['decoding']))}"
    return _records_view(records, about, pending)


def _records_view(records: Sequence[Record], about: str, pending: Collection[int] = ()) -> ComparisonView:
    first = records[0]
    marked = frozenset() if pending else best_indices(records)
    reference = first["reference"]
    agreed = [""] * len(records) if reference else agreement_notes(records)
    cards = [
        finished_column(record, is_best=place in marked, agreement=agreed[place], tests_running=place in pending)
        for place, record in enumerate(records)
    ]
    head = _view_header(first["intent"], about + _tests_summary(records), reference, _tests_note(records))
    return ComparisonView(run=first["created"], head=head, cards=cards, reference=reference)


def _tests_summary(records: Sequence[Record]) -> str:
    """How many tests ran, and in which sandbox; escaped."""
    ran = next((record for record in records if record["sandbox"]), None)
    return (
        f" · {format_count_of_tests(len(ran['tests']))} in the sandbox ({escape(ran['sandbox'] or '')})" if ran else ""
    )


def _tests_note(records: Sequence[Record]) -> str:
    return next((record["tests_note"] for record in records if record["tests_note"]), "")


def load_first_example(path: Path = FIRST_EXAMPLE_PATH) -> RecordedExample | None:
    """The recorded run that greets a first visit; None where there is none that can be read."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        example = RecordedExample(str(values["source"]), tuple(values["records"]))
        example_view(example)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        _log.warning("%s cannot be read (%s): the page begins empty; record it anew.", path, error)
        return None
    return example


def _view_header(intent: str, about: str, reference: str | None, tests_note: str) -> str:
    fold = note = ""
    if tests_note:
        note = f'<p class="error-message">{escape(tests_note)}</p>'
    if reference:
        fold = reference_details(reference)
    return f'<h2 class="question">{escape(_shorten(intent))}</h2><div class="about"><p>{about}</p>{fold}</div>{note}'


def reference_details(reference: str) -> str:
    """The reference code, folded."""
    code = f'<pre class="code" tabindex="0" aria-label="Reference code"><code>{code_html(reference)}</code></pre>'
    return f"<details><summary>Reference</summary>{code}</details>"


def _shorten(text: str, limit: int = 280) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else line[:limit].rstrip() + " …"
