"""Trainer subclass and callbacks: smaller batches when memory ends, stop on NaN, progress, log, Ctrl-C, checkpoints.

Its sampler groups samples by length, in an order that depends only on the seed and the epoch.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_pt_utils import LengthGroupedSampler

from errors import DiskSpaceError, TrainingError
from train.tokenize import IGNORE_INDEX


class ThroughputMeter:
    """Counts training tokens (without padding) and training seconds (without evaluations)."""

    def __init__(self) -> None:
        self.tokens = 0
        # Totals of the run that this one continues; they do not count towards the speed.
        self.earlier_tokens, self.earlier_seconds = 0, 0.0
        self.seconds = 0.0
        self._started_at: float | None = None

    def add(self, tokens: int) -> None:
        """Add a batch of `tokens` tokens."""
        self.tokens += tokens

    def start(self) -> None:
        """Start the clock; a second call has no effect."""
        if self._started_at is None:
            self._started_at = time.perf_counter()

    def pause(self) -> None:
        """Stop the clock, for evaluations and checkpoints."""
        if self._started_at is not None:
            self.seconds += time.perf_counter() - self._started_at
            self._started_at = None

    @property
    def total_tokens(self) -> int:
        """Tokens, including those before the run was continued."""
        return self.earlier_tokens + self.tokens

    @property
    def total_seconds(self) -> float:
        """Seconds, including those before the run was continued."""
        return self.earlier_seconds + self._elapsed()

    @property
    def tokens_per_second(self) -> float:
        """Speed since the run began or continued; 0 before the first step."""
        elapsed = self._elapsed()
        return self.tokens / elapsed if elapsed > 0 else 0.0

    def _elapsed(self) -> float:
        return self.seconds + (time.perf_counter() - self._started_at if self._started_at is not None else 0.0)


_LOGGED_METRICS = ("loss", "eval_loss", "learning_rate", "grad_norm")


class ProgressReporter(TrainerCallback):
    """Reports step, loss, elapsed and remaining time every `every` steps and at each evaluation."""

    def __init__(self, report: Callable[[str], None], every: int, meter: ThroughputMeter) -> None:
        self._report = report
        self._every = max(1, every)
        self._meter = meter
        self._begin = (time.monotonic(), 0)

    def on_train_begin(self, _args: TrainingArguments, state: TrainerState, _: TrainerControl, **__: Any) -> None:
        self._begin = (time.monotonic(), state.global_step)

    def on_log(
        self,
        _args: TrainingArguments,
        state: TrainerState,
        _control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        logs = logs or {}
        is_evaluation = "eval_loss" in logs
        # The third step gives a first estimate of the time.
        if not is_evaluation and ("loss" not in logs or (state.global_step % self._every and state.global_step != 3)):
            return
        began, first = self._begin
        elapsed = time.monotonic() - began
        remaining = elapsed / max(state.global_step - first, 1) * (state.max_steps - state.global_step)
        name, value = ("validation loss", logs["eval_loss"]) if is_evaluation else ("loss", logs["loss"])
        self._report(
            f"  step {state.global_step}/{state.max_steps}  epoch {state.epoch or 0:.1f}  {name} {value:.4f}"
            f"  {self._meter.tokens_per_second:.0f} tokens/s"
            f"  {_format_minutes(elapsed)} gone, about {_format_minutes(remaining)} left"
        )


class JsonlLogger(TrainerCallback):
    """Appends each step's metrics to a JSON Lines file at once, so that a killed run keeps its log."""

    def __init__(self, path: Path, meter: ThroughputMeter, memory: Callable[[], int]) -> None:
        self._path = path
        self._meter = meter
        self._memory = memory

    def on_train_begin(self, _args: TrainingArguments, state: TrainerState, _: TrainerControl, **__: Any) -> None:
        """Remove the entries after the checkpoint from which the run continues: these steps run again."""
        entries = [entry for entry in read_log(self._path) if entry["step"] <= state.global_step]
        if entries:
            self._meter.earlier_tokens, self._meter.earlier_seconds = entries[-1]["tokens"], entries[-1]["seconds"]
        if state.is_world_process_zero:
            self._path.write_text("".join(_format_entry(entry) for entry in entries), encoding="utf-8")

    def on_log(
        self,
        _args: TrainingArguments,
        state: TrainerState,
        _control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        logs = logs or {}
        if not state.is_world_process_zero or not ("loss" in logs or "eval_loss" in logs):
            return
        entry: dict[str, Any] = {"step": state.global_step, "epoch": round(state.epoch or 0.0, 4)}
        entry |= {name: logs[name] for name in _LOGGED_METRICS if name in logs}
        entry |= {"tokens": self._meter.total_tokens, "tokens_per_second": round(self._meter.tokens_per_second, 1)}
        entry |= {"seconds": round(self._meter.total_seconds, 2), "memory_bytes": self._memory()}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_format_entry(entry))


class ThroughputCallback(TrainerCallback):
    """Runs the meter during training steps, and pauses it during evaluations and checkpoints."""

    def __init__(self, meter: ThroughputMeter) -> None:
        self._meter = meter

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._meter.start()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._meter.pause()


class GradientCheck(TrainerCallback):
    """Calls `check` before each optimizer step."""

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self._check()


@dataclass(frozen=True)
class Evaluation:
    """One validation during a run: after `step` of `steps`, with the mean loss per token over the validation rows."""

    step: int
    steps: int
    loss: float


class EvaluationHook(TrainerCallback):
    """Calls `go_on` after each validation; where it returns False, the run ends as if this had been its last step."""

    def __init__(self, go_on: Callable[[Evaluation], bool]) -> None:
        self._go_on = go_on

    def on_evaluate(
        self,
        _args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if metrics and not self._go_on(Evaluation(state.global_step, state.max_steps, metrics["eval_loss"])):
            control.should_training_stop = True


class StopOnSignal(TrainerCallback):
    """Stops the run on Ctrl-C or SIGTERM after the current step, with a checkpoint; a second Ctrl-C stops at once."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self.interrupted = False
        self._report = report
        self._previous_handlers: dict[int, Any] = {}

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        # Python delivers signals to the main thread only; a run in another thread has to be stopped by its caller.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous_handlers[number] = signal.signal(number, self._on_signal)

    def on_step_end(self, _args: Any, _state: Any, control: TrainerControl, **_: Any) -> None:
        if self.interrupted:
            control.should_save = True
            control.should_training_stop = True

    def restore(self) -> None:
        """Restore the previous signal handlers. The caller does this however the run ends."""
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        self._previous_handlers.clear()

    def _on_signal(self, _number: int, _frame: Any) -> None:
        if self.interrupted:
            self.restore()
            raise KeyboardInterrupt
        self.interrupted = True
        self._report("  Stopping after this step, with a checkpoint ... (once more stops at once, without)")


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read the entries of a log file, without an incomplete last line that a kill may have left."""
    if not path.is_file():
        return []
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:
            break
    return entries


def _format_minutes(seconds: float) -> str:
    """Format seconds as minutes and seconds, such as 3:07 or 125:09, which `jobs.hf_jobs.follow` parses."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"


def _format_entry(entry: dict[str, Any]) -> str:
    return json.dumps(entry) + "\n"


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
