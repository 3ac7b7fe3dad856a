"""Runs that are killed repeatedly: they lose at most the current batch and end with the same results."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

from errors import PromptOrTuneError
from evaluate.journal import read_records
from evaluate.results import Run, read_run, scores_path
from tests.evaluate.killed_run import METHODS, PROBLEMS

ROOT = Path(__file__).parents[2]
BATCH = 2
BATCHES = len(METHODS) * PROBLEMS // BATCH


def start(path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.evaluate.killed_run", str(path)]
    # The score of the codebleu package depends on the hash seed.
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, env=environment)


def read_events_until(process: subprocess.Popen[str], lines: int, stop: signal.Signals) -> list[str]:
    """Send the signal after `lines` events of the process; return all its events, of which a few can come later."""
    assert process.stdout is not None
    events = []
    for line in process.stdout:
        events.append(line.split()[0])
        if len(events) == lines:
            process.send_signal(stop)
    process.wait()
    return events


def answers(run: Run) -> dict[tuple[str, str], tuple[object, ...]]:
    return {
        (method, each.problem): (each.candidates, each.scores) for method in run.methods for each in run.results(method)
    }


def test_killed_run_loses_at_most_the_current_batch(tmp_path: Path) -> None:
    path, uninterrupted = tmp_path / "run.jsonl", tmp_path / "whole.jsonl"
    assert read_events_until(start(uninterrupted), 10**9, signal.SIGKILL)[-1] == "done"
    generated = saved = 0
    # Kill in each of the first two quarters of the run, then run to the end.
    for lines in (random.Random(5).randrange(3, 2 * BATCHES // 4), random.Random(6).randrange(3, BATCHES // 2), 10**9):
        events = read_events_until(start(path), lines, signal.SIGKILL)
        generated, saved = generated + events.count("asked"), saved + BATCH * events.count("saved")
        results = sum(map(len, map(read_run(path).results, METHODS)))
        assert saved <= results <= saved + BATCH  # the last batch may be saved and not reported
        saved = results
    assert generated <= BATCHES + 2  # each of the two kills repeats at most one batch
    assert answers(read_run(path)) == answers(read_run(uninterrupted))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        "run.jsonl", "run.scores.jsonl", "whole.jsonl", "whole.scores.jsonl",
    ]  # fmt: skip


def test_interrupted_scoring_saves_its_scores_and_continues(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    process = start(path)
    events = read_events_until(process, 2 * BATCHES + 1 + 7, signal.SIGINT)  # at the seventh score
    assert events.count("scored") >= 7
    assert process.returncode == -signal.SIGINT
    saved_scores = [record for record in read_records(scores_path(path))[0] if record["kind"] == "scores"]
    assert 7 <= len(saved_scores) < len(METHODS) * PROBLEMS
    events = read_events_until(start(path), 10**9, signal.SIGKILL)
    assert events == ["scoring", *["scored"] * (len(METHODS) * PROBLEMS - len(saved_scores)), "done"]
    assert all(result.scores for method in METHODS for result in read_run(path).results(method))
    again = [record for record in read_records(scores_path(path))[0] if record["kind"] == "scores"]
    assert again[: len(saved_scores)] == saved_scores
    assert len(again) == len(METHODS) * PROBLEMS


def test_second_process_on_the_same_file_gets_an_error(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    first = start(path)
    assert first.stdout is not None
    assert first.stdout.readline().split()[0] == "asked"
    second = start(path)
    _, stderr = second.communicate()
    first.kill()
    first.communicate()
    assert second.returncode == 1
    assert f"{PromptOrTuneError.__name__}: Another process is writing {path}" in stderr
