"""A run that is stopped, killed, or meets a full disk goes on as if nothing had been."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer

from errors import DiskSpaceError, TrainingError
from tests.serve.tiny import make_base
from tests.train.runs import losses, tiny_config
from train.checkpoints import run_directory
from train.config import TrainConfig
from train.run import TrainingStoppedError, train

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("resume")
    make_base("llama", place / "base")
    return place


@pytest.fixture(scope="module")
def unbroken(folder: Path) -> Path:
    return train(tiny_config(folder, adapter_name="unbroken"), lambda _: None)


def _interrupted(config: TrainConfig, at: str) -> str:
    """Runs until the progress line that has `at` in it, then presses Ctrl-C; what the person is told."""

    pressed: list[str] = []

    def report(line: str) -> None:
        if at in line and not pressed:
            pressed.append(line)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(TrainingStoppedError) as stop:
        train(config, report)
    return str(stop.value)


@pytest.mark.parametrize("technique", ["lora", "prefix-tuning", "full"])
def test_a_resumed_run_has_the_losses_and_bytes_of_an_unbroken_one(folder: Path, technique: str) -> None:
    whole = train(tiny_config(folder, adapter_name=f"whole-{technique}", technique=technique), lambda _: None)
    config = tiny_config(folder, adapter_name=f"broken-{technique}", technique=technique)
    said = _interrupted(config, "step 3/")
    assert "--resume" in said
    assert run_directory(config).last_step() == 4
    resumed = train(config, lambda _: None, resume=True)
    assert losses(resumed / "log.jsonl") == losses(whole / "log.jsonl")
    weights = "model.safetensors" if technique == "full" else WEIGHTS
    assert (resumed / weights).read_bytes() == (whole / weights).read_bytes()
    assert not run_directory(config).folder.exists(), "a finished run leaves only its adapter"


def test_ctrl_c_leaves_the_signals_as_they_were(folder: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    _interrupted(tiny_config(folder, adapter_name="signals"), "step 3/")
    assert signal.getsignal(signal.SIGINT) is before


def test_a_stopped_run_can_be_finished_from_its_best_checkpoint(folder: Path) -> None:
    config = tiny_config(folder, adapter_name="finished")
    _interrupted(config, "step 3/")
    best = run_directory(config).best_checkpoint()
    assert best is not None
    kept = load_file(best / WEIGHTS)
    made = load_file(train(config, lambda _: None, finish=True) / WEIGHTS)
    assert all(torch.equal(kept[name].to(torch.bfloat16), made[name]) for name in made)


def test_an_unfinished_run_is_not_overwritten_by_accident(folder: Path) -> None:
    config = tiny_config(folder, adapter_name="kept")
    _interrupted(config, "step 3/")
    with pytest.raises(TrainingError, match="stopped at step 4: continue it with --resume"):
        train(config, lambda _: None)
    with pytest.raises(TrainingError, match=r"was begun with learning_rate = 0\.003, not 0\.1"):
        train(tiny_config(folder, adapter_name="kept", learning_rate=0.1), lambda _: None, resume=True)
    assert run_directory(config).last_step() == 4


def test_there_must_be_a_run_to_resume(folder: Path) -> None:
    with pytest.raises(TrainingError, match="no unfinished run of 'never'"):
        train(tiny_config(folder, adapter_name="never"), lambda _: None, resume=True)


def test_a_checkpoint_cut_short_by_a_kill_is_not_taken(folder: Path) -> None:
    config = tiny_config(folder, adapter_name="killed")
    _interrupted(config, "step 3/")
    place = run_directory(config)
    partial = place.checkpoints / "checkpoint-5"
    shutil.copytree(place.checkpoints / "checkpoint-4", partial)
    (partial / "trainer_state.json").unlink()
    assert place.last_step() == 4
    train(config, lambda _: None, resume=True)


def test_a_full_disk_says_so_and_keeps_the_last_checkpoint_whole(
    folder: Path, unbroken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(folder, adapter_name="full-disk")
    write = Trainer._save_optimizer_and_scheduler

    def fail_later(self: Trainer, output_dir: str) -> None:
        if self.state.global_step > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, output_dir)

    monkeypatch.setattr(Trainer, "_save_optimizer_and_scheduler", fail_later)
    with pytest.raises(DiskSpaceError, match="is full, so the checkpoint of step 3 could not be written"):
        train(config, lambda _: None)
    place = run_directory(config)
    assert [path.name for path in place.checkpoints.iterdir()] == ["checkpoint-2"]
    monkeypatch.undo()
    assert losses(train(config, lambda _: None, resume=True) / "log.jsonl") == losses(unbroken / "log.jsonl")
