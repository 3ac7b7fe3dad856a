"""State of the Compare page in the storage of the browser, validated when it is read back.

js/page.js stores it, so that no other visitor sees it and the server stores nothing. Its values are untrusted.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from errors import PromptOrTuneError
from tasks.datasets.registry import DATASETS, TRAINING_DATASETS
from tasks.methods import MAX_INTENT_CHARS
from tasks.problem import Problem
from ui.compare.comparison import MAX_COLUMNS
from ui.compare.decoding_form import DECODING_MODES, read_sampling_params
from ui.compare.verdict import HISTORY_LENGTH, History, verdict_text
from ui.compare.view import finished_view
from ui.components import chip_names
from ui.records import Record, record_problem, records_to_csv

TEXT_FIELDS = ("intent", "reference", "tests")
DECODING_FIELDS = ("mode", "candidates", "max_new_tokens", "temperature", "top_p", "seed")
# In the order of the components in ComparePage.stored_fields.
STORED_FIELDS = (*TEXT_FIELDS, "chips", "data", "problem", "pool", *DECODING_FIELDS)
_MAX_NAME_LENGTH = 200
_RUN_ADAPTER: TypeAdapter[list[Record]] = TypeAdapter(list[Record])
_PROBLEM_ADAPTER = TypeAdapter(Problem)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BrowserState:
    """The valid fields by name, the selected test problem, and the runs."""

    fields: Mapping[str, Any]
    selected_problem: Problem | None
    history: History


def parse_browser_state(value: Any, own_names: Sequence[str] = ()) -> BrowserState:
    """Parse {"fields", "chosen", "runs", "shown"} of the browser; invalid parts are left out.

    `own_names` are the data sets that this visitor may use beside those that everybody has.
    """
    state = value if isinstance(value, dict) else {}
    return BrowserState(
        _parse_fields(state.get("fields"), own_names),
        _parse_problem(state.get("chosen")),
        _parse_history(state.get("runs"), state.get("shown")),
    )


def _parse_fields(value: Any, own_names: Sequence[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {}
    fields: dict[str, Any] = {name: value[name] for name in TEXT_FIELDS if isinstance(value.get(name), str)}
    chips = value.get("chips")
    if isinstance(chips, list) and all(isinstance(chip, dict) and isinstance(chip.get("name"), str) for chip in chips):
        fields["chips"] = [name for name in chip_names(chips) if len(name) <= _MAX_NAME_LENGTH][:MAX_COLUMNS]
    known = {"data": (*DATASETS, *own_names), "pool": (*TRAINING_DATASETS, *own_names)}
    fields |= {name: value[name] for name, names in known.items() if value.get(name) in names}
    if isinstance(value.get("problem"), str):
        fields["problem"] = value["problem"]
    decoding = [value.get(name) for name in DECODING_FIELDS]
    if decoding[0] not in {name for _, name in DECODING_MODES}:
        return fields
    try:
        read_sampling_params(*decoding)  # type: ignore[arg-type]  # this is the check of their types
    except (PromptOrTuneError, TypeError, ValueError):
        return fields
    return fields | dict(zip(DECODING_FIELDS, decoding, strict=True))


def _parse_problem(value: Any) -> Problem | None:
    try:
        problem = _PROBLEM_ADAPTER.validate_python(value) if value is not None else None
    except ValidationError:
        return None
    texts = (problem.id, problem.intent, problem.reference or "", problem.prompt) if problem else ()
    return problem if all(len(text) <= MAX_INTENT_CHARS for text in texts) else None


def _parse_history(value: Any, selected: Any) -> History:
    stored = value[:HISTORY_LENGTH] if isinstance(value, list) else []
    runs = tuple(run for run in map(_parse_run, stored) if run)
    return History(runs, next((run for run in runs if run[0]["created"] == selected), runs[0] if runs else ()))


def _parse_run(value: Any) -> tuple[Record, ...]:
    """Return the records of a run; () if the page cannot show or export them, as after an update of the program."""
    try:
        run = tuple(_RUN_ADAPTER.validate_python(value, strict=True))
        History((run,)).items(), verdict_text(run), records_to_csv(run), finished_view(run), record_problem(run[0])
    except (ValidationError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
        _log.info("A run in the storage of a browser cannot be shown (%s).", type(error).__name__)
        return ()
    return run
