"""Training run: loads data and base, trains with the Trainer, and saves the adapter's folder in the store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.files import ProgressFn, make_dir
from errors import PromptOrTuneError, TrainingError
from models.loader import LoadedBase, load_base
from models.source import resolve
from serve.backends.local.backend import check_base
from tasks.datasets.registry import dataset_digest
from train.config import RunDirectory, TrainConfig, run_directory
from train.data import TrainingData, load_training_data
from train.estimate import Estimate, compare_with_actual, try_estimate
from train.model import build_peft_model, build_trainer
from train.save import TrainingResult, save_adapter
from train.techniques import get_technique
from train.tokenize import TokenizedData, TokenizerInfo, tokenize_data

if TYPE_CHECKING:
    from train.trainer import Evaluation


class TrainingStoppedError(PromptOrTuneError):
    """The run was stopped with Ctrl-C or SIGTERM; its checkpoint remains."""


def train(
    config: TrainConfig,
    report: ProgressFn,
    resume: bool = False,
    finish: bool = False,
    go_on: Callable[[Evaluation], bool] | None = None,
) -> Path:
    """Train an adapter and return its folder.

    `resume` continues an unfinished run from its last checkpoint, with the same losses as an uninterrupted run;
    `finish` makes the folder from its best checkpoint without further training. `go_on` is called after each
    validation; where it returns False, the adapter is that of the best validation so far. Raises TrainingStoppedError
    when stopped with Ctrl-C, and TrainingError, DataError, BaseModelError or DiskSpaceError with a one-sentence
    message. With several processes (accelerate launch) each calls this, and the first one writes.
    """
    from accelerate import PartialState

    run_dir, processes = run_directory(config), PartialState(cpu=config.device == "cpu")
    if not processes.is_main_process:
        report = _ignore_progress
    _check_run_dir(run_dir, config, resume or finish)
    data = load_training_data(config)
    rows_digest = dataset_digest([*data.train, *data.validation])
    if resume:
        run_dir.check_rows(config, rows_digest)
    _report_row_errors(data, report)
    loaded = load_base(
        config.base, config.quantization, config.device, report, config.trust_remote_code, True, _weights_dtype(config)
    )
    get_technique(config.technique).check_base(loaded.model.config)
    check_base(loaded)
    identity = loaded.identity
    tokenizer_info = TokenizerInfo(identity.id, loaded.tokenizer, identity.is_encoder_decoder, identity.context_length)
    dataset = tokenize_data(config, data, tokenizer_info)
    report(dataset.train.summary("training"))
    report(dataset.validation.summary("validation"))
    estimated = try_estimate(config, resolve(config.base, report, config.trust_remote_code).folder, dataset)
    if isinstance(estimated, str):
        report(f"The cost of the run is {estimated}")
    if processes.is_main_process and not (resume or finish):
        make_dir(run_dir.target.parent)
        run_dir.create(config, rows_digest)
    processes.wait_for_everyone()
    try:
        model, result = _train_model(config, loaded, data, dataset, report, resume, finish=finish, go_on=go_on)
        if processes.is_main_process:
            save_adapter(model, loaded.tokenizer, config, loaded.identity, result, run_dir.target)
            run_dir.remove()
            _report_estimate(estimated, result, run_dir.target, report)
    finally:
        # Without a checkpoint there is nothing to continue.
        if processes.is_main_process and run_dir.last_checkpoint() is None:
            run_dir.remove()
    processes.wait_for_everyone()
    return run_dir.target


def _check_run_dir(run_dir: RunDirectory, config: TrainConfig, resume: bool) -> None:
    if run_dir.target.exists() and not config.overwrite:
        raise TrainingError(
            f"{run_dir.target} exists: choose another --adapter-name, or add --overwrite to replace it."
        )
    if resume:
        run_dir.check_settings(config)
        if run_dir.last_checkpoint() is None:
            raise TrainingError(f"The run of '{config.adapter_name}' has no checkpoint yet: begin it without --resume.")
    elif run_dir.last_step() and not config.overwrite:
        raise TrainingError(
            f"A run of '{config.adapter_name}' stopped at step {run_dir.last_step()}: continue it with --resume, make "
            "an adapter of its best checkpoint with --finish, or begin anew with --overwrite."
        )


def _weights_dtype(config: TrainConfig) -> Any:
    """Return float32 for full fine-tuning: steps of 5e-5 would be lost in the rounding of 16 bits."""
    import torch

    return torch.float32 if config.technique == "full" else None


def _report_row_errors(data: TrainingData, report: ProgressFn) -> None:
    if data.row_errors:
        first = data.row_errors[0].message
        report(
            f"{len(data.row_errors)} rows cannot be read and are left out (--dry-run lists them); the first: {first}"
        )


def _report_estimate(estimate: Estimate | str, result: TrainingResult, folder: Path, report: ProgressFn) -> None:
    """Report the estimate beside the measurement."""
    if isinstance(estimate, Estimate):
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        report(compare_with_actual(estimate, result.cost["peak_memory_bytes"], result.cost["train_seconds"], size))


def _train_model(
    config: TrainConfig,
    loaded: LoadedBase,
    data: TrainingData,
    dataset: TokenizedData,
    report: ProgressFn,
    resume: bool,
    *,
    finish: bool,
    go_on: Callable[[Evaluation], bool] | None,
) -> tuple[Any, TrainingResult]:
    from models.resources import PeakMemory
    from train.trainer import read_log

    run_dir = run_directory(config)
    memory = PeakMemory(loaded.identity.device)
    model = build_peft_model(config, loaded, dataset.train.samples)
    trainer, stop = build_trainer(config, model, dataset, run_dir, memory.bytes, report, go_on)
    memory.start()
    if finish:
        trainer.load_checkpoint(run_dir.best_checkpoint() or run_dir.checkpoints)
    else:
        try:
            trainer.train(resume_from_checkpoint=str(run_dir.last_checkpoint()) if resume else None)
        finally:
            stop.restore()
        if stop.interrupted:
            raise TrainingStoppedError(
                f"Stopped at step {run_dir.last_step()}, and its checkpoint is kept: continue with --resume, or make "
                "an adapter of the best checkpoint with --finish."
            )
    log = read_log(run_dir.log)
    cost = {
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "train_seconds": log[-1]["seconds"],
        "train_tokens": log[-1]["tokens"],
        "peak_memory_bytes": max(entry["memory_bytes"] for entry in log),
    }
    sizes = (len(dataset.train.selected_indices), len(dataset.validation.selected_indices))
    return trainer.model, TrainingResult(log, data.name, dataset_digest(data.train), data.licence, *sizes, cost)


def _ignore_progress(_line: str) -> None:
    """Discard the progress of all processes but the first."""
