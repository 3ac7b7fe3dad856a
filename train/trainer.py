"""Trainer subclass: halves batches that do not fit into memory, stops on NaN, and removes incomplete checkpoints.

Its sampler groups samples by length, in an order that depends only on the seed and the epoch.
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
    """Draws the order of an epoch from a generator of its own, so that a resumed run gets the same order.

    transformers' sampler uses the global generator, whose state depends on what was drawn before.
    """

    def __init__(self, batch_size: int, lengths: Sequence[int], seed: int) -> None:
        super().__init__(batch_size, lengths=list(lengths), generator=torch.Generator())
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch. Trainer calls this before each epoch, and when it resumes in the middle of one."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed(self._seed * 1_000_003 + self._epoch)
        return iter(super().__iter__())


_DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT)


class CompletionTrainer(Trainer):
    """Trains a model whose `forward` returns the loss (see `train.model.patch_loss`).

    `eval_loss` is the mean over all label tokens of the validation set, not a mean of batches' means.
    """

    def __init__(
        self, *args: Any, meter: ThroughputMeter, report: Callable[[str], None], max_tokens: int, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        # The loss takes `num_items_in_batch`: its mean is over the label tokens of the whole effective batch.
        self.model_accepts_loss_kwargs = True
        self._meter = meter
        self._report = report
        # The most rows, and tokens with padding, of one forward pass. Out of memory lowers the rows; the gradients of
        # a step do not depend on them.
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
        """Compute the batch's share of the loss and add its gradients; halve the rows of a pass on out of memory."""
        if num_items_in_batch is None:
            num_items_in_batch = (inputs["labels"] != IGNORE_INDEX).sum()
        saved = self._saved_gradients(model)
        losses: list[torch.Tensor] = []
        while not losses:
            try:
                losses = self._forward_backward(model, self._split_batch(inputs), num_items_in_batch)
            except (RuntimeError, MemoryError) as error:
                self._halve_batch(error, inputs)
                for parameter, gradient in saved:
                    parameter.grad = gradient
        loss = torch.stack(losses).sum()
        if not torch.isfinite(loss).all():
            raise self._not_finite_error("loss")
        self._meter.add(int(inputs["attention_mask"].sum()))
        return loss

    def _forward_backward(
        self, model: Any, micro_batches: Sequence[dict[str, torch.Tensor]], num_items_in_batch: torch.Tensor | int
    ) -> list[torch.Tensor]:
        """Return the losses of the micro-batches. Several processes synchronize gradients once, with the last one."""
        losses = []
        for number, micro_batch in enumerate(micro_batches, start=1):
            sync = self.accelerator.no_sync(model) if number < len(micro_batches) else contextlib.nullcontext()
            with sync:
                losses.append(super().training_step(model, micro_batch, num_items_in_batch))
        return losses

    def _split_batch(self, inputs: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        """Split the batch into micro-batches that are computed one after the other."""
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
        """Return the loss, times the number of processes: they average their gradients, and the sum is wanted."""
        loss = model(**inputs, num_items_in_batch=num_items_in_batch)["loss"]
        if self.model.training:
            loss = loss * self.accelerator.num_processes
        return (loss, {"loss": loss.detach()}) if return_outputs else loss

    def prediction_step(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        prediction_loss_only: bool,  # noqa: ARG002 - Trainer's signature; here it is always True
        ignore_keys: Any = None,  # noqa: ARG002
    ) -> tuple[torch.Tensor, None, None]:
        """Return a loss scaled so that Trainer's mean over rows is the mean over the label tokens of the whole set."""
        inputs = self._prepare_inputs(inputs)
        rows = len(inputs["labels"])
        num_items = self._eval_tokens * rows / self._eval_rows
        while True:
            try:
                with torch.no_grad(), self.compute_loss_context_manager():
                    losses = [
                        model(**micro_batch, num_items_in_batch=num_items)["loss"]
                        for micro_batch in self._split_batch(inputs)
                    ]
                return torch.stack(losses).sum().detach(), None, None
            except (RuntimeError, MemoryError) as error:
                self._halve_batch(error, inputs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save a checkpoint as Trainer does; remove an incomplete one, and keep the previous one."""
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
        """Load a checkpoint's weights into the model, as Trainer does when it resumes."""
        self._load_from_checkpoint(str(checkpoint))

    def _saved_gradients(self, model: Any) -> list[tuple[Any, torch.Tensor | None]]:
        """Copy the gradients of this step's earlier batches, to restore them when this batch does not fit."""
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
        note = f"the checkpoint of step {self.state.best_global_step} is kept" if best else "no checkpoint exists yet"
        return TrainingError(
            f"The {what} is no finite number at step {self.state.global_step + 1}, so the run stopped; {note}. "
            f"Start again with --overwrite and a lower --learning-rate (it was {self.args.learning_rate:g})"
            + (", or make an adapter of that checkpoint with --finish." if best else ".")
        )

    def check_gradients(self) -> None:
        """Raise TrainingError when a gradient is NaN or infinite; called before the optimizer step."""
        for parameter in self.model.parameters():
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
                raise self._not_finite_error("gradient")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the error means that the memory of the GPU or the computer did not suffice."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def remove_partial_checkpoints(folder: Path) -> None:
    """Remove incomplete checkpoints: those without the state file, which Trainer writes last."""
    for checkpoint in folder.glob("checkpoint-*"):
        if not (checkpoint / TRAINER_STATE_NAME).is_file():
            shutil.rmtree(checkpoint, ignore_errors=True)


def _is_disk_full(error: BaseException, folder: Path) -> bool:
    # safetensors and torch.save raise their own exceptions, without the errno.
    return getattr(error, "errno", None) in _DISK_FULL_ERRNOS or shutil.disk_usage(folder).free < 1 << 20


def _count_label_tokens(rows: Any) -> int:
    return sum(label != IGNORE_INDEX for row in rows for label in row["labels"])
