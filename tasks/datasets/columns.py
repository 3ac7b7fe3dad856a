"""Column detection: which columns of a table are the intent and the code, by usual names or a mapping."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from errors import DataError


@dataclass(frozen=True)
class Columns:
    """The columns in use: `turns`, one column with both sides of a chat, or `intent` and `code`.

    `context` is appended to the intent where a row has it.
    """

    intent: str = ""
    code: str = ""
    context: str = ""
    turns: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all columns in use."""
        return tuple(name for name in (self.intent, self.context, self.code, self.turns) if name)

    def __str__(self) -> str:
        if self.turns:
            return f"{self.turns} (user to assistant)"
        return f"{self.intent}{f' + {self.context}' if self.context else ''} -> {self.code}"


# Ordered from the most specific names, as a table can match several.
KNOWN_COLUMNS = (
    Columns("intent", "snippet"),
    Columns("nl", "cmd"),
    Columns("instruction", "output", context="input"),
    Columns("instruction", "response", context="context"),
    Columns("instruction", "response", context="input"),
    Columns("prompt", "completion"),
    Columns(turns="messages"),
    Columns(turns="conversations"),
    Columns("question", "answer"),
    Columns("intent", "code"),
    Columns("prompt", "response"),
    Columns("text", "code"),
)


def detect_columns(path: Path, columns: Sequence[str], intent: str | None = None, code: str | None = None) -> Columns:
    """Return the columns to read. `intent` and `code` override the detection; the same name twice is a chat column.

    Raises DataError with the table's columns and how to map them.
    """
    for mapped in (intent, code):
        if mapped is not None and mapped not in columns:
            near = difflib.get_close_matches(mapped, columns, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise DataError(f"{path} has no column '{mapped}': {hint}it has {quote_names(columns)}.")
    if intent is not None and code is not None:
        return Columns(turns=intent) if intent == code else Columns(intent, code)
    by_folded_name = {name.strip().casefold(): name for name in reversed(columns)}
    if intent is None and code is None:
        found = next(
            (_with_table_names(layout, by_folded_name) for layout in KNOWN_COLUMNS if _matches(layout, by_folded_name)),
            None,
        )
    else:
        found = _complete_mapping(intent, code, by_folded_name)
    if found is None:
        missing = " ".join(
            f"--{side}-column NAME" for side, name in (("intent", intent), ("code", code)) if name is None
        )
        raise DataError(
            f"{path} has the columns {quote_names(columns)}, and none that are known as "
            f"{'an intent and its code' if intent == code else 'the intent' if code else 'the code'}: add {missing}."
        )
    return found


def _matches(layout: Columns, table_names: Mapping[str, str]) -> bool:
    return all(name in table_names for name in layout.names if name != layout.context)


def _with_table_names(layout: Columns, table_names: Mapping[str, str]) -> Columns:
    """Return the layout with the names as the table spells them."""
    return Columns(*(table_names.get(name, "") for name in (layout.intent, layout.code, layout.context, layout.turns)))


def _complete_mapping(intent: str | None, code: str | None, table_names: Mapping[str, str]) -> Columns | None:
    """Find the column that was not mapped, by its usual partner, or else by any known name."""
    pairs = [_with_table_names(layout, table_names) for layout in KNOWN_COLUMNS if not layout.turns]
    mapped = intent or code
    partners = [pair for pair in pairs if mapped in (pair.intent, pair.code)]
    for pair in (*partners, *pairs):
        chosen = Columns(intent or pair.intent, code or pair.code, pair.context if pair.intent == intent else "")
        if chosen.intent and chosen.code and chosen.intent != chosen.code:
            return chosen
    return None


def quote_names(columns: Iterable[object]) -> str:
    """Quote the first twenty names from a file for a message, each printable and shortened."""
    names = list(columns)
    quoted = [f"'{_printable(str(name))}'" for name in names[:20]]
    return ", ".join(quoted) + (f" and {len(names) - 20} more" if len(names) > 20 else "") or "none"


def _printable(name: str) -> str:
    clean = "".join(character if character.isprintable() else "?" for character in name[:61])
    return clean if len(clean) <= 60 else clean[:59] + "…"
