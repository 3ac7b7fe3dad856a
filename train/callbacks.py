"""Progress, log file, signals, throughput.

What looks on while Trainer works: progress lines, the log on disk, Ctrl-C, and gradients that went wrong.

How much a run has read, and how fast.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class ThroughputMeter:
    """Counts the tokens read in training (without padding), and the seconds that it took without evaluations."""

    def __init__(self) -> None:
        self.tokens = 0
        # Those of a run that this one continues; they do not count towards the speed.
        self.earlier_tokens, self.earlier_seconds = 0, 0.0
        self.seconds = 0.0
        self._started_at: float | None = None

    def add(self, tokens: int) -> None:
        """Counts a batch of so many tokens."""
        self.tokens += tokens

    def start(self) -> None:
        """The clock runs from now on; starting it twice changes nothing."""
        if self._started_at is None:
            self._started_at = time.perf_counter()

    def pause(self) -> None:
        """The clock stands still: what follows is no training."""
        if self._started_at is not None:
            self.seconds += time.perf_counter() - self._started_at
            self._started_at = None

    @property
    def total_tokens(self) -> int:
        """With those before the run was continued."""
        return self.earlier_tokens + self.tokens

    @property
    def total_seconds(self) -> float:
        """With those before the run was continued."""
        return self.earlier_seconds + self._elapsed()

    @property
    def tokens_per_second(self) -> float:
        """Since the run began, or continued; 0 before the first step."""
        passed = self._elapsed()
        return self.tokens / passed if passed > 0 else 0.0

    def _elapsed(self) -> float:
        return self.seconds + (time.perf_counter() - self._started_at if self._started_at is not None else 0.0)


_LOGGED_METRICS = ("loss", "eval_loss", "learning_rate", "grad_norm")


class ProgressReporter(TrainerCallback):
    """Reports a line every `every` steps and at each evaluation: step, loss, time gone and left."""

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
        evaluated = "eval_loss" in logs
        # The third step gives a first estimate of the time.
        if not evaluated and ("loss" not in logs or (state.global_step % self._every and state.global_step != 3)):
            return
        began, first = self._begin
        passed = time.monotonic() - began
        left = passed / max(state.global_step - first, 1) * (state.max_steps - state.global_step)
        name, value = ("validation loss", logs["eval_loss"]) if evaluated else ("loss", logs["loss"])
        self._report(
            f"  step {state.global_step}/{state.max_steps}  epoch {state.epoch or 0:.1f}  {name} {value:.4f}"
            f"  {self._meter.tokens_per_second:.0f} tokens/s  {format_duration(passed)} gone, about {format_duration(left)} left"
        )


class JsonlLogger(TrainerCallback):
    """Appends each step's figures to a JSON Lines file, at once, so that a killed run has its log."""

    def __init__(self, path: Path, meter: ThroughputMeter, memory: Callable[[], int]) -> None:
        self._path = path
        self._meter = meter
        self._memory = memory

    def on_train_begin(self, _args: TrainingArguments, state: TrainerState, _: TrainerControl, **__: Any) -> None:
        """What was logged after the checkpoint from which the run continues is done again, so it goes."""
        kept = [entry for entry in read_log(self._path) if entry["step"] <= state.global_step]
        if kept:
            self._meter.earlier_tokens, self._meter.earlier_seconds = kept[-1]["tokens"], kept[-1]["seconds"]
        if state.is_world_process_zero:
            self._path.write_text("".join(_format_entry(entry) for entry in kept), encoding="utf-8")

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
    """Lets the meter run while batches are learned, and rest while the model is evaluated or saved."""

    def __init__(self, meter: ThroughputMeter) -> None:
        self._meter = meter

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._meter.start()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._meter.pause()


class GradientCheck(TrainerCallback):
    """Looks at the gradients before the optimizer uses them."""

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self._check()


class StopOnSignal(TrainerCallback):
    """Ctrl-C (or SIGTERM) ends the step, saves a checkpoint and stops; a second Ctrl-C stops at once."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self.interrupted = False
        self._report = report
        self._previous_handlers: dict[int, Any] = {}

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        # Python hands signals to the main thread only; a run in another one is stopped by its owner.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous_handlers[number] = signal.signal(number, self._on_signal)

    def on_step_end(self, _args: Any, _state: Any, control: TrainerControl, **_: Any) -> None:
        if self.interrupted:
            control.should_save = True
            control.should_training_stop = True

    def restore(self) -> None:
        """Gives the signals back to whoever had them; called however the run ends."""
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
    """The entries of a log file; a last line that a kill cut short is left out."""
    if not path.is_file():
        return []
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:
            break
    return entries


def format_duration(seconds: float) -> str:
    """Minutes and seconds, as 3:07."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"


def _format_entry(entry: dict[str, Any]) -> str:
    return json.dumps(entry) + "\n"
