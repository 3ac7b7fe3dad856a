"""Trainer callbacks: progress lines, the log file, Ctrl-C, the check of gradients, and the throughput meter."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


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
