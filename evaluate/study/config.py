"""StudyConfig, architectures.

What a study is: models, data, techniques, numbers of examples, and how answers are decoded.

One YAML file says it all (`evaluate/study/configs/`); `evaluate.study.read_config` makes these values of it.

The sizes of the study's models, and what follows from sizes alone: how many parameters there are, how many learn.

Sizes are those of each model's published config.json. What is derived from them reproduces the study's own Table 3:
2.7M for LoRA on CodeT5+-220M, 12.5M on CodeLlama-7B, 0.16M for IA3 on CodeGen-350M, 2.6M for Prefix tuning on
CodeGen2-7B (arXiv 2308.10462).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from errors import PromptOrTuneError
from evaluate.run import make_sampling_params
from serve.types import SamplingParams

ModelFamily = Literal["llama", "codegen", "t5"]
MODEL_FAMILIES: tuple[ModelFamily, ...] = ("llama", "codegen", "t5")


@dataclass(frozen=True)
class Architecture:
    """Sizes of a model. `layers` are those of the decoder; only encoder-decoders have `encoder_layers`.

    "llama" stands for all bases with separate query, key and value projections and a gated feed-forward block (Llama,
    CodeLlama, Qwen2, Mistral, SmolLM2), "codegen" for CodeGen and CodeGen2, "t5" for T5 and CodeT5+.
    """

    family: ModelFamily
    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    vocabulary: int
    head_dim: int = 0
    encoder_layers: int = 0
    tied: bool = False

    @property
    def head_size(self) -> int:
        """Numbers in one head's key."""
        return self.head_dim or self.hidden // self.heads

    @property
    def q_size(self) -> int:
        """Numbers in all queries of one token."""
        return self.heads * self.head_size

    @property
    def kv_size(self) -> int:
        """Numbers in all keys of one token, and as many in all values."""
        return self.key_value_heads * self.head_size

    def num_linear_parameters(self) -> int:
        """Parameters in the linear layers of the body: those that quantization shrinks."""
        attention = 2 * self.hidden * (self.q_size + self.kv_size)
        matrices = 3 if self.family == "llama" else 2
        feedforward = matrices * self.hidden * self.intermediate
        decoder = self.layers * (attention * (2 if self.encoder_layers else 1) + feedforward)
        return decoder + self.encoder_layers * (attention + feedforward)

    def num_parameters(self) -> int:
        """All parameters but for norms and biases, which are under a thousandth."""
        return self.num_linear_parameters() + self.vocabulary * self.hidden * (1 if self.tied else 2)

    def kv_bytes_per_token(self) -> int:
        """Bytes that one token takes in the key/value cache, in 16 bits."""
        return 2 * 2 * self.layers * self.kv_size

    def trainable_parameters(
        self, technique: str, rank: int = 16, virtual_tokens: int = 20, output: bool = False
    ) -> int:
        """Parameters that a technique learns on this base, with the modules that train/techniques.py chooses.

        `output` says whether LoRA also changes the projection out of the attention (the project's default does, the
        study's setting does not).
        """
        if technique == "full":
            return self.num_parameters()
        attentions = self.layers * (2 if self.encoder_layers else 1) + self.encoder_layers
        if technique.endswith(("lora", "bit")):
            inputs = self._lora_qkv_parameters(rank)
            return attentions * (inputs + (rank * (self.q_size + self.hidden) if output else 0))
        if technique == "ia3":
            rescaled = self.q_size + 2 * self.kv_size + self.hidden
            return attentions * rescaled + (self.layers + self.encoder_layers) * self.intermediate
        if technique == "prompt-tuning":
            return virtual_tokens * self.hidden
        return virtual_tokens * self.layers * 2 * self.kv_size

    def _lora_qkv_parameters(self, rank: int) -> int:
        """LoRA's two matrices on queries, keys and values, which CodeGen has in one projection."""
        outputs = self.q_size + 2 * self.kv_size
        return rank * (outputs + self.hidden * (1 if self.family == "codegen" else 3))


def _codellama(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, vocabulary: int) -> Architecture:
    return Architecture("llama", hidden, intermediate, layers, heads, kv_heads, vocabulary)


def _codegen(hidden: int, layers: int) -> Architecture:
    return Architecture("codegen", hidden, 4 * hidden, layers, 16, 16, 51200)


def _t5(hidden: int, layers: int, heads: int) -> Architecture:
    return Architecture("t5", hidden, 4 * hidden, layers, heads, heads, 32100, 64, layers, tied=True)


KNOWN_ARCHITECTURES: dict[str, Architecture] = {
    "SmolLM2-135M": Architecture("llama", 576, 1536, 30, 9, 3, 49152, tied=True),
    "CodeT5+-220M": _t5(768, 12, 12),
    "CodeT5+-770M": _t5(1024, 24, 16),
    "CodeGen-350M-mono": _codegen(1024, 20),
    "CodeGen2-1B": _codegen(2048, 16),
    "CodeGen2-3.7B": _codegen(4096, 16),
    "CodeGen2-7B": _codegen(4096, 32),
    "CodeLlama-7B": _codellama(4096, 11008, 32, 32, 32, 32016),
    "CodeLlama-7B-Instruct": _codellama(4096, 11008, 32, 32, 32, 32016),
    "CodeLlama-7B-Python": _codellama(4096, 11008, 32, 32, 32, 32000),
    "CodeLlama-13B-Python": _codellama(5120, 13824, 40, 40, 40, 32000),
    "CodeLlama-34B-Python": _codellama(8192, 22016, 48, 64, 8, 32000),
}


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
