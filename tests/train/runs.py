"""What the tests of training runs share: a tiny base on disk, and a configuration that takes a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from train.callbacks import read_log
from train.config import TrainConfig
from train.settings import make_config


def tiny_config(folder: Path, **changes: Any) -> TrainConfig:
    """24 samples of starter for two epochs on the tiny base in `folder`/base; the store is `folder`/store."""
    values = {
        "adapter_name": "lora-tiny",
        "dataset_name": "starter",
        "model_name_or_path": str(folder / "base"),
        "device": "cpu",
        "output_dir": folder / "store",
        "max_train_samples": 24,
        "max_eval_samples": 16,
        "num_train_epochs": 2.0,
        "learning_rate": 3e-3,
        "eval_every": 0.34,
        "max_length": 480,
        # The tiny tokenizer takes a token for each byte; a batch is computed as one, as with a real one.
        "max_tokens_at_once": 100_000,
    }
    return make_config(values, **changes)


def losses(path: Path) -> list[tuple[Any, ...]]:
    """What a log says of the learning itself, without speeds and times."""
    fields = ("step", "loss", "eval_loss", "learning_rate", "grad_norm")
    return [tuple(entry.get(field) for field in fields) for entry in read_log(path)]
