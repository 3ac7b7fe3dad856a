"""Adding a data set of one's own on a page: the form, and `add_rows`, which other pages call with an upload.

The form reads an uploaded file or a data set of the Hub. Its rows are read and split in a process of their own
(ui/data/add_process.py), with the limits of the Train page's uploads.
"""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr

from common.hub import HubAccess
from errors import DataError
from tasks.datasets.own import OwnDataset, RowOptions, suggest_dataset_name
from tasks.datasets.registry import DATASETS
from ui import components
from ui.access.policy import Visitor
from ui.access.quota import check_upload_size
from ui.components import render
from ui.context import Context, hub_access
from ui.train.drafts import check_dataset_name

_ROOT = Path(__file__).resolve().parents[2]
MAX_SECONDS = 600.0
TIMED_OUT = "Reading these rows takes too long here: try fewer of them, or `python -m tasks add`."
PROCESS_DIED = "Reading these rows ended unexpectedly, perhaps for lack of memory: try again, or with fewer rows."
NO_SOURCE = "There are no rows yet: drop a file, or name a data set of the Hub as user/name."
IN_FORM = "see 'Columns and split'"
# Flags of `python -m tasks add` in a message.
_FLAGS = re.compile(r"add (?:--[a-z]+-column NAME ?)+|--overwrite")
_log = logging.getLogger(__name__)
# One at a time: reading a table and comparing its rows takes a core.
_adding = threading.Lock()


@dataclass(frozen=True)
class AddRequest:
    """One request to the process. `source` is the path of a file, or a data set of the Hub."""

    source: str
    is_file: bool
    name: str
    embedder: str
    hub_access: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    overwrite: bool = False


@dataclass(frozen=True)
class AddedRows:
    """The facts of an added data set, and a message for each of the first rows that were left out."""

    info: OwnDataset
    errors: Sequence[str]


def add_rows(
    context: Context,
    visitor: Visitor,
    source: Path | str,
    name: str = "",
    options: RowOptions | None = None,
    *,
    overwrite: bool = False,
    token: str | None = None,
) -> AddedRows:
    """Keep the rows of an uploaded file (a Path) or of a data set of the Hub (a str) as a data set of the owner.

    Without a `name` one is made of the file's. `token` is that of the visitor's login with the Hub. Raises
    PromptOrTuneError for a visitor who does not own the app, and for rows or names that cannot be used.
    """
    policy = context.visitors.policy
    policy.check(visitor, "use own data sets")
    if isinstance(source, Path):
        check_upload_size(source.stat().st_size, policy.limits.upload_bytes, f"'{source.name}'")
    elif check_dataset_name(source) in DATASETS:
        raise DataError(f"'{source}' is a data set that everybody has: it need not be added.")
    access = hub_access(context, visitor, token)
    request = AddRequest(
        str(source),
        isinstance(source, Path),
        name.strip() or suggest_dataset_name(source.name if isinstance(source, Path) else source, DATASETS),
        context.serving.embedder,
        _access_values(access),
        asdict(options or RowOptions()),
        overwrite,
    )
    with _adding:
        answer = _run_process(request)
    if "error" in answer:
        raise DataError(_FLAGS.sub(IN_FORM, answer["error"]))
    return AddedRows(OwnDataset(**answer["info"]), answer["errors"])


def _access_values(access: HubAccess) -> dict[str, Any]:
    return {"token": access.token, "cache": str(access.cache) if access.cache else None}


def _run_process(request: AddRequest) -> dict[str, Any]:
    try:
        done = subprocess.run(
            [sys.executable, "-m", "ui.data.add_process"],
            input=json.dumps(asdict(request)),
            stdout=subprocess.PIPE,
            check=True,
            text=True,
            encoding="utf-8",
            cwd=_ROOT,
            timeout=MAX_SECONDS,
        )
        answer: dict[str, Any] = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return {"error": TIMED_OUT}
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        _log.error("The process that adds a data set failed: %s", error)
        return {"error": PROCESS_DIED}
    return answer


@dataclass(frozen=True)
class AddForm:
    """Components of the form. `columns` are those of intent, code, tests and group, in the order of RowOptions."""

    file: gr.File
    hub: gr.Textbox
    name: gr.Textbox
    columns: tuple[gr.Textbox, ...]
    shares: tuple[gr.Number, gr.Number]
    seed: gr.Number
    overwrite: gr.Checkbox
    add: gr.Button
    note: gr.HTML
    result: gr.HTML

    @property
    def inputs(self) -> list[Any]:
        """The inputs of the button, in the order of `form_values`."""
        return [self.file, self.hub, self.name, *self.columns, *self.shares, self.seed, self.overwrite]


def build_add_form() -> AddForm:
    """Add the form to the current Blocks."""
    with gr.Row(elem_id="data-source", equal_height=True):
        file = gr.File(
            label="A file: JSONL, JSON, CSV, TSV or Parquet", type="filepath", height=150, scale=3, min_width=280,
            elem_id="data-file",
        )  # fmt: skip
        with gr.Column(scale=2, min_width=280, elem_id="data-named"):
            hub = gr.Textbox(
                label="Or a data set on the Hugging Face Hub", placeholder="user/name or user/name@revision",
                max_lines=1, elem_id="data-hub",
            )  # fmt: skip
            name = gr.Textbox(
                label="Name here", placeholder="taken from the file", max_lines=1, max_length=64, elem_id="data-name"
            )
    with gr.Accordion("Columns and split", open=False, elem_id="data-more"):
        with gr.Row():
            columns = tuple(
                gr.Textbox(
                    label=label,
                    placeholder="recognised by its name",
                    max_lines=1,
                    min_width=160,
                    elem_id=f"data-column-{name}",
                )
                for name, label in (
                    ("intent", "Column with what to do"),
                    ("code", "Column with the code"),
                    ("tests", "Column with tests"),
                    ("group", "Column of groups (each stays on one side)"),
                )
            )
        with gr.Row():
            test = gr.Number(20, label="Held-out rows, percent", minimum=1, maximum=79, min_width=150)
            validation = gr.Number(10, label="Validation rows, percent", minimum=0, maximum=79, min_width=150)
            seed = gr.Number(42, label="Seed of the split", precision=0, min_width=120)
            overwrite = gr.Checkbox(False, label="Replace my data set of that name", elem_id="data-overwrite")
    with gr.Row(elem_id="data-add-row"):
        add = gr.Button("Add the rows", variant="primary", scale=0, min_width=150, elem_id="data-add")
        note = components.live_region("", elem_id="data-add-note", role="alert")
    result = gr.HTML("", apply_default_css=False, js_on_load=None, elem_id="data-added")
    return AddForm(file, hub, name, columns, (test, validation), seed, overwrite, add, note, result)


def form_values(values: Sequence[Any]) -> tuple[Path | str, str, RowOptions, bool]:
    """Parse the values of `AddForm.inputs`: source, name, options, and whether a data set of the name is replaced.

    Raises DataError without a source, and for shares that leave no rows to learn from.
    """
    file, hub, name, intent, code, tests, group, test, validation, seed, overwrite = values
    hub = str(hub or "").strip()
    if not file and not hub:
        raise DataError(NO_SOURCE)
    intent, code, tests, group = (str(column or "").strip() or None for column in (intent, code, tests, group))
    try:
        options = RowOptions(intent, code, tests, group, float(validation) / 100, float(test) / 100, int(seed))
    except (TypeError, ValueError, OverflowError):
        raise DataError("The shares and the seed must be numbers: fill them in.") from None
    return Path(file) if file else hub, str(name or ""), options, bool(overwrite)


def added_html(added: AddedRows) -> str:
    """Return what was read: the facts, and the rows that were left out with the reasons."""
    lines = added.info.describe().splitlines()
    return render("data/added.html.jinja", lines=lines, errors=added.errors, left_out=added.info.left_out)
