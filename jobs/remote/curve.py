"""From the lines that a training prints elsewhere to the figures that a training writes here."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluate.journal import read_records

# As train.callbacks.ProgressLine prints it.
_LOG_LINE = re.compile(
    r"\s*step (?P<step>\d+)/(?P<steps>\d+)  epoch [\d.]+  (?P<what>validation loss|loss) (?P<value>\S+)"
    r"  (?P<speed>\d+) tokens/s  (?P<minutes>\d+):(?P<seconds>\d\d) gone, about \S+ left"
)


def parse_log_line(line: str, epochs: float) -> dict[str, Any] | None:
    """What train.callbacks.LogFile would have written at that line; None for any other line.

    `epochs` is the length of the whole training: a line's own epoch is rounded.
    """
    match = _LOG_LINE.fullmatch(line)
    if match is None:
        return None
    try:
        value = float(match["value"])
    except ValueError:
        return None
    step, steps = int(match["step"]), int(match["steps"])
    entry: dict[str, Any] = {"step": step, "epoch": step / steps * epochs if steps else 0.0}
    # A loss that is no number has no place in a curve, or in JSON.
    if math.isfinite(value):
        entry["eval_loss" if match["what"] == "validation loss" else "loss"] = value
    entry |= {"tokens_per_second": float(match["speed"])}
    return entry | {"seconds": 60.0 * int(match["minutes"]) + int(match["seconds"])}


class LossCurveFile:
    """The figures of one attempt in a JSON Lines file, as a training here writes them."""

    def __init__(self, path: Path, epochs: float) -> None:
        self._path = path
        self._epochs = epochs
        self._seen_keys: set[tuple[Any, bool]] = set()
        if path.is_file():
            self._resume_file()

    def add_line(self, line: str) -> None:
        """Adds what the line says, unless it was added before."""
        entry = parse_log_line(line, self._epochs)
        if entry is None or _entry_key(entry) in self._seen_keys:
            return
        self._seen_keys.add(_entry_key(entry))
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def _resume_file(self) -> None:
        """A last line that a kill tore off goes; a file that is not of this kind is written anew."""
        try:
            records, whole = read_records(self._path)
        except ValueError:
            records, whole = [], 0
        os.truncate(self._path, whole)
        self._seen_keys = {_entry_key(record) for record in records}


def _entry_key(entry: Mapping[str, Any]) -> tuple[Any, bool]:
    return entry.get("step"), "eval_loss" in entry
