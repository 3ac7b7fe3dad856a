"""What this machine knows of a job that was sent away. It is on disk before it is acted upon."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from evaluate.files import atomic_write

_STATE_FILE = "remote.json"


@dataclass(frozen=True)
class RemoteJobState:
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


def read_remote_state(folder: Path) -> RemoteJobState:
    """What is known; an empty record for a job that was not sent yet."""
    try:
        return RemoteJobState(**json.loads((folder / _STATE_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return RemoteJobState()


def write_remote_state(folder: Path, state: RemoteJobState) -> RemoteJobState:
    """Keeps it, and gives it back."""
    atomic_write(folder / _STATE_FILE, json.dumps(asdict(state), indent=1) + "\n")
    return state
