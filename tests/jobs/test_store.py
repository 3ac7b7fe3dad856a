"""Progress of a training, read from complete and incomplete logs, and its remaining time."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from jobs.store import JobState, last_step, read_progress


def write(path: Path, *entries: dict[str, Any], incomplete: str = "") -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries) + incomplete)
    return path


def entry(step: int, **more: Any) -> dict[str, Any]:
    return {"step": step, "epoch": round(step / 7, 4), "seconds": 2.0 * step, "tokens_per_second": 250.0, **more}


def test_progress_is_zero_before_the_first_step(tmp_path: Path) -> None:
    progress = read_progress(JobState(), [tmp_path / "none.jsonl"], 2.0)
    assert (progress.step, progress.steps, progress.left_seconds, progress.losses) == (0, 0, None, ())


def test_curves_are_sorted_and_repeated_steps_count_once(tmp_path: Path) -> None:
    log = write(
        tmp_path / "log.jsonl",
        entry(1, loss=3.0, memory_bytes=5),
        entry(2, loss=2.0, memory_bytes=9),
        entry(2, eval_loss=2.5, memory_bytes=7),
        entry(2, loss=1.9),
        entry(3, loss=1.5),
        incomplete='{"step": 4, "lo',
    )
    progress = read_progress(JobState(), [tmp_path / "none.jsonl", log], 2.0)
    assert progress.losses == ((1, 3.0), (2, 1.9), (3, 1.5))
    assert progress.validation == ((2, 2.5),)
    assert (progress.step, progress.steps, progress.seconds, progress.memory_bytes) == (3, 14, 6.0, 9)
    assert progress.tokens_per_second == 250.0
    assert last_step(log) == 3


def test_number_of_steps_in_the_state_has_precedence(tmp_path: Path) -> None:
    log = write(tmp_path / "log.jsonl", entry(3, loss=1.0))
    assert read_progress(JobState(steps=20), [log], 2.0).steps == 20


def test_unreadable_log_is_ignored(tmp_path: Path) -> None:
    broken = tmp_path / "log.jsonl"
    broken.write_bytes(b'{"step": 1}\nnonsense\n{"step": 2}\n')
    assert read_progress(JobState(), [broken, tmp_path], 2.0).step == 0
    assert last_step(broken) == 0


def test_remaining_time_is_estimated_from_the_current_attempt(tmp_path: Path) -> None:
    log = write(tmp_path / "log.jsonl", *(entry(step, loss=1.0) for step in range(1, 11)))
    now = time.time()
    os.utime(log, (now, now))
    # Resumed at step 4, 12 s ago: six steps since then at two seconds each, and ten remaining steps.
    running = JobState(state="running", stage="training", steps=20, anchor=(4, now - 12))
    left = read_progress(running, [log], 2.0).left_seconds
    assert left == pytest.approx(20.0, abs=1.0)
    for other in (
        JobState(state="running", stage="training", steps=20),  # no step of this attempt has finished
        JobState(state="running", stage="scoring", steps=20, anchor=(4, now - 12)),
        JobState(state="stopped", steps=20, anchor=(4, now - 12)),
    ):
        assert read_progress(other, [log], 2.0).left_seconds is None
