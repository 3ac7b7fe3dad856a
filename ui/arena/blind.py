"""The board of a duel: two cards that say nothing of who answered, and after the vote everything."""

from __future__ import annotations

from collections.abc import Collection
from html import escape

from ui.arena.duels import Duel
from ui.board import Board, reference_fold
from ui.code_html import code_html
from ui.columns import Card, finished_card
from ui.labels import decoding_line, method_label, model_line
from ui.records import Record
from ui.tests_html import panel_html, testing_html, tests_word

NAMES = ("A", "B")
MAX_INTENT = 4_000
_LONG = 280
INTRO = (
    "<h2>Two answers, no names</h2>"
    "<p>Two methods of the same model answer one question. You read both and say which you would rather use.</p>"
    "<p>Only then you see who they were, what the tests and the reference say, and how others chose.</p>"
    "<p>Enough votes make a rating with an interval. Press n, or Start, for your first duel.</p>"
)


def empty_board() -> Board:
    """What a first visit sees."""
    return Board(run="", head=f'<div class="empty">{INTRO}</div>', cards=[], reference=None)


def duel_board(duel: Duel, testing: Collection[int] = ()) -> Board:
    """The duel as far as it is. While the answers at `testing` are being tested, their cards say so."""
    if not duel.records:
        return Board(run=duel.id, head=_head(duel), cards=[_waiting(name) for name in NAMES], reference=None)
    make = _revealed if duel.voted else _blind
    cards = [make(duel, place, place in testing) for place in range(len(duel.records))]
    reference = duel.problem.reference if duel.voted or duel.reference_seen else None
    return Board(run=duel.id, head=_head(duel), cards=cards, reference=reference)


def _waiting(name: str) -> Card:
    """The same for both sides until both have answered."""
    return Card(
        label=f"Answer {name}", state="waiting", best=False, head=f"<h3>{name}</h3>",
        code='<p class="quiet">answering<span class="caret" aria-hidden="true"></span></p>', numbers="", tests="",
        folds="", raw="",
    )  # fmt: skip


def _blind(duel: Duel, place: int, testing: bool) -> Card:
    """Code and, where they ran, tests: no name, no number that a method could be known by."""
    record = duel.records[place]
    code = record["code"]
    body = f'<pre class="code" tabindex="0"><code>{code_html(code)}</code></pre>' if code.strip() else ""
    copy = '<button type="button" class="copy" data-copy>Copy</button>' if body else ""
    return Card(
        label=f"Answer {NAMES[place]}", state="done", best=False, head=f"<h3>{NAMES[place]}</h3>{copy}",
        code=body or '<p class="quiet">An empty answer.</p>', numbers="", tests=_tests(record, testing), folds="",
        raw=code,
    )  # fmt: skip


def _revealed(duel: Duel, place: int, testing: bool) -> Card:
    record = duel.records[place]
    label = f"{NAMES[place]}: {method_label(record['method'])}"
    card = finished_card(record, is_best=False, label=label, testing=testing)
    if duel.winner == ("left", "right")[place]:
        card["best"] = True
        card["head"] = card["head"].replace("</h3>", '</h3><span class="badge">your pick</span>', 1)
    return card


def _tests(record: Record, testing: bool) -> str:
    return testing_html(len(record["asked_tests"])) if testing else panel_html(record["tests"])


def _head(duel: Duel) -> str:
    intent = duel.problem.intent
    shown = intent if len(intent) <= MAX_INTENT else f"{intent[:MAX_INTENT]} …"
    long = " long" if len(intent) > _LONG or "\n" in intent.strip() else ""
    seen = duel.problem.reference and (duel.voted or duel.reference_seen)
    fold = reference_fold(duel.problem.reference or "") if seen else ""
    if duel.reference_seen:
        fold = fold.replace("<details>", "<details open>", 1)
    about = f'<div class="about"><p>{" · ".join(escape(fact) for fact in _facts(duel))}</p>{fold}</div>'
    return f'<h2 class="asked{long}">{escape(shown)}</h2>{about}{_notes(duel)}'


def _facts(duel: Duel) -> list[str]:
    facts = ["your own question" if not duel.data else f"from '{duel.data}'"]
    if duel.problem.tests:
        facts.append(tests_word(len(duel.problem.tests)))
    if duel.records:
        first = duel.records[0]
        facts.append(model_line(first["base_id"], first["quantization"], first["device"]))
        facts.append(decoding_line(first["decoding"]))
    ran = next((record["sandbox"] for record in duel.records if record["sandbox"]), None)
    return [*facts, f"tested in the sandbox ({ran})"] if ran else facts


def _notes(duel: Duel) -> str:
    notes = list(dict.fromkeys(record["tests_note"] for record in duel.records if record["tests_note"]))
    shown = "".join(f'<p class="sentence">{escape(note)}</p>' for note in notes)
    codes = {record["code"].strip() for record in duel.records}
    if len(duel.records) == len(NAMES) and len(codes) == 1:
        shown += '<p class="same">Both answers are the same, letter by letter.</p>'
    return shown
