"""Preview process: finds the columns of uploaded rows, their errors, and what training on them would take.

    python -m ui.train.preview_process < requests.jsonl

Each line of the input is a request: TrainConfig's fields by name, and as "hub_access" the token and the cache folder
with which a data set of the Hub is fetched; without it no token is sent and visitors' cache is used. The answer is a
series of events, one JSON object a line: {"table"}, {"facts"}, {"progress"}, then one of {"preflight"}, {"question"}
(which columns?), {"error"} or {"internal_error"}, and at the end {"done"}.

It is a process of its own for two reasons. The estimate builds the base on the meta device with torch's global settings
changed, which must not happen in a process whose model is answering. And a process can be killed when its answer is no
longer needed.
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
from typing import Any, TextIO

from common.command import configure_environment
from common.files import cache_dir
from common.hub import HubAccess, visitor_hub_access
from errors import DataError, PromptOrTuneError
from models.source import Source
from tasks.datasets.base import Columns, detect_columns, quote_names
from tasks.datasets.hub import fetch_tables, is_hub_id, use_hub_access
from tasks.datasets.registry import is_dataset
from tasks.datasets.tables import open_table
from tasks.datasets.upload import read_upload
from train.config import TrainConfig
from train.settings import make_config
from train.tokenize import TokenizedData

Event = dict[str, Any]
# Row errors that are sent; all of them are counted.
MAX_LISTED_ERRORS = 50
MAX_EVENT_CHARS = 2_000_000
# Of the data of this process: torch takes 0.25 GB, and 20 MB of rows some hundred MB. A file cannot take the machine.
MAX_MEMORY_BYTES = 3 << 30
OUT_OF_MEMORY = "These rows take more memory than reading them may: split the file, or leave rows and columns out."
TOO_LONG_REPORT = "The report on these rows is too long to show: shorten the names of the columns and the cells."


def preview(values: Mapping[str, Any], report_progress: Any) -> Iterator[Event]:
    """Yield all events of one request except progress, which goes to `report_progress(message)`."""
    from train.preflight import run_preflight

    try:
        config = make_config({name: value for name, value in values.items() if name != "hub_access"})
        with use_hub_access(_hub_access(values.get("hub_access"))):
            yield from _read_rows(config, report_progress)
            if not config.model_name_or_path:
                return
            report_progress("Counting what would be learned ...")
            yield {"preflight": run_preflight(config, report_progress, _estimate).to_dict()}
    except _UnknownColumnsError as error:
        yield {"question": str(error)}
    except PromptOrTuneError as error:
        yield {"error": hide_path(str(error), str(values.get("dataset_name", "")))}


def _hub_access(value: Any) -> HubAccess:
    """Return the access in a request, {"token", "cache"}; without one that of a visitor without a token."""
    if value is None:
        return visitor_hub_access(cache_dir())
    return HubAccess(value["token"], Path(value["cache"]) if value["cache"] else None)


class _UnknownColumnsError(PromptOrTuneError):
    """The table has columns, and none of them is known to be the intent or the code."""


def _read_rows(config: TrainConfig, report_progress: Any) -> Iterator[Event]:
    """Yield table and facts of a file or a data set of the Hub; nothing for those that have names here (no errors)."""
    name = config.dataset_name
    if is_dataset(name):
        return
    if is_hub_id(name) and not Path(name).is_file():
        report_progress(f"Fetching {name} from the Hub ...")
        paths = list(fetch_tables(name).train)
    else:
        paths = [Path(name)]
    table = open_table(paths[0])
    try:
        detected = detect_columns(paths[0], table.columns)
    except DataError:
        detected = Columns()
    chosen = (config.intent_column, config.code_column)
    recognised = column_pair(detected)
    yield {"table": {"columns": list(table.columns), "recognised": recognised, "chosen": list(chosen)}}
    if not recognised and None in chosen:
        raise _UnknownColumnsError(
            f"{paths[0].name} has the columns {quote_names(table.columns)}: choose which one says what the code should "
            "do, and which one holds the code."
        )
    uploads = [read_upload(path, *chosen) for path in paths]
    messages = [error.message for upload in uploads for error in upload.errors]
    yield {
        "facts": {
            "rows": sum(upload.rows for upload in uploads),
            "usable": sum(len(upload.examples) for upload in uploads),
            "mapping": str(uploads[0].mapping),
            "row_errors": {"count": len(messages), "examples": messages[:MAX_LISTED_ERRORS]},
        }
    }


def column_pair(columns: Columns) -> list[str]:
    """Return the intent and the code column, the same one twice for a chat; an empty list if either is unknown."""
    pair = [columns.turns or columns.intent, columns.turns or columns.code]
    return pair if all(pair) else []


def hide_path(message: str, path: str) -> str:
    """Replace an absolute path in a message by the file's name."""
    return message.replace(path, Path(path).name) if "/" in path and Path(path).is_absolute() else message


def _estimate(config: TrainConfig, source: Source, prepared: TokenizedData) -> Event:
    """Return the Estimate as a dict with the free memory as "free_bytes"; {"reason"} if there is no estimate."""
    from models.resources import free_memory
    from train.estimate import try_estimate

    estimate = try_estimate(config, source.folder, prepared)
    if isinstance(estimate, str):
        return {"reason": f"What it takes is {estimate}"}
    return {**asdict(estimate), "free_bytes": free_memory(config.device)}


def limit_memory(size: int) -> None:
    """Let this process allocate at most `size` bytes; beyond, an allocation fails. Without effect on Windows."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (size, size))


def start_process() -> TextIO:
    """Set priority, limit of memory and libraries of a process that reads rows; return the file for its answers.

    Libraries print to stdout: their output goes to stderr, so that it does not mix with the answers.
    """
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    configure_environment()
    with suppress(OSError, AttributeError):
        os.nice(5)  # the model that answers has priority
    limit_memory(MAX_MEMORY_BYTES)
    return out


def main() -> None:
    """Answers requests until there are no more."""
    out = start_process()

    def send(event: Event) -> None:
        text = json.dumps(event)
        out.write((text if len(text) <= MAX_EVENT_CHARS else json.dumps({"error": TOO_LONG_REPORT})) + "\n")
        out.flush()

    for line in sys.stdin:
        try:
            for event in preview(json.loads(line), lambda message: send({"progress": message})):
                send(event)
        except MemoryError:
            send({"error": OUT_OF_MEMORY})
        except Exception:  # noqa: BLE001 - the client must get an answer in any case; the error is logged
            traceback.print_exc()
            send(
                {"internal_error": "Something went wrong on our side while reading the rows; the log has the details."}
            )
        send({"done": True})


if __name__ == "__main__":
    main()
