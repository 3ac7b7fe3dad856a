"""List of the owner's data sets with their facts, and a look at the rows of one, as HTML; and their rows as a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import gradio as gr

from tasks.datasets.base import SPLITS
from tasks.datasets.own import OwnDataset, list_own_datasets, read_own_dataset, read_own_rows
from ui import components
from ui.html import code_html, render
from ui.labels import format_date

PAGE_SIZE = 10
SPLIT_LABELS = {"train": "Training rows", "validation": "Validation rows", "test": "Held-out rows"}


def actions_component(value: str, elem_id: str) -> gr.HTML:
    """Return a component whose buttons with data-do trigger `select` with their data: {"do", "name", ...}."""
    return gr.HTML(
        value,
        html_template='<div role="status" aria-live="polite">${value}</div>',
        js_on_load=components.load_script("data_sets"),
        apply_default_css=False,
        elem_id=elem_id,
    )


def sets_html() -> str:
    """Return the list of all data sets of the owner, newest first."""
    found = sorted(list_own_datasets(), key=lambda info: datetime.fromisoformat(info.created), reverse=True)
    return render("data/sets.html.jinja", sets=[_set_values(info) for info in found])


def _set_values(info: OwnDataset) -> dict[str, Any]:
    total = sum(info.rows.values())
    facts = [f"{info.source}", info.columns, f"added on {format_date(info.created)}", f"seed {info.seed}"]
    facts += [f"groups by '{info.group}'"] if info.group else []
    notes = [f"{info.left_out} rows left out"] if info.left_out else []
    notes += [f"{info.twins} pairs of near-twins"] if info.twins else []
    notes += [info.note] if info.note else []
    tests = f"{info.with_tests} of {total} with tests" if info.with_tests else "no tests"
    counts = [f"{info.rows.get('train', 0)} to learn from", f"{info.rows.get('validation', 0)} to validate"]
    counts += [f"{info.rows.get('test', 0)} held out", tests]
    return {"name": info.name, "counts": " · ".join(counts), "facts": " · ".join(facts), "notes": " · ".join(notes)}


def rows_html(name: str, split: str, start: int = 0) -> str:
    """Return a page of the rows of one split; raises UnknownNameError for an unknown data set."""
    split = split if split in SPLITS else "test"
    rows = read_own_rows(name, split)
    start = min(max(start, 0), max(len(rows) - 1, 0)) // PAGE_SIZE * PAGE_SIZE
    page = rows[start : start + PAGE_SIZE]
    info = read_own_dataset(name)
    return render(
        "data/rows.html.jinja",
        name=name,
        split=split,
        splits=[(key, label, info.rows.get(key, 0)) for key, label in SPLIT_LABELS.items()],
        rows=[{**row, "code": code_html(row["code"]), "tests": row["tests"]} for row in page],
        start=start,
        size=PAGE_SIZE,
        total=len(rows),
    )


def download_value(name: str, number: int) -> dict[str, Any]:
    """Return all rows as the file that js/download.js saves: JSON lines, each with the name of its split."""
    lines = [json.dumps({**row, "split": split}) + "\n" for split in SPLITS for row in read_own_rows(name, split)]
    return {"name": f"{name}.jsonl", "type": "application/x-ndjson", "text": "".join(lines), "number": number}


def action_of(data: object) -> tuple[str, str, str, int]:
    """Return do, name, split and start of an action that a browser sent; '' and 0 for what is missing."""
    values: Mapping[str, Any] = data if isinstance(data, Mapping) else {}
    do, name, split = (str(values.get(key) or "")[:100] for key in ("do", "name", "split"))
    start = str(values.get("from") or "")
    return do, name, split, int(start) if start.isdecimal() and len(start) < 9 else 0
