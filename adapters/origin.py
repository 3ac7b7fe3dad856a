"""Where an installed adapter came from: a note in its folder that no archive and no repository can bring along."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from adapters.reading import parse_json, read_limited
from adapters.weights import quote_untrusted
from errors import AdapterError

# Hidden, and not among adapters.hub.FILES: what is unpacked or downloaded never has it.
ORIGIN_NAME = ".origin.json"
_MAX_ORIGIN_BYTES = 4096


@dataclass(frozen=True)
class Origin:
    """`what` is a repository with its commit, or the name of a zip; `added` the time in UTC, as ISO 8601."""

    kind: Literal["hub", "zip"]
    what: str
    added: str = ""


def write_origin(folder: Path, kind: Literal["hub", "zip"], what: str) -> None:
    """Notes in `folder` where it came from, now."""
    note = Origin(kind, quote_untrusted(what, 300), datetime.now(UTC).isoformat(timespec="seconds"))
    (folder / ORIGIN_NAME).write_text(json.dumps(asdict(note)) + "\n", encoding="utf-8")


def read_origin(folder: Path) -> Origin | None:
    """The note in `folder`; None where there is none that makes sense: trained here, or put there by hand."""
    path = folder / ORIGIN_NAME
    if not path.is_file():
        return None
    try:
        values = parse_json(read_limited(path, _MAX_ORIGIN_BYTES, folder.name))
        found = Origin(**values)
    except (AdapterError, ValueError, TypeError):
        return None
    texts = all(isinstance(each, str) for each in (found.kind, found.what, found.added))
    return found if texts and found.kind in ("hub", "zip") else None
