"""The list of problems as js/results.js draws it: a page of rows, each with who solved it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from ui import widgets
from ui.results.view import ProblemRow, ProblemTable, outcome

PAGE_SIZE = 25
_MAX_INTENT_LENGTH = 160


def problem_list_value(
    table: ProblemTable, rows: Sequence[ProblemRow], start: int = 0, selected: str = ""
) -> dict[str, Any]:
    """The value of the list: the rows from `start` on, at most PAGE_SIZE of them. `shown` is the open problem's id."""
    start = min(max(start, 0), max(len(rows) - 1, 0)) // PAGE_SIZE * PAGE_SIZE
    return {
        "head": _count_text(table, len(rows)),
        "columns": [side.label for side in table.columns],
        "rows": [_row_value(table, row) for row in rows[start : start + PAGE_SIZE]],
        "from": start,
        "size": PAGE_SIZE,
        "total": len(rows),
        "shown": selected,
    }


def summary_component(value: str) -> gr.HTML:
    """The tables and plots. Its value is HTML; a click on a method triggers `select` with {"method"}: a side's key."""
    return gr.HTML(
        value,
        html_template='<div role="status" aria-live="polite">${value}</div>',
        js_on_load=widgets.load_script("summary"),
        apply_default_css=False,
        elem_id="summary",
    )


def problem_list_component() -> gr.HTML:
    """The list. A click triggers `select` with {"id"} for a problem and {"from"} for another page."""
    template = (
        '<p class="found" role="status" aria-live="polite"></p><p class="keys quiet"><span class="cells" '
        'aria-hidden="true"><span class="solved"></span></span> solved <span class="cells" aria-hidden="true">'
        '<span class="wrong"></span></span> not solved <span class="cells" aria-hidden="true">'
        '<span class="failed"></span></span> no answer; one cell a method, in the order of the table. Solved: the '
        'first candidate passes all tests or, where none ran, is the reference.</p><ol class="problems"></ol>'
        '<div class="pager"></div>'
    )
    return gr.HTML(
        None,
        html_template=template,
        js_on_load=widgets.load_script("results"),
        apply_default_css=False,
        elem_id="problems",
    )


def _count_text(table: ProblemTable, found: int) -> str:
    total = len(table.rows)
    if found == total:
        return f"{total} problem{'' if total == 1 else 's'}"
    return f"{found} of {total} problems" if found else f"None of {total} problems is like that: loosen the filter."


def _row_value(table: ProblemTable, row: ProblemRow) -> dict[str, Any]:
    marks = [outcome(row.results.get(side.key)) for side in table.columns]
    line = " ".join(str(row.problem["intent"]).split())
    return {
        "id": row.id,
        "intent": line if len(line) <= _MAX_INTENT_LENGTH else line[:_MAX_INTENT_LENGTH].rstrip() + " …",
        "marks": marks,
        "said": _solved_text(marks),
    }


def _solved_text(outcomes: Sequence[str]) -> str:
    known = sum(found not in ("missing", "unscored") for found in outcomes)
    if not known:
        return "not scored"
    return f"solved by {outcomes.count('solved')} of {known}"
