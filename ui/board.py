"""The board: what stands under the question, from nothing yet to finished columns, as one value for js/board.js."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import TypedDict

from adapters.manifest import BaseIdentity
from ui.agreement import agreement_notes
from ui.code_html import code_html
from ui.columns import ColumnView, finished_column, streaming_column
from ui.compare_run import Column, Comparison
from ui.labels import base_label, decoding_label, format_date, format_time, model_label
from ui.records import Record, make_record
from ui.tests_html import format_count_of_tests
from ui.verdict import best_indices

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
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as fault:
        _log.warning("%s cannot be read (%s): the page begins empty; record it anew.", path, fault)
        return None
    return example


def _view_header(intent: str, about: str, reference: str | None, tests_note: str) -> str:
    fold = note = ""
    if tests_note:
        note = f'<p class="sentence">{escape(tests_note)}</p>'
    if reference:
        fold = reference_details(reference)
    return f'<h2 class="asked">{escape(_shorten(intent))}</h2><div class="about"><p>{about}</p>{fold}</div>{note}'


def reference_details(reference: str) -> str:
    """The reference code, folded."""
    code = f'<pre class="code" tabindex="0" aria-label="Reference code"><code>{code_html(reference)}</code></pre>'
    return f"<details><summary>Reference</summary>{code}</details>"


def _shorten(text: str, limit: int = 280) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else line[:limit].rstrip() + " …"
