"""Tests of stopping and resuming a run: Ctrl-C, kills, a full disk, and the best checkpoint."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer

from errors import DiskSpaceError, TrainingError
from tests import messages
from tests.serve.tiny import make_base
from tests.train.runs import losses, tiny_config
from train.config import TrainConfig, run_directory
from train.run import TrainingStoppedError, train

pytestmark = pytest.mark.slow

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    make_base("llama", folder / "base")
    return folder


@pytest.fixture(scope="module")
def uninterrupted(folder: Path) -> Path:
    return train(tiny_config(folder, adapter_name="whole-lora"), lambda _: None)


def _interrupt(config: TrainConfig) -> str:
    """Run until the progress of step 3, then send SIGINT; return the message of the error."""
    sent: list[str] = []

    def report(line: str) -> None:
        if "step 3/" in line and not sent:
            sent.append(line)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(TrainingStoppedError) as stop:
        train(config, report)
    return str(stop.value)


@pytest.mark.parametrize("technique", ["lora", "full"])
def test_resumed_run_has_the_losses_and_bytes_of_an_uninterrupted_one(
    folder: Path, uninterrupted: Path, technique: str
) -> None:
    reference = uninterrupted
    if technique != "lora":
        reference = train(tiny_config(folder, adapter_name=f"whole-{technique}", technique=technique), lambda _: None)
    config = tiny_config(folder, adapter_name=f"broken-{technique}", technique=technique)
    handler = signal.getsignal(signal.SIGINT)
    assert "--resume" in _interrupt(config)
    assert signal.getsignal(signal.SIGINT) is handler, "the previous signal handler is restored"
    assert run_directory(config).last_step() == 4
    resumed = train(config, lambda _: None, resume=True)
    assert losses(resumed / "log.jsonl") == losses(reference / "log.jsonl")
    weights = "model.safetensors" if technique == "full" else WEIGHTS
    assert (resumed / weights).read_bytes() == (reference / weights).read_bytes()
    assert not run_directory(config).folder.exists(), "a finished run leaves only its adapter"


def test_stopped_run_is_not_overwritten_and_can_be_finished(folder: Path) -> None:
    """A stopped run is neither restarted nor resumed with other settings; its best complete checkpoint is saved."""
    config = tiny_config(folder, adapter_name="stopped")
    _interrupt(config)
    run_dir = run_directory(config)
    with pytest.raises(TrainingError, match=messages.STOPPED_AT_STEP):
        train(config, lambda _: None)
    with pytest.raises(TrainingError, match=messages.RUN_HAS_OTHER_LEARNING_RATE):
        train(tiny_config(folder, adapter_name="stopped", learning_rate=0.1), lambda _: None, resume=True)
    # A checkpoint that a kill left incomplete is ignored.
    partial = run_dir.checkpoints / "checkpoint-5"
    shutil.copytree(run_dir.checkpoints / "checkpoint-4", partial)
    (partial / "trainer_state.json").unlink()
    assert run_dir.last_step() == 4
    best = run_dir.best_checkpoint()
    assert best is not None
    expected = load_file(best / WEIGHTS)
    saved = load_file(train(config, lambda _: None, finish=True) / WEIGHTS)
    assert all(torch.equal(expected[name].to(torch.bfloat16), saved[name]) for name in saved)


def test_run_is_not_continued_on_other_rows(folder: Path) -> None:
    file = folder / "rows.jsonl"

    def write(result: str) -> None:
        rows = [{"intent": f"add {n} and {result}", "code": f"{n} + {result}"} for n in range(40)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    write("x")
    config = tiny_config(folder, adapter_name="other-rows", dataset_name=str(file))
    _interrupt(config)
    write("y")
    with pytest.raises(TrainingError, match=messages.RUN_HAS_OTHER_ROWS):
        train(config, lambda _: None, resume=True)
    write("x")
    assert train(config, lambda _: None, resume=True).is_dir()


def test_resume_without_an_unfinished_run_is_an_error(folder: Path) -> None:
    with pytest.raises(TrainingError, match=messages.NO_UNFINISHED_RUN):
        train(tiny_config(folder, adapter_name="never"), lambda _: None, resume=True)


def test_full_disk_leaves_the_last_complete_checkpoint(
    folder: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(folder, adapter_name="full-disk")
    write = Trainer._save_optimizer_and_scheduler

    def fail_later(self: Trainer, output_dir: str) -> None:
        if self.state.global_step > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, output_dir)

    monkeypatch.setattr(Trainer, "_save_optimizer_and_scheduler", fail_later)
    with pytest.raises(DiskSpaceError, match=messages.CHECKPOINT_DISK_FULL):
        train(config, lambda _: None)
    assert [path.name for path in run_directory(config).checkpoints.iterdir()] == ["checkpoint-2"]
    monkeypatch.undo()
    assert losses(train(config, lambda _: None, resume=True) / "log.jsonl") == losses(uninterrupted / "log.jsonl")
