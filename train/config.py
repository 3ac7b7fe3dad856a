"""Training configuration: the settings of one run, under the names that transformers and TRL use."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from errors import TrainingError, unknown_name_error
from tasks.prompt import get_style
from train.prompt_examples import parse_train_examples

OPTIMIZERS = ("adafactor", "adamw_torch")
VIRTUAL_TOKENS_INIT_METHODS = ("examples", "vocabulary", "random")
_ADAPTER_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
# Settings that are only valid on this machine or concern what happens with the result; they are not published.
_LOCAL_SETTINGS = ("data_dir", "output_dir", "overwrite", "push_to_hub", "hub_model_id", "hub_private_repo")


@dataclass(frozen=True)
class TrainConfig:
    """The settings of one run. `train.settings.make_config` fills in the values of a preset or a technique.

    Lengths are in tokens, `eval_every` is in epochs. The loss covers only the tokens of the code and the end token.
    """

    # The adapter's name in the store and on the Hub.
    adapter_name: str
    # A data set of tasks.datasets.registry, a file (.jsonl, .json, .csv, .parquet), or a Hub id.
    dataset_name: str
    technique: str = "lora"
    preset: str = "default"

    # Folder of JSONL files to read instead of the Hub, as --data-dir of the other commands.
    data_dir: Path | None = None
    # File of validation rows; without it those of the data set, or a share of the training rows.
    validation_file: Path | None = None
    validation_split: float = 0.1
    intent_column: str | None = None
    code_column: str | None = None
    max_train_samples: int | None = None
    max_eval_samples: int | None = None
    max_length: int = 512

    # "embedded", a Hub id, a folder, or a .gguf file.
    model_name_or_path: str = "embedded"
    model_revision: str | None = None
    # Run code from the model's repository; only with a pinned revision.
    trust_remote_code: bool = False
    # Quantization of the base's weights during training: nf4, int8, or none for 16-bit floats.
    quantization: str = "none"
    device: str = "auto"
    prompt_style: str = "plain"
    # How many similar training rows stand before each question: "nearest:0-8" draws 0 to 8 for each row,
    # "nearest:0+1-8" trains each row twice, without any and with 1 to 8; "" none.
    train_examples: str = ""

    lora_r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.05
    use_rslora: bool = False
    use_dora: bool = False
    # Suffixes of module names; if empty, the technique and the preset choose them.
    lora_target_modules: tuple[str, ...] = ()
    ia3_target_modules: tuple[str, ...] = ()
    # Of IA3's targets, those whose input it multiplies; it multiplies the output of the others.
    ia3_feedforward_modules: tuple[str, ...] = ()
    num_virtual_tokens: int = 20
    # examples: text of training examples; vocabulary: randomly drawn tokens; random: PEFT's own initial values.
    virtual_tokens_init: str = "examples"

    learning_rate: float = 3e-4
    num_train_epochs: float = 2.0
    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    # The most tokens, with padding, of one forward pass; a larger batch is computed in parts, with the same result.
    # By default 512 on a CPU, where more takes memory and saves no time, and no limit on a GPU.
    max_tokens_at_once: int | None = None
    gradient_checkpointing: bool = False
    optim: str = "adafactor"
    warmup_ratio: float = 0.05
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    eval_every: float = 0.2
    # Number of evaluations without a better validation loss after which the run stops; 0 never stops early.
    early_stopping_patience: int = 0
    seed: int = 42

    # The folder that receives the adapter's folder; by default the user's own store.
    output_dir: Path | None = None
    overwrite: bool = False
    push_to_hub: bool = False
    hub_model_id: str | None = None
    hub_private_repo: bool = False

    def __post_init__(self) -> None:
        if not _ADAPTER_NAME.fullmatch(self.adapter_name):
            raise TrainingError(
                f"'{self.adapter_name}' cannot name an adapter: use lower-case letters, digits, '.', '_' and '-', "
                "64 at most, such as lora-mydata."
            )
        get_style(self.prompt_style)
        parse_train_examples(self.train_examples)
        self._check_numbers()
        if self.optim not in OPTIMIZERS:
            raise unknown_name_error("optimizer", self.optim, OPTIMIZERS)
        if self.virtual_tokens_init not in VIRTUAL_TOKENS_INIT_METHODS:
            raise unknown_name_error("start of virtual tokens", self.virtual_tokens_init, VIRTUAL_TOKENS_INIT_METHODS)
        if self.model_revision and "@" in self.model_name_or_path:
            raise TrainingError("The base's revision is given twice: in model_name_or_path and in model_revision.")
        if self.push_to_hub and not self.hub_model_id:
            raise TrainingError("push_to_hub needs hub_model_id, the repository to publish to, such as you/my-adapter.")

    def _check_numbers(self) -> None:
        at_least_one = ("lora_r", "lora_alpha", "per_device_train_batch_size", "gradient_accumulation_steps")
        for name in (*at_least_one, "max_length", "num_virtual_tokens"):
            if getattr(self, name) < 1:
                raise TrainingError(f"{name} must be at least 1.")
        for name in ("max_train_samples", "max_eval_samples", "max_tokens_at_once"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise TrainingError(f"{name} must be at least 1, or left out.")
        for name in ("learning_rate", "num_train_epochs", "eval_every", "max_grad_norm"):
            if not 0 < getattr(self, name) < float("inf"):
                raise TrainingError(f"{name} must be above 0.")
        for name in ("lora_dropout", "warmup_ratio"):
            if not 0 <= getattr(self, name) < 1:
                raise TrainingError(f"{name} must be at least 0 and below 1.")
        if not 0 < self.validation_split < 1:
            raise TrainingError("validation_split must be above 0 and below 1: the share of rows that is held out.")
        for name in ("weight_decay", "early_stopping_patience"):
            if getattr(self, name) < 0:
                raise TrainingError(f"{name} must be at least 0.")

    @property
    def effective_batch_size(self) -> int:
        """Number of samples per optimizer step in one process."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    @property
    def base(self) -> str:
        """The base in the form of `--base`: with its revision after an @."""
        return f"{self.model_name_or_path}@{self.model_revision}" if self.model_revision else self.model_name_or_path

    def to_public_dict(self) -> dict[str, Any]:
        """Return the settings to publish, without those of this machine, as values for YAML and JSON."""
        values = {key: value for key, value in asdict(self).items() if key not in _LOCAL_SETTINGS}
        return {key: list(value) if isinstance(value, tuple) else _file_name(value) for key, value in values.items()}


def _file_name(value: Any) -> Any:
    """Reduce the path of a file or folder to its name; a Hub id, such as user/name, is no path."""
    if isinstance(value, str) and "/" in value and (value.startswith(("/", ".", "~")) or Path(value).exists()):
        return Path(value).name
    return value.name if isinstance(value, Path) else value
