"""Training configuration, under the names that transformers and TRL use, and the directory of a run.

Examples in training prompts: other rows, retrieved as `rag-k` retrieves them, before the question. An adapter that
never saw examples in training is confused by them (retrieval-augmented fine-tuning: Zhang et al. 2024, arXiv
2403.10131). With `train_examples` each row's prompt gets a random number of the nearest training rows, so that one
adapter answers with and without them. `nearest:0+1-8` trains each row twice an epoch, once without examples and once
with 1 to 8, so that the plain questions lose no row to the others. A row is never its own example, and neither is a
twin of it, which has its intent or its code.

Run directory: settings, log and checkpoints of an unfinished run. It is `.<name>.run` beside the adapter's folder in
the store; the store ignores hidden folders. It is removed when the adapter has been written.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.files import cache_dir, make_dir
from errors import TrainingError, unknown_name_error
from tasks.datasets.split import normalize_code, normalize_intent
from tasks.methods import MAX_EXAMPLES, Retriever
from tasks.problem import Example
from tasks.prompt import get_style

_NEAREST_PREFIX = "nearest:"
_COUNTS_PATTERN = re.compile(r"(\d{1,4})-(\d{1,4})|(\d{1,4}(?:,\d{1,4})*)")
# The most prompts of one row.
_MAX_PROMPTS_PER_ROW = 4
# So many more rows are searched than needed, because the row itself and its twins are left out.
_EXTRA_SEARCHED = 16

# The examples of each prompt of a row.
SelectFn = Callable[[Example], Sequence[Sequence[Example]]]
Counts = tuple[int, ...]
OPTIMIZERS = ("adafactor", "adamw_torch")
VIRTUAL_TOKENS_INIT_METHODS = ("examples", "vocabulary", "random")
_ADAPTER_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
# Settings that are only valid on this machine or concern what happens with the result; they are not published.
_LOCAL_SETTINGS = ("data_dir", "output_dir", "overwrite", "push_to_hub", "hub_model_id", "hub_private_repo")
# Settings that may differ when a run is continued: the output and the location of the data on this machine.
_IGNORED_SETTINGS = ("data_dir", "output_dir", "overwrite", "push_to_hub", "hub_model_id", "hub_private_repo", "device")


def parse_train_examples(text: str) -> tuple[Counts, ...]:
    """Return, for each prompt of a row, the numbers of examples that are drawn from with equal chances; () for ''.

    `nearest:0-8` is each number from 0 to 8, `nearest:4` always 4, and `nearest:0,0,1,4` one of these. `+` is between
    the prompts of a row: `nearest:0+1-8` makes two, one without examples and one with 1 to 8. Raises TrainingError for
    anything else.
    """
    if not text:
        return ()
    compact = text.replace(" ", "")
    matches = [_COUNTS_PATTERN.fullmatch(part) for part in compact.removeprefix(_NEAREST_PREFIX).split("+")]
    if not compact.startswith(_NEAREST_PREFIX) or not all(matches) or len(matches) > _MAX_PROMPTS_PER_ROW:
        raise TrainingError(
            f"train_examples '{text[:60]}' is not understood: write nearest:0-8 for 0 to 8 examples before each "
            "question, nearest:0,0,4 for one of these numbers, nearest:0+1-8 to train each row without and with them."
        )
    parts = tuple(_counts(match) for match in matches if match)
    if any(not counts or max(counts) > MAX_EXAMPLES for counts in parts):
        raise TrainingError(
            f"train_examples '{text[:60]}' must go from the smaller number to the larger, at most {MAX_EXAMPLES}."
        )
    return parts


def _counts(match: re.Match[str]) -> Counts:
    if match[3]:
        return tuple(int(number) for number in match[3].split(","))
    return tuple(range(int(match[1]), int(match[2]) + 1))


class PromptExamples:
    """Selects the examples of each row's prompts. The same seed and rows give the same examples."""

    def __init__(self, parts: Sequence[Counts], retriever: Retriever, seed: int) -> None:
        self._parts = parts
        self._retriever = retriever
        self._seed = seed

    def select(self, row: Example) -> list[list[Example]]:
        """Return the examples for each prompt of a training or a validation row, nearest first."""
        # By the row, not by its place, so that the draw does not depend on the rows before it.
        draw = random.Random(f"{self._seed} {row.id} {row.intent}")
        numbers = [draw.choice(counts) for counts in self._parts]
        if not any(numbers):
            return [[] for _ in numbers]
        found = self._retriever.nearest(row.intent, max(numbers) + _EXTRA_SEARCHED)
        examples = [example for example in found if not _is_twin(example, row)]
        return [examples[:number] for number in numbers]


def _is_twin(example: Example, row: Example) -> bool:
    return (
        example.id == row.id
        or normalize_intent(example.intent) == normalize_intent(row.intent)
        or normalize_code(example.code) == normalize_code(row.code)
    )


def nearest_retriever(pool: Sequence[Example]) -> Retriever:
    """Return a retriever over the training rows, by the embedding model that comes with the program."""
    from models.embedder import Embedder, FaissIndex
    from tasks.methods import IndexRetriever

    return IndexRetriever(pool, FaissIndex(Embedder(), [example.intent for example in pool], None))


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


@dataclass(frozen=True)
class RunDirectory:
    """The paths of one run. `target` is the finished adapter's folder."""

    target: Path

    @property
    def folder(self) -> Path:
        """The unfinished run's folder."""
        return self.target.parent / f".{self.target.name}.run"

    @property
    def checkpoints(self) -> Path:
        """The folder of Trainer's checkpoint-N folders."""
        return self.folder / "checkpoints"

    @property
    def log(self) -> Path:
        """The log: one JSON object for each step and each evaluation."""
        return self.folder / "log.jsonl"

    @property
    def settings(self) -> Path:
        """The file with the settings that the run started with."""
        return self.folder / "settings.json"

    def last_checkpoint(self) -> Path | None:
        """Find the latest complete checkpoint. One without trainer_state.json, written last, is incomplete."""
        found = [path.parent for path in self.checkpoints.glob("checkpoint-*/trainer_state.json")]
        return max(found, key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)

    def best_checkpoint(self) -> Path | None:
        """Find the complete checkpoint with the lowest validation loss so far, else the latest one."""
        last = self.last_checkpoint()
        if last is None:
            return None
        state = json.loads((last / "trainer_state.json").read_text(encoding="utf-8"))
        # Only the name is used: the folder may have been moved since.
        best = self.checkpoints / Path(state.get("best_model_checkpoint") or last).name
        return best if (best / "trainer_state.json").is_file() else last

    def last_step(self) -> int:
        """Return the step of the latest checkpoint, 0 without one."""
        last = self.last_checkpoint()
        return int(last.name.rsplit("-", 1)[1]) if last else 0

    @property
    def rows(self) -> Path:
        """The file with the digest of the rows that the run started with."""
        return self.folder / "rows.txt"

    def create(self, config: TrainConfig, rows_digest: str) -> None:
        """Create an empty run directory with settings and digest; remove what an earlier run left there."""
        shutil.rmtree(self.folder, ignore_errors=True)
        make_dir(self.checkpoints)
        self.rows.write_text(rows_digest + "\n", encoding="utf-8")
        self.settings.write_text(json.dumps(_json_settings(config), indent=1) + "\n", encoding="utf-8")

    def check_settings(self, config: TrainConfig) -> None:
        """Raise TrainingError when the run on disk was started with other settings, and so cannot be continued."""
        before, now = self.saved_settings(), _json_settings(config)
        changed = [name for name in now if name not in _IGNORED_SETTINGS and before.get(name, now[name]) != now[name]]
        if changed:
            name = changed[0]
            raise TrainingError(
                f"The run of '{config.adapter_name}' was begun with {name} = {before[name]}, not {now[name]}: continue "
                "it as it was (--resume with the name alone suffices), or begin anew with --overwrite."
            )

    def check_rows(self, config: TrainConfig, rows_digest: str) -> None:
        """Raise TrainingError when the run on disk was started with other rows: it would go on in the wrong place."""
        try:
            before = self.rows.read_text(encoding="utf-8").strip()
        except OSError:  # a run of an earlier version
            return
        if before != rows_digest:
            raise TrainingError(
                f"The rows of {config.dataset_name} changed since the run of '{config.adapter_name}' began: restore "
                "them, make an adapter of its best checkpoint with --finish, or begin anew with --overwrite."
            )

    def saved_settings(self) -> dict[str, Any]:
        """Read the settings that the run started with. Raises TrainingError when there is no such run."""
        try:
            values = json.loads(self.settings.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise TrainingError(
                f"There is no unfinished run of '{self.target.name}' in {self.target.parent}: "
                "begin it without --resume."
            ) from error
        return dict(values)

    def remove(self) -> None:
        """Delete the run directory."""
        shutil.rmtree(self.folder, ignore_errors=True)


def run_directory(config: TrainConfig) -> RunDirectory:
    """Return the run directory in `output_dir`, by default in the user's own store."""
    return RunDirectory(adapter_store_dir(config.output_dir) / config.adapter_name)


def adapter_store_dir(output_dir: Path | None) -> Path:
    """Return the folder for finished adapters."""
    return output_dir or cache_dir() / "adapters"


def _json_settings(config: TrainConfig) -> dict[str, Any]:
    return {
        key: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
        for key, value in asdict(config).items()
    }
