"""Helpers of the training tests: a configuration that trains in a second, and the losses of a log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from train.config import TrainConfig
from train.settings import make_config
from train.trainer import read_log


def tiny_config(folder: Path, **changes: Any) -> TrainConfig:
    """Make a configuration: 24 samples of starter and 6 to validate on, two epochs, `folder`/base, `folder`/store."""
    values = {
        "adapter_name": "lora-tiny",
        "dataset_name": "starter",
        "model_name_or_path": str(folder / "base"),
        "device": "cpu",
        "output_dir": folder / "store",
        "max_train_samples": 24,
        "max_eval_samples": 6,
        "num_train_epochs": 2.0,
        "learning_rate": 3e-3,
        "eval_every": 0.34,
        "max_length": 480,
        # The tiny tokenizer has one token for each byte, so rows are long; a batch is still computed in one part.
        "max_tokens_at_once": 100_000,
    }
    return make_config(values, **changes)


def losses(path: Path) -> list[tuple[Any, ...]]:
    """Read a log's losses, learning rates and gradient norms, without speeds and times."""
    fields = ("step", "loss", "eval_loss", "learning_rate", "grad_norm")
    return [tuple(entry.get(field) for field in fields) for entry in read_log(path)]
