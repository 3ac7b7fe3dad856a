"""What this machine knows of a job that was sent away. It is on disk before it is acted upon."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from evaluate.files import write_atomically

_NAME = "remote.json"


@dataclass(frozen=True)
class Record:
    """One job elsewhere.

    `attempt` counts the submissions; `label` marks the present one on the Hub, so that it is found again where its
    answer was lost. `source` is the data set that holds program and rows, as they are at `commit`; `adapter` is the
    `over` says that it ended without an adapter,
    so that the next run begins a new attempt. `installs`: the adapter's name in the store is this job's to fill.
    """

    namespace: str = ""
    attempt: int = 0
    label: str = ""
    source: str = ""
    commit: str = ""
    adapter: str = ""
    id: str = ""
    url: str = ""
    over: bool = False
    installs: bool = False


def read_record(folder: Path) -> Record:
    """What is known; an empty record for a job that was not sent yet."""
    try:
        return Record(**json.loads((folder / _NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return Record()


def write_record(folder: Path, record: Record) -> Record:
    """Keeps it, and gives it back."""
    write_atomically(folder / _NAME, json.dumps(asdict(record), indent=1) + "\n")
    return record
