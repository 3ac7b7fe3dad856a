"""Verdict of a comparison in words, its best columns, and the history of runs with its exports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ui.components import format_time, method_label
from ui.test_bench import Record, records_to_csv, to_json


def best_indices(records: Sequence[Record]) -> frozenset[int]:
    """Return the indices of the best answers; none if all are equal, none has a score, or one was not tested.

    Answers are ranked by: all tests pass, share of passed tests, exact match, CodeBLEU.
    """
    if _count_untested([record for record in records if record["error"] is None and not record["cancelled"]]):
        return frozenset()
    keys = {i: _rank_key(record) for i, record in enumerate(records)}
    scored = {i: key for i, key in keys.items() if key is not None}
    if not scored:
        return frozenset()
    top = max(scored.values())
    best = frozenset(i for i, key in scored.items() if key == top)
    all_equal = len(best) == len(records) > 1
    return frozenset() if not any(top) or all_equal else best


def verdict_text(records: Sequence[Record]) -> str:
    """Describe the scores in one or two sentences, about this problem only, not about the methods in general."""
    answered = [record for record in records if record["error"] is None and not record["cancelled"]]
    messages = [_scores_text(answered)] if answered else []
    stopped = sum(record["cancelled"] for record in records)
    failed = sum(record["error"] is not None for record in records)
    if failed:
        messages.append(
            f"{_count_noun(failed, 'method')} gave no answer; {'its' if failed == 1 else 'each'} column says why."
        )
    if stopped:
        was = "was stopped before its end and is" if stopped == 1 else "were stopped before their end and are"
        messages.append(f"{_count_noun(stopped, 'answer')} {was} not scored.")
    return " ".join(messages)


def _scores_text(records: Sequence[Record]) -> str:
    tested = [record for record in records if record["tests"]]
    scored = [record for record in records if record["scores"].get("em") is not None]
    if not tested:
        return _reference_text(scored) if scored else _syntax_text(records)
    if untested := _count_untested(records):
        return f"The tests have not run on {untested} of {len(records)} answers, so these are not compared."
    leaders = [record for record in tested if _pass_rate(record) == max(map(_pass_rate, tested))]
    if _pass_rate(leaders[0]):
        return _tests_text(tested, leaders) + _tie_break_text(leaders)
    return _tests_text(tested, leaders) + (f" {_reference_text(scored)}" if scored else "")


def _count_untested(records: Sequence[Record]) -> int:
    """Return the number of answers without test results where others have some."""
    untested = sum(not record["tests"] for record in records)
    return untested if untested < len(records) else 0


def _tests_text(tested: Sequence[Record], leaders: Sequence[Record]) -> str:
    """Name the answers that pass all tests, or else the ones that pass most."""
    total, share = len(tested[0]["tests"]), _pass_rate(leaders[0])
    all_tests = "the test" if total == 1 else f"all {total} tests"
    if share == 1 and len(leaders) == len(tested):
        return f"Every answer passes {all_tests}." if len(tested) > 1 else f"The answer passes {all_tests}."
    if share == 1:
        others = max(_pass_rate(record) for record in tested if record not in leaders)
        rest = "none" if others == 0 else f"at most {round(others * total)}"
        others_pass = "the other passes" if len(tested) - len(leaders) == 1 else "the others pass"
        return f"{_join_names(leaders)} {_verb('pass', leaders)} {all_tests}; {others_pass} {rest}."
    if share == 0:
        return "No answer passes the test." if total == 1 else f"No answer passes any of the {total} tests."
    most = f"{round(share * total)} of {total}"
    if len(leaders) == len(tested):
        return f"No answer passes all {total} tests; {'each' if len(tested) > 1 else 'it'} passes {most}."
    return f"No answer passes all {total} tests; {_join_names(leaders)} {_verb('pass', leaders)} most ({most})."


def _tie_break_text(leaders: Sequence[Record]) -> str:
    """Compare the answers that are best by their tests with the reference; '' if that tells nothing more."""
    matches = [record for record in leaders if record["scores"].get("em") == 1]
    if matches:
        names = "It" if len(leaders) == 1 else _join_names(matches)
        return f" {names} also {_verb('match', matches)} the reference."
    top = _highest_codebleu(leaders)
    if len(leaders) == 1 or not top or len(top) == len(leaders):
        return ""
    come = "comes" if len(top) == 1 else "come"
    return f" Of these, {_join_names(top)} {come} closest to the reference (CodeBLEU {_codebleu(top[0]):.2f})."


def _reference_text(scored: Sequence[Record]) -> str:
    """Name the answers that match the reference, or else the closest ones."""
    matches = [record for record in scored if record["scores"].get("em") == 1]
    if matches and len(matches) == len(scored) and len(scored) > 1:
        return "Every answer matches the reference."
    if matches:
        rest = [record for record in scored if record not in matches]
        closest = (
            f"; closest of the others is {_join_names(_highest_codebleu(rest))}" if _highest_codebleu(rest) else ""
        )
        return f"{_join_names(matches)} {_verb('match', matches)} the reference{closest}."
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


def _verb(verb: str, records: Sequence[Record]) -> str:
    return f"{verb}es" if len(records) == 1 else verb


def _count_noun(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


HISTORY_LENGTH = 20
_INTENT_LENGTH = 140


@dataclass(frozen=True)
class History:
    """The last runs and the one that is shown. Immutable: a change returns a new one."""

    runs: tuple[tuple[Record, ...], ...] = ()
    selected: tuple[Record, ...] = ()

    def with_run(self, records: tuple[Record, ...]) -> History:
        """Return the history with one more run, which is selected."""
        return History((records, *self.runs)[:HISTORY_LENGTH], records)

    def select(self, index: int) -> History:
        """Return the history with the run at `index` selected; unchanged if there is none."""
        return replace(self, selected=self.runs[index]) if 0 <= index < len(self.runs) else self

    def items(self) -> list[dict[str, Any]]:
        """Return the value of the list that js/history.js draws."""
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
    """Return the file that js/download.js saves; None without records."""
    if not records:
        return None
    stamp = "".join(character for character in records[0]["created"][:19] if character.isdigit())
    text = records_to_csv(records) if kind == "csv" else to_json(records)
    media_type = "text/csv" if kind == "csv" else "application/json"
    return {"name": f"prompt-or-tune-{stamp}.{kind}", "type": media_type, "text": text, "number": number}


def _run_summary(records: Sequence[Record]) -> str:
    best = [method_label(records[i]["method"]) for i in sorted(best_indices(records))]
    if best:
        passes = any(record["scores"].get("tests") == 1 for record in records)
        matches = any(record["scores"].get("em") == 1 for record in records)
        return f"{'passes' if passes else 'match' if matches else 'closest'}: {', '.join(best)}"
    count = len(records)
    return f"{count} answer{'' if count == 1 else 's'}"
