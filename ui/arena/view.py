"""The board of a duel: two cards that say nothing of who answered, and after the vote everything."""

from __future__ import annotations

from collections.abc import Collection
from html import escape

from ui.arena.matches import Match
from ui.code_html import code_html
from ui.compare.test_results import format_count_of_tests, results_panel_html, running_tests_html
from ui.compare.view import ColumnView, ComparisonView, finished_column, reference_details
from ui.labels import decoding_label, method_label, model_label
from ui.records import Record

SIDE_NAMES = ("A", "B")
MAX_INTENT = 4_000
_LONG_INTENT = 280
INTRO_HTML = (
    "<h2>Two answers, no names</h2>"
    "<p>Two methods of the same model answer one question. You read both and say which you would rather use.</p>"
    "<p>Only then you see who they were, what the tests and the reference say, and how others chose.</p>"
    "<p>Enough votes make a rating with an interval. Press n, or Start, for your first duel.</p>"
)


def empty_match_view() -> ComparisonView:
    """What a first visit sees."""
    return ComparisonView(run="", head=f'<div class="empty">{INTRO_HTML}</div>', cards=[], reference=None)


def match_view(match: Match, pending: Collection[int] = ()) -> ComparisonView:
    """The duel as far as it is. While the answers at `testing` are being tested, their cards say so."""
    if not match.records:
        return ComparisonView(
            run=match.id,
            head=_match_header(match),
            cards=[_waiting_column(name) for name in SIDE_NAMES],
            reference=None,
        )
    make = _revealed_column if match.voted else _anonymous_column
    cards = [make(match, place, place in pending) for place in range(len(match.records))]
    reference = match.problem.reference if match.voted or match.reference_seen else None
    return ComparisonView(run=match.id, head=_match_header(match), cards=cards, reference=reference)


def _waiting_column(name: str) -> ColumnView:
    """The same for both sides until both have answered."""
    return ColumnView(
        label=f"Answer {name}", state="waiting", best=False, head=f"<h3>{name}</h3>",
        code='<p class="muted">answering<span class="caret" aria-hidden="true"></span></p>', numbers="", tests="",
        details="", raw="",
    )  # fmt: skip


def _anonymous_column(match: Match, index: int, tests_running: bool) -> ColumnView:
    """Code and, where they ran, tests: no name, no number that a method could be known by."""
    record = match.records[index]
    code = record["code"]
    body = f'<pre class="code" tabindex="0"><code>{code_html(code)}</code></pre>' if code.strip() else ""
    copy = '<button type="button" class="copy" data-copy>Copy</button>' if body else ""
    return ColumnView(
        label=f"Answer {SIDE_NAMES[index]}", state="done", best=False, head=f"<h3>{SIDE_NAMES[index]}</h3>{copy}",
        code=body or '<p class="muted">An empty answer.</p>', numbers="", tests=_tests_html(record, tests_running), details="",
        raw=code,
    )  # fmt: skip


def _revealed_column(match: Match, index: int, tests_running: bool) -> ColumnView:
    record = match.records[index]
    label = f"{SIDE_NAMES[index]}: {method_label(record['method'])}"
    card = finished_column(record, is_best=False, label=label, tests_running=tests_running)
    if match.winner == ("left", "right")[index]:
        card["best"] = True
        card["head"] = card["head"].replace("</h3>", '</h3><span class="badge">your pick</span>', 1)
    return card


def _tests_html(record: Record, tests_running: bool) -> str:
    return running_tests_html(len(record["asked_tests"])) if tests_running else results_panel_html(record["tests"])


def _match_header(match: Match) -> str:
    intent = match.problem.intent
    shown = intent if len(intent) <= MAX_INTENT else f"{intent[:MAX_INTENT]} …"
    long = " long" if len(intent) > _LONG_INTENT or "\n" in intent.strip() else ""
    seen = match.problem.reference and (match.voted or match.reference_seen)
    fold = reference_details(match.problem.reference or "") if seen else ""
    if match.reference_seen:
        fold = fold.replace("<details>", "<details open>", 1)
    about = f'<div class="about"><p>{" · ".join(escape(fact) for fact in _match_facts(match))}</p>{fold}</div>'
    return f'<h2 class="question{long}">{escape(shown)}</h2>{about}{_notes_html(match)}'


def _match_facts(match: Match) -> list[str]:
    facts = ["your own question" if not match.data else f"from '{match.data}'"]
    if match.problem.tests:
        facts.append(format_count_of_tests(len(match.problem.tests)))
    if match.records:
        first = match.records[0]
        facts.append(model_label(first["base_id"], first["quantization"], first["device"]))
        facts.append(decoding_label(first["decoding"]))
    ran = next((record["sandbox"] for record in match.records if record["sandbox"]), None)
    return [*facts, f"tested in the sandbox ({ran})"] if ran else facts


def _notes_html(match: Match) -> str:
    notes = list(dict.fromkeys(record["tests_note"] for record in match.records if record["tests_note"]))
    shown = "".join(f'<p class="error-message">{escape(note)}</p>' for note in notes)
    codes = {record["code"].strip() for record in match.records}
    if len(match.records) == len(SIDE_NAMES) and len(codes) == 1:
        shown += '<p class="same">Both answers are the same, letter by letter.</p>'
    return shown
