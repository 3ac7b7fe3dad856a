"""What a study is: models, data, techniques, numbers of examples, and how answers are decoded.

One YAML file says it all (`evaluate/study/configs/`); `evaluate.study.read_config` makes these values of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from errors import PromptOrTuneError
from evaluate.run import make_sampling_params
from evaluate.study.architectures import Architecture
from serve.rows import SamplingParams

RESEARCH_QUESTIONS = ("rq1", "rq2", "rq3", "rq4")
# As --quantization names them, and as people do.
WEIGHT_BITS_LABELS: Mapping[str, str] = {"nf4": "4-bit", "int8": "8-bit", "none": "16-bit"}
QUANTIZATIONS = tuple(WEIGHT_BITS_LABELS)
# On which bases each technique trains, as train/techniques.py has it, and its name in tables.
TECHNIQUE_QUANTIZATIONS: Mapping[str, tuple[str, ...]] = {
    "full": ("none",),
    "lora": ("none",),
    "qlora-8bit": ("int8",),
    "qlora-4bit": ("nf4",),
    "ia3": ("nf4", "none", "int8"),
    "prompt-tuning": ("nf4", "none", "int8"),
    "prefix-tuning": ("nf4", "none", "int8"),
}
METHOD_TITLES: Mapping[str, str] = {
    "": "zero-shot",
    "full": "Full FT",
    "lora": "LoRA",
    "qlora-8bit": "QLoRA-8bit",
    "qlora-4bit": "QLoRA-4bit",
    "ia3": "IA3",
    "prompt-tuning": "Prompt tuning",
    "prefix-tuning": "Prefix tuning",
}
# What an adapter is trained with where nothing else is said, in both presets.
DEFAULT_LORA_RANK, DEFAULT_LORA_ALPHA = 16, 32


@dataclass(frozen=True)
class StudyModel:
    """A base: what `--base` takes, and the quantization in which it answers zero-shot, ICL and RAG.

    `beside` names the study's model whose rows are set beside this one's; `techniques` are those that are run on it.
    `architecture` is None where the sizes are not known: then there is no estimate.
    """

    name: str
    base: str
    quantization: str
    techniques: tuple[str, ...]
    beside: str = ""
    trust_remote_code: bool = False
    architecture: Architecture | None = None

    @property
    def slug(self) -> str:
        """The name as files and adapters have it."""
        return "".join(letter if letter.isalnum() or letter == "." else "-" for letter in self.name.lower()).replace(
            "--", "-"
        )


@dataclass(frozen=True)
class StudyDataset:
    """A data set: its first `problems` test problems (None: all), the decoding, and how many examples are tried."""

    name: str
    problems: int | None
    mode: str
    candidates: int
    max_new_tokens: int
    batch: int
    temperature: float = 0.6
    top_p: float = 0.95
    icl: tuple[int, ...] = ()
    rag: tuple[int, ...] = ()

    def decoding(self, seed: int) -> SamplingParams:
        """As the engine takes it; PromptOrTuneError for values that do not go together."""
        return make_sampling_params(self.mode, self.candidates, self.max_new_tokens, seed, self.temperature, self.top_p)


@dataclass(frozen=True)
class ResearchQuestion:
    """Which part of the grid a research question runs. `together` are the examples that adapters are combined with."""

    models: tuple[str, ...]
    data: tuple[str, ...]
    techniques: tuple[str, ...] = ()
    together: tuple[str, ...] = ()


@dataclass(frozen=True)
class SensitivityGrid:
    """LoRA's rank and alpha, one adapter for each pair."""

    model: str
    data: str
    technique: str
    pairs: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class HardwareSpec:
    """What the estimates of hours and the limit of memory stand on. Rates are those that are reached, not the peak.

    `gigabytes_per_second` is how fast weights are read, `teraflops` how fast long prompts and training compute,
    `step_milliseconds` what a decoding step costs besides.
    """

    name: str
    memory_gb: float
    gigabytes_per_second: float
    teraflops: float
    step_milliseconds: float


@dataclass(frozen=True)
class TrainingSpec:
    """How adapters are trained and named. `name` is a pattern of {technique}, {data} and {model}.

    `known` holds (technique, data) -> name for adapters that go by another name; `epochs` None is the preset's.
    """

    preset: str = "default"
    name: str = "{technique}-{data}"
    known: Mapping[tuple[str, str], str] = field(default_factory=dict)
    epochs: float | None = None


@dataclass(frozen=True)
class StudyConfig:
    """A study as its YAML file says it. `techniques` maps each one to the quantization it trains and answers on."""

    name: str
    models: tuple[StudyModel, ...]
    data: tuple[StudyDataset, ...]
    techniques: Mapping[str, str]
    questions: Mapping[str, ResearchQuestion]
    hardware: HardwareSpec
    training: TrainingSpec = field(default_factory=TrainingSpec)
    sensitivity: SensitivityGrid | None = None
    seed: int = 42
    embedder: str = "embedded"
    device: str = "auto"

    def model(self, name: str) -> StudyModel:
        """The model of that name, which the reader has checked to be there."""
        return next(model for model in self.models if model.name == name)

    def dataset(self, name: str) -> StudyDataset:
        """The data set of that name, which the reader has checked to be there."""
        return next(data for data in self.data if data.name == name)

    def question(self, rq: str) -> ResearchQuestion:
        """What a research question runs; PromptOrTuneError where the file does not say."""
        if rq not in self.questions:
            raise PromptOrTuneError(f"{self.name} has no section {rq}: add one with the models and data it runs.")
        return self.questions[rq]

    def adapter_name(self, technique: str, data: str, model: StudyModel, pair: tuple[int, int] | None = None) -> str:
        """What the adapter is called; of another rank or alpha than the usual, with both in its name."""
        known = self.training.known.get((technique, data))
        name = known or self.training.name.format(technique=technique, data=data, model=model.slug)
        return (
            name if pair is None or pair == (DEFAULT_LORA_RANK, DEFAULT_LORA_ALPHA) else f"{name}-r{pair[0]}-a{pair[1]}"
        )
