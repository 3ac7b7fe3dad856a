"""Trainer subclass: OOM halving, NaN guard, atomic checkpoints, length-grouped sampler.

transformers' Trainer, made safe: a batch that does not fit is halved, NaN stops, a checkpoint is whole or absent.

The order of the samples: those of like length stand together, and an epoch's order depends on its seed alone.
"""

from __future__ import annotations

import contextlib
import errno
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_pt_utils import LengthGroupedSampler

from errors import DiskSpaceError, TrainingError
from train.callbacks import ThroughputMeter
from train.tokenize import IGNORE_INDEX


class SeededLengthGroupedSampler(LengthGroupedSampler):
    """transformers' sampler draws from the global generator, so a run that goes on met its samples in another order."""

    def __init__(self, batch_size: int, lengths: Sequence[int], seed: int) -> None:
        super().__init__(batch_size, lengths=list(lengths), generator=torch.Generator())
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Trainer calls this before each epoch, also when it continues in the middle of one."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed(self._seed * 1_000_003 + self._epoch)
        return iter(super().__iter__())


_DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT)


class CompletionTrainer(Trainer):
    """Trains a model whose `forward` train.model has replaced.

    `eval_loss` is the mean over all learned tokens of the validation set, not a mean of batches' means.
    """

    def __init__(
        self, *args: Any, meter: ThroughputMeter, report: Callable[[str], None], max_tokens: int, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        # The objective takes `num_items_in_batch`: the mean is over the learned tokens of the whole effective batch.
        self.model_accepts_loss_kwargs = True
        self._meter = meter
        self._report = report
        # How many rows, and how many tokens with their padding, are computed together; fewer rows once memory did not
        # suffice. What is learned does not depend on it.
        self._batch_size = max(self.args.train_batch_size, self.args.eval_batch_size)
        self._max_tokens = max_tokens
        self._eval_rows, self._eval_tokens = len(self.eval_dataset), _count_label_tokens(self.eval_dataset)

    def _get_train_sampler(self, train_dataset: Any = None) -> SeededLengthGroupedSampler:
        lengths = [len(row["input_ids"]) for row in (train_dataset or self.train_dataset)]
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return SeededLengthGroupedSampler(batch, lengths, self.args.seed)

    def training_step(
        self, model: Any, inputs: dict[str, torch.Tensor], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """The batch's share of the loss, with its gradients added; out of memory halves what is computed at once."""
        if num_items_in_batch is None:
            num_items_in_batch = (inputs["labels"] != IGNORE_INDEX).sum()
        kept = self._saved_gradients(model)
        losses: list[torch.Tensor] = []
        while not losses:
            try:
                losses = self._forward_backward(model, self._split_batch(inputs), num_items_in_batch)
            except (RuntimeError, MemoryError) as error:
                self._halve_batch(error, inputs)
                for parameter, gradient in kept:
                    parameter.grad = gradient
        loss = torch.stack(losses).sum()
        if not torch.isfinite(loss).all():
            raise self._not_finite_error("loss")
        self._meter.add(int(inputs["attention_mask"].sum()))
        return loss

    def _forward_backward(
        self, model: Any, micro_batches: Sequence[dict[str, torch.Tensor]], num_items_in_batch: torch.Tensor | int
    ) -> list[torch.Tensor]:
        """The pieces' shares of the loss. Several processes exchange gradients once, with the last piece."""
        losses = []
        for number, piece in enumerate(micro_batches, start=1):
            alone = self.accelerator.no_sync(model) if number < len(micro_batches) else contextlib.nullcontext()
            with alone:
                losses.append(super().training_step(model, piece, num_items_in_batch))
        return losses

    def _split_batch(self, inputs: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        """The batch in parts that are computed one after the other."""
        longest = max(inputs["input_ids"].shape[1], inputs["labels"].shape[1])
        rows = max(1, min(self._batch_size, self._max_tokens // longest))
        parts = {name: tensor.split(rows) for name, tensor in inputs.items()}
        return [dict(zip(parts, part, strict=True)) for part in zip(*parts.values(), strict=True)]

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The objective's loss; processes average their gradients, so each gives its share times their number."""
        loss = model(**inputs, num_items_in_batch=num_items_in_batch)["loss"]
        if self.model.training:
            loss = loss * self.accelerator.num_processes
        return (loss, {"loss": loss.detach()}) if return_outputs else loss

    def prediction_step(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        prediction_loss_only: bool,  # noqa: ARG002 - Trainer's signature; it is always the loss alone here
        ignore_keys: Any = None,  # noqa: ARG002
    ) -> tuple[torch.Tensor, None, None]:
        """A loss of which the evaluation's mean over rows is the mean over the whole set's learned tokens."""
        inputs = self._prepare_inputs(inputs)
        rows = len(inputs["labels"])
        share = self._eval_tokens * rows / self._eval_rows
        while True:
            try:
                with torch.no_grad(), self.compute_loss_context_manager():
                    losses = [model(**piece, num_items_in_batch=share)["loss"] for piece in self._split_batch(inputs)]
                return torch.stack(losses).sum().detach(), None, None
            except (RuntimeError, MemoryError) as error:
                self._halve_batch(error, inputs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """As Trainer does it; what could not be written whole is removed, and the checkpoint before it stays."""
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError) as error:
            folder = Path(self.args.output_dir)
            remove_partial_checkpoints(folder)
            if not _is_disk_full(error, folder):
                raise
            raise DiskSpaceError(
                f"The disk under {folder} is full, so the checkpoint of step {self.state.global_step} could not be "
                "written; those before it are whole: free some room, then continue with --resume."
            ) from error

    def load_checkpoint(self, checkpoint: Path) -> None:
        """Puts a checkpoint's weights into the model, as Trainer does when it continues."""
        self._load_from_checkpoint(str(checkpoint))

    def _saved_gradients(self, model: Any) -> list[tuple[Any, torch.Tensor | None]]:
        """What the earlier batches of this step have added, to go back to when this one does not fit."""
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if self.args.gradient_accumulation_steps == 1:
            return [(parameter, None) for parameter in parameters]
        return [(parameter, None if parameter.grad is None else parameter.grad.clone()) for parameter in parameters]

    def _halve_batch(self, error: BaseException, inputs: dict[str, torch.Tensor]) -> None:
        if not is_out_of_memory(error):
            raise error
        rows = len(self._split_batch(inputs)[0]["labels"])
        if rows == 1:
            raise TrainingError(
                "Memory does not suffice for a single sample: lower --max-length, add --gradient-checkpointing, "
                "choose qlora-4bit, or a smaller base."
            ) from error
        if self.accelerator.num_processes > 1:
            raise TrainingError(
                f"Memory does not suffice for {rows} samples at once in each process: halve "
                "--per-device-train-batch-size and double --gradient-accumulation-steps."
            ) from error
        self._batch_size = math.ceil(rows / 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        effective = self.args.train_batch_size * self.args.gradient_accumulation_steps
        self._report(
            f"  Out of memory: going on with {self._batch_size} samples at once; the effective batch stays {effective}."
        )

    def _not_finite_error(self, what: str) -> TrainingError:
        best = self.state.best_model_checkpoint
        kept = f"the checkpoint of step {self.state.best_global_step} is kept" if best else "no checkpoint exists yet"
        return TrainingError(
            f"The {what} is no finite number at step {self.state.global_step + 1}, so the run stopped; {kept}. "
            f"Start again with --overwrite and a lower --learning-rate (it was {self.args.learning_rate:g})"
            + (", or make an adapter of that checkpoint with --finish." if best else ".")
        )

    def check_gradients(self) -> None:
        """TrainingError when a gradient is NaN or infinite; called before the optimizer moves anything."""
        for parameter in self.model.parameters():
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
                raise self._not_finite_error("gradient")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is a GPU's or the computer's memory that did not suffice."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def remove_partial_checkpoints(folder: Path) -> None:
    """Removes checkpoints that were not written to their end: Trainer writes its state file last."""
    for checkpoint in folder.glob("checkpoint-*"):
        if not (checkpoint / TRAINER_STATE_NAME).is_file():
            shutil.rmtree(checkpoint, ignore_errors=True)


def _is_disk_full(error: BaseException, folder: Path) -> bool:
    # safetensors and torch.save hide the errno in an exception of their own.
    return getattr(error, "errno", None) in _DISK_FULL_ERRNOS or shutil.disk_usage(folder).free < 1 << 20


def _count_label_tokens(rows: Any) -> int:
    return sum(label != IGNORE_INDEX for row in rows for label in row["labels"])
