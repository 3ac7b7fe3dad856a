"""What a browser kept of the Compare page, read back after a refresh.

It stays in the browser's own storage (js/page.js), so another visitor never has it, and the server has nothing to
lose or to leak. It comes from outside, though: nothing of it is taken on trust.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from errors import PeftArenaError
from tasks.datasets import DATASETS
from tasks.problem import Problem
from ui.board import finished_board
from ui.compare_run import MAX_COLUMNS
from ui.history import HISTORY_LENGTH, History
from ui.options import MODES, decoding
from ui.records import Record, to_csv
from ui.verdict import verdict
from ui.widgets import chip_names

TEXTS = ("intent", "reference", "tests")
DECODING = ("mode", "candidates", "max_new_tokens", "temperature", "top_p", "seed")
# In the order in which the page's script gets them.
FIELDS = (*TEXTS, "chips", "data", "problem", "pool", *DECODING)
_LONGEST_NAME = 200
_RUN: TypeAdapter[list[Record]] = TypeAdapter(list[Record])
_PROBLEM = TypeAdapter(Problem)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kept:
    """Fields by name, only those that can be filled in as they are; the test problem asked about; the runs."""

    fields: Mapping[str, Any]
    chosen: Problem | None
    history: History


def read_kept(value: Any) -> Kept:
    """What the browser sent as {"fields", "chosen", "runs", "shown"}; whatever is not as we wrote it is left out."""
    kept = value if isinstance(value, dict) else {}
    return Kept(_fields(kept.get("fields")), _chosen(kept.get("chosen")), _history(kept.get("runs"), kept.get("shown")))


def _fields(given: Any) -> dict[str, Any]:
    if not isinstance(given, dict):
        return {}
    fields: dict[str, Any] = {name: given[name] for name in TEXTS if isinstance(given.get(name), str)}
    chips = given.get("chips")
    if isinstance(chips, list) and all(isinstance(chip, dict) and isinstance(chip.get("name"), str) for chip in chips):
        fields["chips"] = [name for name in chip_names(chips) if len(name) <= _LONGEST_NAME][:MAX_COLUMNS]
    fields |= {name: given[name] for name in ("data", "pool") if given.get(name) in DATASETS}
    if isinstance(given.get("problem"), str):
        fields["problem"] = given["problem"]
    choices = [given.get(name) for name in DECODING]
    if choices[0] not in {name for _, name in MODES}:
        return fields
    try:
        decoding(*choices)  # type: ignore[arg-type]  # of whatever kind: this is the check
    except (PeftArenaError, TypeError, ValueError):
        return fields
    return fields | dict(zip(DECODING, choices, strict=True))


def _chosen(given: Any) -> Problem | None:
    try:
        return _PROBLEM.validate_python(given) if given is not None else None
    except ValidationError:
        return None


def _history(given: Any, shown: Any) -> History:
    runs = [run for each in given[:HISTORY_LENGTH] if (run := _run(each))] if isinstance(given, list) else []
    on_board = next((run for run in runs if run[0]["created"] == shown), runs[0] if runs else ())
    return History(tuple(runs), on_board)


def _run(given: Any) -> tuple[Record, ...]:
    """A run's records; () where the page could not show or save them, as after an update of the program."""
    try:
        run = tuple(_RUN.validate_python(given, strict=True))
        History((run,)).items(), verdict(run), to_csv(run), finished_board(run)
    except (ValidationError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as fault:
        _log.info("A run that a browser kept cannot be shown (%s).", type(fault).__name__)
        return ()
    return run
