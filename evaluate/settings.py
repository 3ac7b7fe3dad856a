"""What a run depends on: the same in the file and here, or a sentence that says what differs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def to_json_types(values: Mapping[str, Any]) -> dict[str, Any]:
    """As it comes back from the file: tuples become lists."""
    return dict(json.loads(json.dumps(values)))


def diff_settings(
    saved: Mapping[str, Any], requested: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """What differs, there and here, with the parts of a nested setting by name; None where nothing does."""
    there, here = _flatten_settings(saved), _flatten_settings(requested)
    changed = {name: value for name, value in here.items() if there.get(name) != value}
    return (there, changed) if changed else None


def _flatten_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{part}": inner for part, inner in value.items()}
        else:
            flat[name] = value
    return flat


def settings_error(path: Path, what: str, saved: Mapping[str, Any], changed: Mapping[str, Any]) -> str:
    """The sentence for a file whose results were made with other settings."""
    differences = ", ".join(f"{name} {saved.get(name)!r} there and {value!r} here" for name, value in changed.items())
    mend = "choose another --output, or --overwrite to start anew"
    return f"{path} holds {what} with other settings ({differences}): {mend}."
