"""Which columns of a comparison say the same: letter by letter, or with the same syntax tree."""

from __future__ import annotations

from collections.abc import Sequence

from evaluate.exact_match import exact_match, syntax_tree_match
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
