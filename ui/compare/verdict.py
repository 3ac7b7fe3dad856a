"""Summary sentence, history.

What the scores say about one comparison, in words; and which columns are best.

What a session remembers of its runs, newest first, as the page's list and as files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ui.labels import format_time, method_label
from ui.records import Record, to_csv, to_json


def best_indices(records: Sequence[Record]) -> frozenset[int]:
    """The places of the best answers; none when nothing tells the answers apart.

    Passing all tests beats everything; then come the share of tests passed, exact match, and CodeBLEU.
    """
    keys = {place: _rank_key(record) for place, record in enumerate(records)}
    scored = {place: key for place, key in keys.items() if key is not None}
    if not scored:
        return frozenset()
    top = max(scored.values())
    places = frozenset(place for place, key in scored.items() if key == top)
    return frozenset() if not any(top) or (len(places) == len(records) and len(records) > 1) else places


def verdict_text(records: Sequence[Record]) -> str:
    """One or two sentences that follow from the scores alone. They speak of this one problem, not of the methods."""
    answered = [record for record in records if record["error"] is None and not record["cancelled"]]
    sentences = [_scores_text(answered)] if answered else []
    stopped = sum(record["cancelled"] for record in records)
    failed = sum(record["error"] is not None for record in records)
    if failed:
        sentences.append(
            f"{_count_noun(failed, 'method')} gave no answer; {'its' if failed == 1 else 'each'} column says why."
        )
    if stopped:
        was = "was stopped before its end and is" if stopped == 1 else "were stopped before their end and are"
        sentences.append(f"{_count_noun(stopped, 'answer')} {was} not scored.")
    return " ".join(sentences)


def _scores_text(records: Sequence[Record]) -> str:
    tested = [record for record in records if record["tests"]]
    scored = [record for record in records if record["scores"].get("em") is not None]
    if not tested:
        return _reference_text(scored) if scored else _syntax_text(records)
    leaders = [record for record in tested if _pass_rate(record) == max(map(_pass_rate, tested))]
    if _pass_rate(leaders[0]):
        return _tests_text(tested, leaders) + _tie_break_text(leaders)
    return _tests_text(tested, leaders) + (f" {_reference_text(scored)}" if scored else "")


def _tests_text(tested: Sequence[Record], leaders: Sequence[Record]) -> str:
    """What the tests say: who passes all, or how far the best came."""
    total, share = len(tested[0]["tests"]), _pass_rate(leaders[0])
    what = "the test" if total == 1 else f"all {total} tests"
    if share == 1 and len(leaders) == len(tested):
        return f"Every answer passes {what}." if len(tested) > 1 else f"The answer passes {what}."
    if share == 1:
        others = max(_pass_rate(record) for record in tested if record not in leaders)
        rest = "none" if others == 0 else f"at most {round(others * total)}"
        they = "the other passes" if len(tested) - len(leaders) == 1 else "the others pass"
        return f"{_join_names(leaders)} pass{'es' if len(leaders) == 1 else ''} {what}; {they} {rest}."
    if share == 0:
        return "No answer passes the test." if total == 1 else f"No answer passes any of the {total} tests."
    most = f"{round(share * total)} of {total}"
    if len(leaders) == len(tested):
        return f"No answer passes all {total} tests; {'each' if len(tested) > 1 else 'it'} passes {most}."
    return f"No answer passes all {total} tests; {_join_names(leaders)} pass{'es' if len(leaders) == 1 else ''} most ({most})."


def _tie_break_text(leaders: Sequence[Record]) -> str:
    """What the reference adds about those whom the tests put first; '' where it adds nothing."""
    matches = [record for record in leaders if record["scores"].get("em") == 1]
    if matches:
        who = "It" if len(leaders) == 1 else _join_names(matches)
        return f" {who} also match{'es' if len(matches) == 1 else ''} the reference."
    top = _highest_codebleu(leaders)
    if len(leaders) == 1 or not top or len(top) == len(leaders):
        return ""
    come = "comes" if len(top) == 1 else "come"
    return f" Of these, {_join_names(top)} {come} closest to the reference (CodeBLEU {_codebleu(top[0]):.2f})."


def _reference_text(scored: Sequence[Record]) -> str:
    """How near the answers come to the reference: who matches it, or who comes closest."""
    matches = [record for record in scored if record["scores"].get("em") == 1]
    if matches and len(matches) == len(scored) and len(scored) > 1:
        return "Every answer matches the reference."
    if matches:
        rest = [record for record in scored if record not in matches]
        closest = (
            f"; closest of the others is {_join_names(_highest_codebleu(rest))}" if _highest_codebleu(rest) else ""
        )
        return f"{_join_names(matches)} match{'es' if len(matches) == 1 else ''} the reference{closest}."
    top = _highest_codebleu(scored)
    if not top:
        return "No answer comes near the reference."
    score = f"CodeBLEU {_codebleu(top[0]):.2f}"
    if len(top) == len(scored) > 1:
        return f"No answer matches the reference; all score the same ({score})."
    come = "comes" if len(top) == 1 else "come"
    return f"No answer matches the reference; {_join_names(top)} {come} closest ({score})."


def _syntax_text(records: Sequence[Record]) -> str:
    parsing, total = sum(record["scores"].get("parses") == 1 for record in records), len(records)
    if total == 1:
        what = "The answer parses as Python" if parsing else "The answer is not valid Python"
    elif parsing == total:
        what = f"All {total} answers parse as Python"
    else:
        what = f"{parsing or 'None'} of {total} answers {'parses' if parsing == 1 else 'parse'} as Python"
    return f"{what}; without a reference or tests there is nothing more to score."


def _highest_codebleu(records: Sequence[Record]) -> list[Record]:
    highest = max((_codebleu(record) for record in records), default=0.0)
    return [record for record in records if _codebleu(record) == highest] if highest > 0 else []


def _rank_key(record: Record) -> tuple[float, float, float, float] | None:
    em = record["scores"].get("em")
    if em is None and not record["tests"]:
        return None
    share = _pass_rate(record)
    return float(share == 1), share, em or 0.0, _codebleu(record)


def _pass_rate(record: Record) -> float:
    return record["scores"].get("tests") or 0.0


def _codebleu(record: Record) -> float:
    return record["scores"].get("codebleu") or 0.0


def _join_names(records: Sequence[Record]) -> str:
    names = [method_label(record["method"]) for record in records]
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _count_noun(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


HISTORY_LENGTH = 20
_INTENT_LENGTH = 140


@dataclass(frozen=True)
class History:
    """The last runs of a session and which of them is on the board. Immutable: each change is a new one."""

    runs: tuple[tuple[Record, ...], ...] = ()
    selected: tuple[Record, ...] = ()

    def with_run(self, records: tuple[Record, ...]) -> History:
        """With one more run, which is now on the board."""
        return History((records, *self.runs)[:HISTORY_LENGTH], records)

    def select(self, index: int) -> History:
        """With the run at `index` on the board; unchanged where there is no such run."""
        return replace(self, selected=self.runs[index]) if 0 <= index < len(self.runs) else self

    def items(self) -> list[dict[str, Any]]:
        """The list as js/history.js draws it."""
        return [
            {
                "when": format_time(records[0]["created"]),
                "intent": " ".join(records[0]["intent"].split())[:_INTENT_LENGTH],
                "verdict": _run_summary(records),
                "shown": records is self.selected,
            }
            for records in self.runs
        ]


def export_file(records: Sequence[Record], kind: str, number: int) -> dict[str, Any] | None:
    """The file that js/download.js saves; None while there is nothing to save."""
    if not records:
        return None
    stamp = "".join(character for character in records[0]["created"][:19] if character.isdigit())
    text, media = (to_csv(records), "text/csv") if kind == "csv" else (to_json(records), "application/json")
    return {"name": f"prompt-or-tune-{stamp}.{kind}", "type": media, "text": text, "number": number}


def _run_summary(records: Sequence[Record]) -> str:
    marked = [method_label(records[place]["method"]) for place in sorted(best_indices(records))]
    if marked:
        passes = any(record["scores"].get("tests") == 1 for record in records)
        matches = any(record["scores"].get("em") == 1 for record in records)
        return f"{'passes' if passes else 'match' if matches else 'closest'}: {', '.join(marked)}"
    count = len(records)
    return f"{count} answer{'' if count == 1 else 's'}"
