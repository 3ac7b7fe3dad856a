"""Schema of a study's YAML file, and the study's published scores (arXiv 2308.10462 v3) in percent."""

from __future__ import annotations

import csv
import string
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from errors import unknown_name_error
from evaluate.study.config import MODEL_FAMILIES, QUANTIZATIONS, TECHNIQUE_QUANTIZATIONS
from tasks.datasets.registry import TRAINING_DATASETS
from tasks.methods import MAX_EXAMPLES

PAPER_DIR = Path(__file__).parent / "paper"
# Names of the techniques in the study's tables.
TABLE3_TECHNIQUES = {
    "full": "Full FT",
    "lora": "LoRA",
    "qlora-8bit": "QLoRA-8bit",
    "qlora-4bit": "QLoRA-4bit",
    "ia3": "IA3",
    "prompt-tuning": "Prompt tuning",
    "prefix-tuning": "Prefix tuning",
}
# Memory of the GPU of Figure 1, an RTX A5000.
GPU_BYTES = 24e9
# Figure 1 omits that the larger models are the Python variants (section 4.4).
_FIGURE1_MODELS = {"CodeLlama-13B": "CodeLlama-13B-Python", "CodeLlama-34B": "CodeLlama-34B-Python"}
_APPS_ROWS = {"": "CodeLlama-7B-Instruct", "lora": "+LoRA", "qlora-8bit": "+QLoRA-8bit", "qlora-4bit": "+QLoRA-4bit"}
_LORA_TECHNIQUES = ("lora", "qlora-8bit", "qlora-4bit")


@dataclass(frozen=True)
class PublishedScore:
    """A row of Table 3 for one data set: trainable parameters as printed, EM@1, EM@10 and CodeBLEU."""

    parameters: str
    em1: float
    em10: float
    codebleu: float


def published_score(model: str, technique: str, data: str) -> PublishedScore | None:
    """Return the row of Table 3; None if the study has none."""
    for row in _read_rows("table3_tuning"):
        if row["model"] == model and row["tuning"] == TABLE3_TECHNIQUES.get(technique) and f"{data}_em1" in row:
            scores = (float(row[f"{data}_{metric}"]) for metric in ("em1", "em10", "codebleu"))
            return PublishedScore(row["params"], *scores)
    return None


def published_apps_scores(technique: str, difficulty: str) -> dict[str, float]:
    """Return the row of Table 4 for CodeLlama-7B-Instruct: `tests`, `pass@1`, `pass@2`, `pass@5`; {} without one."""
    for row in _read_rows("table4_apps"):
        if row["model"] == _APPS_ROWS.get(technique) and row["difficulty"] == difficulty:
            names = {"tests": "avg_tests_passed", "pass@1": "pass_at_1", "pass@2": "pass_at_2", "pass@5": "pass_at_5"}
            return {metric: float(row[column]) for metric, column in names.items()}
    return {}


def published_em10(model: str, data: str, method: str) -> float | None:
    """Return the published EM@10 of "zero-shot", the best "icl", the best "rag" or a technique; else None."""
    column = {"zero-shot": "zero_shot", "icl": "icl_best", "rag": "rag_best", "lora": "lora"}.get(method)
    for row in _read_rows("figure7_icl_rag_lora_em10"):
        if column and row["model"] == model and row["dataset"] == data and row[column]:
            return float(row[column])
    found = published_score(model, method, data)
    return found.em10 if found else published_quantized_em10(model, data, method)


def published_quantized_em10(model: str, data: str, technique: str) -> float | None:
    """Return EM@10 of Figure 5; None without one."""
    for row in _read_rows("figure5_quantization"):
        if (row["model"], row["dataset"], row["tuning"]) == (model, data, TABLE3_TECHNIQUES.get(technique)):
            return float(row["em10"])
    return None


def published_peak_memory() -> dict[tuple[str, str], float]:
    """Return Figure 1: GB by (model, technique), with the techniques `full`, `lora` and `qlora-4bit`."""
    endings = {"-QLoRA-4bit": "qlora-4bit", "-lora": "lora", "-ft": "full"}
    found = {}
    for row in _read_rows("figure1_peak_memory"):
        ending = next(ending for ending in endings if row["run"].endswith(ending))
        name = row["run"].removesuffix(ending)
        found[_FIGURE1_MODELS.get(name, name), endings[ending]] = float(row["peak_gpu_memory_gb"])
    return found


def published_models(data: str = "conala") -> list[str]:
    """Return the models of Table 3 that have scores on a data set, the smallest first."""
    return list(dict.fromkeys(row["model"] for row in _read_rows("table3_tuning") if row.get(f"{data}_em1")))


@cache
def _read_rows(name: str) -> tuple[dict[str, str], ...]:
    with (PAPER_DIR / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file))


class UnknownNameValueError(ValueError):
    """An unknown name in a value or, with `is_key`, among the keys of a section."""

    def __init__(self, kind: str, name: str, choices: Iterable[str], is_key: bool = False) -> None:
        super().__init__(str(unknown_name_error(kind, name, choices)))
        self.is_key = is_key


def _number_to_text(value: Any) -> Any:
    """YAML reads a name such as 7 as a number."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _reject_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticCustomError("bool", "true and false are no numbers")
    return value


def _check_unique(values: list[Any]) -> list[Any]:
    duplicate = next((value for index, value in enumerate(values) if value in values[:index]), None)
    if duplicate is not None:
        raise ValueError(f"names {duplicate!r} twice")
    return values


def _one_of(*choices: str, kind: str = "") -> AfterValidator:
    def check(value: str, info: ValidationInfo) -> str:
        if value not in choices:
            raise UnknownNameValueError(kind or str(info.field_name), value, choices)
        return value

    return AfterValidator(check)


def _key_among(choices: Iterable[str]) -> AfterValidator:
    def check(name: str) -> str:
        if name not in choices:
            raise UnknownNameValueError("key", name, choices, is_key=True)
        return name

    return AfterValidator(check)


_EMPTY_IF_NONE = BeforeValidator(lambda value: {} if value is None else value)
_Text = Annotated[str, BeforeValidator(_number_to_text)]
_Count = Annotated[int, Field(ge=1)]
_Size = Annotated[int, Field(ge=0)]
# Not strict: YAML reads 1e-3 as text.
_PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=False), BeforeValidator(_reject_bool)]
_NONE_AS_LIST = BeforeValidator(lambda value: [] if value is None else value)
_Names = Annotated[list[_Text], AfterValidator(_check_unique)]
_ExampleCounts = Annotated[
    list[Annotated[int, Field(ge=1, le=MAX_EXAMPLES)]], AfterValidator(_check_unique), _NONE_AS_LIST
]
_Pair = Annotated[list[_Count], Field(min_length=2, max_length=2)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ArchitectureSection(_Section):
    """Sizes of a model (config.Architecture)."""

    family: Annotated[_Text, _one_of(*MODEL_FAMILIES)]
    hidden: _Count
    intermediate: _Count
    layers: _Count
    heads: _Count
    key_value_heads: _Count
    vocabulary: _Count
    head_dim: _Size = 0
    encoder_layers: _Size = 0
    tied: bool = False


class ModelSection(_Section):
    """One model under `models`."""

    base: _Text
    quantization: Annotated[_Text, _one_of(*QUANTIZATIONS)] = "nf4"
    techniques: _Names | None = None
    beside: _Text | None = None
    trust_remote_code: bool = False
    architecture: ArchitectureSection | None = None

    @field_validator("beside")
    @classmethod
    def _check_beside(cls, value: str | None) -> str | None:
        if value is not None and value not in ("-", *published_models()):
            raise UnknownNameValueError("beside", value, ["-", *published_models()])
        return value


class DatasetSection(_Section):
    """One data set under `data`."""

    problems: Annotated[_Count | None, BeforeValidator(lambda value: None if value == "all" else value)] = None
    mode: Annotated[_Text, _one_of("beam", "sample", "greedy")] = "beam"
    candidates: _Count | None = None
    max_new_tokens: _Count = 64
    batch: _Count = 16
    temperature: _PositiveFloat = 0.6
    top_p: _PositiveFloat = 0.95
    icl: _ExampleCounts = []
    rag: _ExampleCounts = []

    @field_validator("candidates")
    @classmethod
    def _check_candidates(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and value > 1 and info.data.get("mode") == "greedy":
            raise ValueError("must be 1 where mode is greedy: choose beam or sample for more")
        return value


class QuestionSection(_Section):
    """A section `rq1` to `rq4`."""

    models: _Names | None = None
    data: _Names | None = None
    techniques: _Names | None = None
    together: Annotated[_Names, _NONE_AS_LIST] = []

    @field_validator("together")
    @classmethod
    def _check_together(cls, value: list[str]) -> list[str]:
        for method in value:
            kind, _, number = method.partition("-")
            if kind not in ("icl", "rag") or not number.isdigit() or not 1 <= int(number) <= MAX_EXAMPLES:
                raise ValueError(f"takes icl-1 to icl-{MAX_EXAMPLES} and rag-1 to rag-{MAX_EXAMPLES}")
        return value


class HardwareSection(_Section):
    """The section `hardware`."""

    name: _Text = "this machine"
    memory_gb: _PositiveFloat
    gigabytes_per_second: _PositiveFloat
    teraflops: _PositiveFloat
    step_milliseconds: _PositiveFloat


class KnownAdapterSection(_Section):
    """One entry of `training: known`."""

    technique: Annotated[_Text, _one_of(*TECHNIQUE_QUANTIZATIONS)]
    data: _Text
    name: _Text


class TrainingSection(_Section):
    """The section `training`."""

    preset: Annotated[_Text, _one_of("default", "paper")] = "default"
    name: _Text = "{technique}-{data}"
    known: Annotated[list[KnownAdapterSection], _NONE_AS_LIST] = []
    epochs: _PositiveFloat | None = None

    @field_validator("name")
    @classmethod
    def _check_pattern(cls, pattern: str) -> str:
        try:
            fields = {field for _, field, _, _ in string.Formatter().parse(pattern) if field is not None}
        except ValueError as error:
            raise ValueError(f"cannot be {pattern!r} ({error})") from error
        if not {"technique", "data"} <= fields <= {"technique", "data", "model"}:
            raise ValueError(f"must hold {{technique}} and {{data}}, and may hold {{model}}: it is {pattern!r}")
        return pattern


class SensitivitySection(_Section):
    """The section `sensitivity`."""

    model: _Text
    data: _Text
    technique: Annotated[_Text, _one_of(*_LORA_TECHNIQUES)] = "lora"
    pairs: Annotated[list[_Pair], AfterValidator(_check_unique), Field(min_length=1)]


_OptionalQuestion = Annotated[QuestionSection | None, _EMPTY_IF_NONE]


class StudyFile(_Section):
    """The complete file; references between its sections are checked by the reader."""

    techniques: Annotated[
        dict[
            Annotated[_Text, _key_among(TECHNIQUE_QUANTIZATIONS)],
            Annotated[_Text, _one_of(*QUANTIZATIONS, kind="quantization")],
        ],
        _EMPTY_IF_NONE,
    ] = {}
    models: Annotated[dict[_Text, ModelSection], _EMPTY_IF_NONE] = {}
    data: Annotated[
        dict[Annotated[_Text, _key_among(TRAINING_DATASETS)], Annotated[DatasetSection, _EMPTY_IF_NONE]], _EMPTY_IF_NONE
    ] = {}
    rq1: _OptionalQuestion = None
    rq2: _OptionalQuestion = None
    rq3: _OptionalQuestion = None
    rq4: _OptionalQuestion = None
    hardware: Annotated[HardwareSection, _EMPTY_IF_NONE]
    training: Annotated[TrainingSection, _EMPTY_IF_NONE] = TrainingSection()
    sensitivity: SensitivitySection | None = None
    seed: _Size = 42
    embedder: _Text = "embedded"
    device: Annotated[_Text, _one_of("auto", "cpu", "cuda")] = "auto"
