"""Settings of runs: their digest, and the message about a run that was made with others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def settings_digest(values: Mapping[str, Any]) -> str:
    """Return 12 hex digits of the values' SHA-256."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def to_json_types(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values as JSON restores them: tuples become lists."""
    return dict(json.loads(json.dumps(values)))


def diff_settings(
    saved: Mapping[str, Any], requested: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return the saved settings and the requested ones that differ, nested names joined by dots; None if all agree."""
    saved_values, values = _flatten_settings(saved), _flatten_settings(requested)
    changed = {name: value for name, value in values.items() if saved_values.get(name) != value}
    return (saved_values, changed) if changed else None


def _flatten_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{part}": inner for part, inner in value.items()}
        else:
            flat[name] = value
    return flat


def settings_error(path: Path, what: str, saved: Mapping[str, Any], changed: Mapping[str, Any]) -> str:
    """Return the message for a file whose results were made with other settings."""
    differences = ", ".join(f"{name} {saved.get(name)!r} there and {value!r} here" for name, value in changed.items())
    return (
        f"{path} holds {what} with other settings ({differences}): "
        "choose another --output, or --overwrite to start anew."
    )
