"""The list of problems as js/results.js draws it: a page of rows, each with who solved it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from ui import widgets
from ui.results.view import Row, View, mark

PAGE = 25
_LENGTH = 160


def problem_list(view: View, rows: Sequence[Row], start: int = 0, shown: str = "") -> dict[str, Any]:
    """The value of the list: the rows from `start` on, at most PAGE of them. `shown` is the open problem's id."""
    start = min(max(start, 0), max(len(rows) - 1, 0)) // PAGE * PAGE
    return {
        "head": _head(view, len(rows)),
        "columns": [side.label for side in view.sides],
        "rows": [_row(view, row) for row in rows[start : start + PAGE]],
        "from": start,
        "size": PAGE,
        "total": len(rows),
        "shown": shown,
    }


def summary_widget(value: str) -> gr.HTML:
    """The tables and plots. Its value is HTML; a click on a method triggers `select` with {"method"}: a side's key."""
    return gr.HTML(
        value,
        html_template='<div role="status" aria-live="polite">${value}</div>',
        js_on_load=widgets.script("summary"),
        apply_default_css=False,
        elem_id="summary",
    )


def problem_widget() -> gr.HTML:
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
        js_on_load=widgets.script("results"),
        apply_default_css=False,
        elem_id="problems",
    )


def _head(view: View, found: int) -> str:
    total = len(view.rows)
    if found == total:
        return f"{total} problem{'' if total == 1 else 's'}"
    return f"{found} of {total} problems" if found else f"None of {total} problems is like that: loosen the filter."


def _row(view: View, row: Row) -> dict[str, Any]:
    marks = [mark(row.results.get(side.key)) for side in view.sides]
    line = " ".join(str(row.problem["intent"]).split())
    return {
        "id": row.id,
        "intent": line if len(line) <= _LENGTH else line[:_LENGTH].rstrip() + " …",
        "marks": marks,
        "said": _said(marks),
    }


def _said(marks: Sequence[str]) -> str:
    known = sum(found not in ("missing", "unscored") for found in marks)
    if not known:
        return "not scored"
    return f"solved by {marks.count('solved')} of {known}"
