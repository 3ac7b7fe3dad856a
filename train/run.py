"""One training run: data, base, technique, Trainer, and at its end a folder in the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from errors import PeftArenaError, TrainingError
from serve.backends.local.loading import LoadedBase, load_base
from serve.backends.local.source import resolve
from serve.home import Report, make_folder
from tasks.datasets import digest
from train.config import TrainConfig
from train.data import TrainingData, load_training_data
from train.estimate import Estimate, comparison, foreseen
from train.fit import make_trainer, wrapped
from train.folder import Outcome, write_folder
from train.prepare import Prepared, Reader, prepare
from train.workspace import Workspace, workspace


class TrainingStoppedError(PeftArenaError):
    """A person stopped the run; its checkpoint stays."""


def train(config: TrainConfig, report: Report, resume: bool = False, finish: bool = False) -> Path:
    """Trains and returns the finished folder.

    `resume` continues an unfinished run from its last checkpoint, with the losses that an unbroken one would have
    had; `finish` makes the folder of its best checkpoint without training on. Raises TrainingStoppedError when stopped
    with Ctrl-C, and TrainingError, DataError, BaseModelError or DiskSpaceError in one sentence. Of several processes
    (accelerate launch) each calls this, and the first one writes.
    """
    from accelerate import PartialState

    place, processes = workspace(config), PartialState(cpu=config.device == "cpu")
    if not processes.is_main_process:
        report = _silent
    _check_place(place, config, resume or finish)
    data = load_training_data(config)
    _tell_faults(data, report)
    loaded = load_base(
        config.base, config.quantization, config.device, report, config.trust_remote_code, True, _dtype(config)
    )
    identity = loaded.identity
    reader = Reader(identity.id, loaded.tokenizer, identity.is_encoder_decoder, identity.context_length)
    lesson = prepare(config, data, reader)
    report(lesson.train.summary("training"))
    report(lesson.validation.summary("validation"))
    guess = foreseen(config, resolve(config.base, report, config.trust_remote_code).folder, lesson)
    if isinstance(guess, str):
        report(f"What the run takes is {guess}")
    if processes.is_main_process and not (resume or finish):
        make_folder(place.target.parent)
        place.begin(config)
    processes.wait_for_everyone()
    try:
        model, outcome = _fit(config, loaded, data, lesson, report, resume, finish)
        if processes.is_main_process:
            write_folder(model, loaded.tokenizer, config, loaded.identity, outcome, place.target)
            place.remove()
            _compare(guess, outcome, place.target, report)
    finally:
        # A run without a checkpoint leaves nothing that could be continued.
        if processes.is_main_process and place.last_checkpoint() is None:
            place.remove()
    processes.wait_for_everyone()
    return place.target


def _check_place(place: Workspace, config: TrainConfig, go_on: bool) -> None:
    if place.target.exists() and not config.overwrite:
        raise TrainingError(f"{place.target} exists: choose another --adapter-name, or add --overwrite to replace it.")
    if go_on:
        place.check_same(config)
        if place.last_checkpoint() is None:
            raise TrainingError(f"The run of '{config.adapter_name}' has no checkpoint yet: begin it without --resume.")
    elif place.step() and not config.overwrite:
        raise TrainingError(
            f"A run of '{config.adapter_name}' stopped at step {place.step()}: continue it with --resume, make an "
            "adapter of its best checkpoint with --finish, or begin anew with --overwrite."
        )


def _dtype(config: TrainConfig) -> Any:
    """Full fine-tuning keeps its weights in 32 bits: steps of 5e-5 are lost in the rounding of 16."""
    import torch

    return torch.float32 if config.technique == "full" else None


def _tell_faults(data: TrainingData, report: Report) -> None:
    if data.faults:
        first = data.faults[0].sentence
        report(f"{len(data.faults)} rows cannot be read and are left out (--dry-run lists them); the first: {first}")


def _compare(guess: Estimate | str, outcome: Outcome, folder: Path, report: Report) -> None:
    """What was estimated beside what was measured."""
    if isinstance(guess, Estimate):
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        report(comparison(guess, outcome.cost["peak_memory_bytes"], outcome.cost["train_seconds"], size))


def _fit(
    config: TrainConfig,
    loaded: LoadedBase,
    data: TrainingData,
    lesson: Prepared,
    report: Report,
    resume: bool,
    finish: bool,
) -> tuple[Any, Outcome]:
    from serve.backends.memory import PeakMemory
    from train.callbacks import read_log

    place = workspace(config)
    memory = PeakMemory(loaded.identity.device)
    model = wrapped(config, loaded, lesson.train.encoded)
    trainer, stop = make_trainer(config, model, lesson, place, memory.bytes, report)
    memory.start()
    if finish:
        trainer.load(place.best_checkpoint() or place.checkpoints)
    else:
        try:
            trainer.train(resume_from_checkpoint=str(place.last_checkpoint()) if resume else None)
        finally:
            stop.restore()
        if stop.stopped:
            raise TrainingStoppedError(
                f"Stopped at step {place.step()}, and its checkpoint is kept: continue with --resume, or make an "
                "adapter of the best checkpoint with --finish."
            )
    log = read_log(place.log)
    cost = {
        "trainable_parameters": sum(each.numel() for each in model.parameters() if each.requires_grad),
        "train_seconds": log[-1]["seconds"],
        "train_tokens": log[-1]["tokens"],
        "peak_memory_bytes": max(entry["memory_bytes"] for entry in log),
    }
    sizes = (len(lesson.train.kept), len(lesson.validation.kept))
    return trainer.model, Outcome(log, data.name, digest(data.train), data.licence, *sizes, cost)


def _silent(_line: str) -> None:
    """What the other processes report: the first one speaks for all."""
