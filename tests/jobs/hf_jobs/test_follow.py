"""Parsing the curve of a remote job from the lines that a training prints."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from jobs.hf_jobs.follow import LossCurveFile, parse_log_line
from train.trainer import ProgressReporter


def printed(step: int, logs: dict[str, float], seconds: float = 0.0) -> str:
    """Return the line that train prints at step `step` of 40, in a training of two epochs."""
    lines: list[str] = []
    reporter = ProgressReporter(lines.append, 1, SimpleNamespace(tokens_per_second=321.4))  # type: ignore[arg-type]
    arguments = TrainingArguments(output_dir="unused", use_cpu=True)
    state = TrainerState(global_step=0, max_steps=40)
    reporter.on_train_begin(arguments, state, TrainerControl())
    reporter._begin = (reporter._begin[0] - seconds, 0)
    state.global_step, state.epoch = step, step / 20
    reporter.on_log(arguments, state, TrainerControl(), logs=logs)
    return lines[0]


def test_step_line_is_parsed() -> None:
    entry = parse_log_line(printed(7, {"loss": 1.23456}, seconds=3725), epochs=2.0)
    assert entry == {"step": 7, "epoch": 0.35, "loss": 1.2346, "tokens_per_second": 321.0, "seconds": 3725.0}


def test_evaluation_line_is_parsed() -> None:
    entry = parse_log_line(printed(20, {"eval_loss": 0.5}), epochs=2.0)
    assert entry is not None
    assert entry["eval_loss"] == 0.5
    assert "loss" not in entry


def test_nan_loss_is_left_out(tmp_path: Path) -> None:
    curve = LossCurveFile(tmp_path / "log.jsonl", 2.0)
    curve.add_line(printed(3, {"loss": float("nan")}))
    (entry,) = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert "loss" not in entry
    assert entry["step"] == 3


@pytest.mark.parametrize("line", ["", "step 1/2", "Downloading 7 files", "  step 5/x  epoch 0.1  loss 1 2 tokens/s"])
def test_other_lines_are_ignored(line: str) -> None:
    assert parse_log_line(line, 1.0) is None


@pytest.mark.parametrize("incomplete", ['{"step": 8, "lo', "not json at all\n"])
def test_incomplete_file_is_continued(tmp_path: Path, incomplete: str) -> None:
    path = tmp_path / "log.jsonl"
    LossCurveFile(path, 2.0).add_line(printed(7, {"loss": 1.0}))
    with path.open("a") as file:
        file.write(incomplete)
    curve = LossCurveFile(path, 2.0)
    curve.add_line(printed(7, {"loss": 1.0}))
    curve.add_line(printed(9, {"loss": 0.9}))
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [7, 9]
