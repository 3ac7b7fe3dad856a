"""What a session remembers of its runs, newest first, as the page's list and as files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ui.labels import format_time, method_label
from ui.records import Record, to_csv, to_json
from ui.verdict import best_indices

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
    return {"name": f"peft-arena-{stamp}.{kind}", "type": media, "text": text, "number": number}


def _run_summary(records: Sequence[Record]) -> str:
    marked = [method_label(records[place]["method"]) for place in sorted(best_indices(records))]
    if marked:
        passes = any(record["scores"].get("tests") == 1 for record in records)
        matches = any(record["scores"].get("em") == 1 for record in records)
        return f"{'passes' if passes else 'match' if matches else 'closest'}: {', '.join(marked)}"
    count = len(records)
    return f"{count} answer{'' if count == 1 else 's'}"
