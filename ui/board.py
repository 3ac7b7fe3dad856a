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
from ui.agreement import agreements
from ui.code_html import code_html
from ui.columns import Card, finished_card, growing_card
from ui.compare_run import Ask, Column
from ui.labels import base_line, clock, day, decoding_line, model_line
from ui.records import Record, make_record
from ui.tests_html import tests_word
from ui.verdict import best

FIRST_EXAMPLE = Path(__file__).with_name("first_example.json")
_log = logging.getLogger(__name__)


class Board(TypedDict):
    """`run` changes with every comparison, so that the page knows when to begin anew."""

    run: str
    head: str
    cards: list[Card]
    reference: str | None


@dataclass(frozen=True)
class Example:
    """A recorded run, and whose its problem and its examples are ('' for our own)."""

    source: str
    records: tuple[Record, ...]


EMPTY = (
    "<h2>One model, several ways to ask it</h2>"
    "<p>Say what a piece of Python should do. A small model answers once with no help, once with fixed examples, "
    "once with the examples nearest to your words, and once with a trained adapter.</p>"
    "<p>The answers come side by side, from one batch of one quantized model; with a reference they are scored.</p>"
    "<p>No idea yet? Take one of the examples above, or a test problem. Ctrl+Enter runs.</p>"
)


def empty_board() -> Board:
    """What a first visit sees while there is no recorded example."""
    return Board(run="", head=f'<div class="empty">{EMPTY}</div>', cards=[], reference=None)


def growing_board(columns: Sequence[Column], ask: Ask, base: BaseIdentity, created: str) -> Board:
    """Columns that are being filled; those that are done already show their scores."""
    cards = [
        growing_card(column)
        if column.state in ("waiting", "streaming")
        else finished_card(make_record(column, ask, base, created), is_best=False)
        for column in columns
    ]
    about = f"{escape(base_line(base))} · {escape(decoding_line(asdict(ask.decoding)))}"
    reference = ask.problem.reference
    head = _head(ask.problem.intent, about, reference, ask.tests_note)
    return Board(run=created, head=head, cards=cards, reference=reference)


def example_board(example: Example) -> Board:
    """The recorded example, marked as such, with its model, its date and its source."""
    first = example.records[0]
    model = model_line(first["base_id"], first["quantization"], first["device"])
    tag = '<span class="badge">example</span>'
    how = escape(f"{day(first['created'])} with {model}, {decoding_line(first['decoding'])}")
    source = f". Problem and examples: {escape(example.source)}" if example.source else ""
    return _finished(example.records, f"{tag} chosen because the answers differ, recorded on {how}{source}")


def finished_board(records: Sequence[Record], pending: Collection[int] = ()) -> Board:
    """Columns from records. While the tests of those at `pending` still run, none is marked as best."""
    first = records[0]
    model = model_line(first["base_id"], first["quantization"], first["device"])
    about = f"{clock(first['created'])} · {escape(model)} · {escape(decoding_line(first['decoding']))}"
    return _finished(records, about, pending)


def _finished(records: Sequence[Record], about: str, pending: Collection[int] = ()) -> Board:
    first = records[0]
    marked = frozenset() if pending else best(records)
    reference = first["reference"]
    agreed = [""] * len(records) if reference else agreements(records)
    cards = [
        finished_card(record, is_best=place in marked, agreement=agreed[place], testing=place in pending)
        for place, record in enumerate(records)
    ]
    head = _head(first["intent"], about + _tested(records), reference, _tests_note(records))
    return Board(run=first["created"], head=head, cards=cards, reference=reference)


def _tested(records: Sequence[Record]) -> str:
    """How many tests ran, and in which sandbox; escaped."""
    ran = next((record for record in records if record["sandbox"]), None)
    return f" · {tests_word(len(ran['tests']))} in the sandbox ({escape(ran['sandbox'] or '')})" if ran else ""


def _tests_note(records: Sequence[Record]) -> str:
    return next((record["tests_note"] for record in records if record["tests_note"]), "")


def first_example(path: Path = FIRST_EXAMPLE) -> Example | None:
    """The recorded run that greets a first visit; None where there is none that can be read."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        example = Example(str(values["source"]), tuple(values["records"]))
        example_board(example)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as fault:
        _log.warning("%s cannot be read (%s): the page begins empty; record it anew.", path, fault)
        return None
    return example


def _head(intent: str, about: str, reference: str | None, tests_note: str) -> str:
    fold = note = ""
    if tests_note:
        note = f'<p class="sentence">{escape(tests_note)}</p>'
    if reference:
        fold = reference_fold(reference)
    return f'<h2 class="asked">{escape(_short(intent))}</h2><div class="about"><p>{about}</p>{fold}</div>{note}'


def reference_fold(reference: str) -> str:
    """The reference code, folded."""
    code = f'<pre class="code" tabindex="0" aria-label="Reference code"><code>{code_html(reference)}</code></pre>'
    return f"<details><summary>Reference</summary>{code}</details>"


def _short(text: str, limit: int = 280) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else line[:limit].rstrip() + " …"
