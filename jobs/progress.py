"""How far a job's training is, read from the log that it writes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from evaluate.journal import read_records
from jobs.folder import JobState
from jobs.job import Progress


def read_progress(state: JobState, logs: Iterable[Path], epochs: float) -> Progress:
    """The progress that the first of these logs that has entries tells of; `epochs` is how long the training is."""
    for path in logs:
        entries = _read_entries(path)
        if entries:
            return _progress_from_entries(state, entries, epochs, _modified_at(path))
    return Progress(steps=state.steps)


def last_step(path: Path) -> int:
    """The step of a log's last entry; 0 without one."""
    return max((int(entry["step"]) for entry in _read_entries(path)), default=0)


def _read_entries(path: Path) -> list[dict[str, Any]]:
    try:
        return [entry for entry in read_records(path)[0] if isinstance(entry.get("step"), int)]
    except (OSError, ValueError):
        return []


def _modified_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return time.time()


def _progress_from_entries(
    state: JobState, entries: list[dict[str, Any]], epochs: float, modified_at: float
) -> Progress:
    last = entries[-1]
    step = max(int(entry["step"]) for entry in entries)
    steps = max(state.steps or _total_steps(last, epochs), step)
    return Progress(
        step=step,
        steps=steps,
        seconds=float(last.get("seconds", 0.0)),
        left_seconds=_seconds_left(state, step, steps, modified_at),
        tokens_per_second=float(last.get("tokens_per_second", 0.0)),
        memory_bytes=max(int(entry.get("memory_bytes", 0)) for entry in entries),
        losses=_metric_points(entries, "loss"),
        validation=_metric_points(entries, "eval_loss"),
    )


def _total_steps(entry: Mapping[str, Any], epochs: float) -> int:
    """All steps of the run, from how many epochs an entry's step amounts to."""
    passed = float(entry.get("epoch") or 0.0)
    return round(int(entry["step"]) / passed * epochs) if passed else 0


def _metric_points(entries: Iterable[Mapping[str, Any]], name: str) -> tuple[tuple[int, float], ...]:
    """(step, value) in the order of steps; of a step that was done again, the later value."""
    found = {int(entry["step"]): float(entry[name]) for entry in entries if entry.get(name) is not None}
    return tuple(sorted(found.items()))


def _seconds_left(state: JobState, step: int, steps: int, modified_at: float) -> float | None:
    """Seconds until the training is over, evaluations included, at the pace of this attempt."""
    first, since = state.anchor
    if state.state != "running" or state.stage != "training" or not since or step <= first:
        return None
    a_step = max(modified_at - since, 0.0) / (step - first)
    # What passed since the last step was logged belongs to the next one, but for more than that nobody can say.
    return max(0.0, a_step * (steps - step) - min(max(time.time() - modified_at, 0.0), a_step))
