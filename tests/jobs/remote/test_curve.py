"""The curve of a job elsewhere is read from the very lines that a training prints."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from jobs.hf_jobs.follow import LossCurveFile, parse_log_line
from train.callbacks import ProgressReporter


def printed(step: int, logs: dict[str, float], seconds: float = 0.0) -> str:
    """The line that train prints at that step of 40, two epochs long."""
    lines: list[str] = []
    watcher = ProgressReporter(lines.append, 1, SimpleNamespace(tokens_per_second=321.4))  # type: ignore[arg-type]
    arguments = TrainingArguments(output_dir="unused", use_cpu=True)
    state = TrainerState(global_step=0, max_steps=40)
    watcher.on_train_begin(arguments, state, TrainerControl())
    watcher._begin = (watcher._begin[0] - seconds, 0)
    state.global_step, state.epoch = step, step / 20
    watcher.on_log(arguments, state, TrainerControl(), logs=logs)
    return lines[0]


def test_a_line_of_a_step_gives_its_figures() -> None:
    entry = parse_log_line(printed(7, {"loss": 1.23456}, seconds=3725), epochs=2.0)
    assert entry == {"step": 7, "epoch": 0.35, "loss": 1.2346, "tokens_per_second": 321.0, "seconds": 3725.0}


def test_a_line_of_an_evaluation_gives_the_validation_loss() -> None:
    entry = parse_log_line(printed(20, {"eval_loss": 0.5}), epochs=2.0)
    assert entry is not None
    assert entry["eval_loss"] == 0.5
    assert "loss" not in entry


def test_a_loss_that_is_no_number_stays_out_of_the_file(tmp_path: Path) -> None:
    curve = LossCurveFile(tmp_path / "log.jsonl", 2.0)
    curve.add_line(printed(3, {"loss": float("nan")}))
    (entry,) = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert "loss" not in entry
    assert entry["step"] == 3


@pytest.mark.parametrize("line", ["", "step 1/2", "Downloading 7 files", "  step 5/x  epoch 0.1  loss 1 2 tokens/s"])
def test_other_lines_give_nothing(line: str) -> None:
    assert parse_log_line(line, 1.0) is None


@pytest.mark.parametrize("torn", ['{"step": 8, "lo', "not json at all\n"])
def test_a_file_that_a_kill_left_is_taken_up(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "log.jsonl"
    LossCurveFile(path, 2.0).add_line(printed(7, {"loss": 1.0}))
    with path.open("a") as file:
        file.write(torn)
    curve = LossCurveFile(path, 2.0)
    curve.add_line(printed(7, {"loss": 1.0}))
    curve.add_line(printed(9, {"loss": 0.9}))
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [7, 9]
