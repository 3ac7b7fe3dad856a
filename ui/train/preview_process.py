"""Looks at rows in a process of its own: which columns they have, what is wrong with them, what training would take.

    python -m ui.train.preview_process < requests.jsonl

One request a line: TrainConfig's fields by name. Events come back, one JSON object a line: {"table"}, {"facts"},
{"line"} for progress, and at the end one of {"preflight"}, {"question"} (which columns?), {"refused"} or {"defect"}.

A process of its own, because the estimate builds the base's skeleton with torch's global settings changed, which a
model that is answering must not meet; and because it can be ended when nobody waits for it any more.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.command import configure_environment
from errors import DataError, PromptOrTuneError
from models.source import Source
from tasks.datasets.columns import Columns, detect_columns, quote_names
from tasks.datasets.hub import fetch_tables, is_hub_id
from tasks.datasets.registry import DATASETS
from tasks.datasets.tables import open_table
from tasks.datasets.upload import read_upload
from train.config import TrainConfig
from train.settings import make_config
from train.tokenize import TokenizedData

Event = dict[str, Any]
# Faults of rows that are told; all are counted.
MAX_LISTED_ERRORS = 50


def preview(values: Mapping[str, Any], report_progress: Any) -> Iterator[Event]:
    """All events of one request but the lines of progress, which go to `say` as they come."""
    from train.preflight import run_preflight

    try:
        config = make_config(values)
        yield from _read_rows(config, report_progress)
        if not config.model_name_or_path:
            return
        report_progress("Counting what would be learned ...")
        yield {"preflight": run_preflight(config, report_progress, _estimate).to_dict()}
    except _UnknownColumnsError as error:
        yield {"question": str(error)}
    except PromptOrTuneError as error:
        yield {"refused": hide_path(str(error), str(values.get("dataset_name", "")))}


class _UnknownColumnsError(PromptOrTuneError):
    """The columns are there, and which of them to read is not known."""


def _read_rows(config: TrainConfig, report_progress: Any) -> Iterator[Event]:
    """The table and the facts, of a file or a data set of the Hub; our own data sets are known to be sound."""
    name = config.dataset_name
    if name in DATASETS:
        return
    if is_hub_id(name) and not Path(name).is_file():
        report_progress(f"Fetching {name} from the Hub ...")
        paths = list(fetch_tables(name).train)
    else:
        paths = [Path(name)]
    table = open_table(paths[0])
    try:
        found = detect_columns(paths[0], table.columns)
    except DataError:
        found = Columns()
    chosen = (config.intent_column, config.code_column)
    yield {"table": {"columns": list(table.columns), "recognised": column_pair(found), "chosen": list(chosen)}}
    if not column_pair(found) and None in chosen:
        raise _UnknownColumnsError(
            f"{paths[0].name} has the columns {quote_names(table.columns)}: choose which one says what the code should do, "
            "and which one holds the code."
        )
    uploads = [read_upload(path, *chosen) for path in paths]
    faults = [f"{error.message}" for upload in uploads for error in upload.errors]
    yield {
        "facts": {
            "rows": sum(upload.rows for upload in uploads),
            "usable": sum(len(upload.examples) for upload in uploads),
            "mapping": str(uploads[0].mapping),
            "row_errors": {"count": len(faults), "examples": faults[:MAX_LISTED_ERRORS]},
        }
    }


def column_pair(columns: Columns) -> list[str]:
    """The two columns that a page shows; the same one twice for a chat. Empty where none are known."""
    both = [columns.turns or columns.intent, columns.turns or columns.code]
    return both if all(both) else []


def hide_path(message: str, path: str) -> str:
    """The sentence with the file's name where it names its path on this machine, and without flags of a command."""
    return message.replace(path, Path(path).name) if "/" in path and Path(path).is_absolute() else message


def _estimate(config: TrainConfig, source: Source, prepared: TokenizedData) -> Event:
    """The estimate in numbers, with the memory that is free now; {"reason"} where there is none."""
    from models.memory import free_memory
    from train.estimate import try_estimate

    guess = try_estimate(config, source.folder, prepared)
    if isinstance(guess, str):
        return {"reason": f"What it takes is {guess}"}
    return {**asdict(guess), "free_bytes": free_memory(config.device)}


def main() -> None:
    """Answers requests until there are no more."""
    # What libraries print must not stand among the events.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    configure_environment()
    with suppress(OSError, AttributeError):
        os.nice(5)  # whoever waits for an answer of the model comes first

    def send(event: Event) -> None:
        out.write(json.dumps(event) + "\n")
        out.flush()

    for line in sys.stdin:
        try:
            for event in preview(json.loads(line), lambda text: send({"line": text})):
                send(event)
        except Exception:  # noqa: BLE001 - whoever waits must hear of any failure; it is logged whole
            traceback.print_exc()
            send({"defect": "Something went wrong on our side while looking at the rows, and the log says what."})
        send({"over": True})


if __name__ == "__main__":
    main()
