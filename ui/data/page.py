"""Data page: the owner's data sets (add, look at, save, delete), and runs over all held-out rows of any data set.

All of it belongs to the owner of the app ("use own data sets" in ui/access/policy.py).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import gradio as gr

from errors import PromptOrTuneError
from tasks.datasets.base import SPLITS
from tasks.datasets.own import (
    OwnDataset,
    list_own_datasets,
    read_own_dataset,
    read_own_rows,
    remove_own_dataset,
    suggest_dataset_name,
)
from tasks.datasets.registry import DATASETS
from ui import components
from ui.access.guard import action, data_choices, guard, login_token, may_use_own
from ui.components import code_html, format_date, render
from ui.context import Context
from ui.data.add import AddForm, add_rows, added_html, build_add_form, form_values
from ui.data.run_section import RunEvents, RunSection, build_run_section, wire_run_section
from ui.results.runs import RunLibrary

PAGE_SIZE = 10
SPLIT_LABELS = {"train": "Training rows", "validation": "Validation rows", "test": "Held-out rows"}
TITLE = "Data"
HEADING = (
    "<h1>What does each method make of your rows?</h1><p>A file of what you ask and the code you want becomes a data "
    "set: a part to learn from, a part that no method sees, and a copy that stays on this machine. Compare, Arena and "
    "Train list it by its name.</p>"
)
READING = "Reading the rows, and looking for near-twins ..."
DELETED = "'{}' is deleted."
INTERNAL_ERROR = "Something went wrong on our side; the log has the details."
Update = dict[Any, Any]
_log = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class DataPage:
    """Components that events read and change. `number` counts the files that were saved."""

    denied: gr.HTML
    body: gr.Column
    form: AddForm
    note: gr.HTML
    sets: gr.HTML
    rows: gr.HTML
    section: RunSection
    download: gr.HTML
    number: gr.State


def build_data(context: Context, library: RunLibrary, tab: gr.Tab) -> None:
    """Build the page inside `tab` and wire its events. Runs are written to the last folder of `library`."""
    with gr.Column(elem_id="data"):
        gr.HTML(HEADING, apply_default_css=False, js_on_load=None, elem_id="data-title")
        denied = components.live_region("", elem_id="data-denied")
        with gr.Column(elem_id="data-body") as body:
            form = build_add_form()
            gr.HTML("<h2>Your data sets</h2>", apply_default_css=False, js_on_load=None, elem_id="data-sets-title")
            note = components.live_region("", elem_id="data-note", role="alert")
            sets, rows = actions_component("", "data-sets"), actions_component("", "data-rows")
            section = build_run_section(context)
    page = DataPage(denied, body, form, note, sets, rows, section, components.file_download(), gr.State(0))
    events = RunEvents(context, section, library)
    wire_run_section(section, events)
    _wire_tab(context, page, events, tab)
    _wire_add(context, page)
    _wire_sets(context, page)


def _wire_tab(context: Context, page: DataPage, events: RunEvents, tab: gr.Tab) -> None:
    @action("view pages")
    def opened(request: gr.Request) -> Update:
        visitor = context.visitors.identify(request)
        denied = context.visitors.policy.denied_reason(visitor, "use own data sets")
        if denied or not may_use_own(context, visitor):
            return {page.denied: components.paragraph_html(denied or ""), page.body: gr.Column(visible=False)}
        return {page.denied: "", page.body: gr.Column(visible=True), page.sets: sets_html(), **events.opened()}

    section = page.section
    outputs = [
        page.denied, page.body, page.sets, section.data, section.form.adapter, section.form.reasons,
        *section.state_outputs,
    ]  # fmt: skip
    tab.select(opened, None, outputs, **components.EVENT_OPTIONS)
    tab.select(events.default_chips, section.form.chips, section.form.chips, **components.EVENT_OPTIONS)


def _wire_add(context: Context, page: DataPage) -> None:
    form = page.form

    @action("use own data sets")
    def suggest(path: str | None) -> Update:
        name = suggest_dataset_name(Path(path).name, DATASETS) if path else ""
        return {form.name: name, form.hub: "", form.result: "", form.note: ""}

    def add(request: gr.Request, *values: Any) -> Iterator[Update]:
        visitor = context.visitors.identify(request)
        try:
            source, name, options, overwrite = form_values(values)
            yield {
                form.note: components.paragraph_html(READING),
                form.result: "",
                form.add: gr.Button(interactive=False),
            }
            added = add_rows(
                context, visitor, source, name, options, overwrite=overwrite, token=login_token(request)
            )  # fmt: skip
            changes: Update = {
                form.note: "", form.result: added_html(added), form.file: None, form.hub: "", form.name: "",
                form.overwrite: False, page.sets: sets_html(), page.note: "", page.rows: "",
                page.section.data: _data_update(context, added.info.name),
            }  # fmt: skip
        except PromptOrTuneError as error:
            changes = {form.note: components.error_html(error)}
        except Exception:  # noqa: BLE001 - the page must survive any bug, which is logged
            _log.exception("A data set could not be added.")
            changes = {form.note: components.error_html(INTERNAL_ERROR)}
        yield {**changes, form.add: gr.Button(interactive=True)}

    def refuse(reason: str, _: Sequence[Any]) -> Update:
        return {form.note: components.error_html(reason)}

    form.file.upload(suggest, form.file, [form.name, form.hub, form.result, form.note], **components.EVENT_OPTIONS)
    form.add.click(
        guard(context.visitors, "use own data sets", add, refuse),
        form.inputs,
        [
            form.note, form.result, form.add, form.file, form.hub, form.name, form.overwrite, page.sets, page.note,
            page.rows, page.section.data,
        ],
        show_progress="hidden",
        api_visibility="private",
        concurrency_limit=2,
    )  # fmt: skip


def _wire_sets(context: Context, page: DataPage) -> None:
    @action("use own data sets")
    def act(number: int, event: gr.EventData) -> Update:
        do, name, split, start = action_of(event._data)
        changes: Update = {page.note: ""}
        try:
            if do == "rows":
                changes[page.rows] = rows_html(name, split, start)
            elif do == "close":
                changes[page.rows] = ""
            elif do == "ask":
                changes[page.section.data] = _data_update(context, name)
            elif do == "save":
                changes |= {page.download: download_value(name, number + 1), page.number: number + 1}
            elif do == "delete":
                remove_own_dataset(name)
                changes |= {page.note: components.paragraph_html(DELETED.format(name)), page.rows: ""}
                changes |= {page.sets: sets_html(), page.section.data: _data_update(context)}
        except PromptOrTuneError as error:
            changes = {page.note: components.error_html(error), page.sets: sets_html()}
        return changes

    outputs = [page.note, page.sets, page.rows, page.download, page.number, page.section.data]
    for component in (page.sets, page.rows):
        component.select(act, page.number, outputs, **components.EVENT_OPTIONS)


def _data_update(context: Context, name: str | None = None) -> Any:
    """Return an update of the data sets that can be asked, with `name` selected if it is given."""
    choices = data_choices(context.data_dir, own=True)
    return gr.Dropdown(choices=choices, value=name) if name else gr.Dropdown(choices=choices)
