"""StudyConfig: models, data sets, techniques and decoding of a study, and the sizes of its models.

`evaluate.study.read_config` reads a StudyConfig from a YAML file (`evaluate/study/configs/`). The sizes are those of
each model's published config.json. The parameter counts derived from them reproduce the study's Table 3: 2.7M for LoRA
on CodeT5+-220M, 12.5M on CodeLlama-7B, 0.16M for IA3 on CodeGen-350M, 2.6M for Prefix tuning on CodeGen2-7B (arXiv
2308.10462).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from errors import PromptOrTuneError
from evaluate.generate import make_sampling_params
from models.resources import weight_bytes
from serve.types import SamplingParams

ModelFamily = Literal["llama", "codegen", "t5"]
MODEL_FAMILIES: tuple[ModelFamily, ...] = ("llama", "codegen", "t5")


@dataclass(frozen=True)
class Architecture:
    """Sizes of a model. `layers` counts the decoder's layers; `encoder_layers` is 0 without an encoder.

    "llama" means any base with separate query, key and value projections and a gated feed-forward block (Llama,
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
        """Width of one attention head."""
        return self.head_dim or self.hidden // self.heads

    @property
    def q_size(self) -> int:
        """Width of the queries of one token."""
        return self.heads * self.head_size

    @property
    def kv_size(self) -> int:
        """Width of the keys of one token, and of its values."""
        return self.key_value_heads * self.head_size

    def num_linear_parameters(self) -> int:
        """Return the parameters in the linear layers, which quantization compresses."""
        attention = 2 * self.hidden * (self.q_size + self.kv_size)
        matrices = 3 if self.family == "llama" else 2
        feedforward = matrices * self.hidden * self.intermediate
        decoder = self.layers * (attention * (2 if self.encoder_layers else 1) + feedforward)
        return decoder + self.encoder_layers * (attention + feedforward)

    def num_parameters(self) -> int:
        """Return all parameters except norms and biases, which are under a thousandth."""
        return self.num_linear_parameters() + self.vocabulary * self.hidden * (1 if self.tied else 2)

    def weight_bytes(self, quantization: str) -> int:
        """Return the bytes of the weights as they are served: linear layers quantized, the rest in 16 bits."""
        linear = self.num_linear_parameters()
        return weight_bytes(linear, self.num_parameters() - linear, quantization)

    def kv_bytes_per_token(self) -> int:
        """Return the bytes of one token in the key/value cache in 16 bits."""
        return 2 * 2 * self.layers * self.kv_size

    def trainable_parameters(
        self, technique: str, rank: int = 16, virtual_tokens: int = 20, output: bool = False
    ) -> int:
        """Return the parameters that a technique trains, with the modules that train/techniques.py chooses.

        With `output` LoRA also adapts the output projection of the attention, as this project's default does and the
        study's setting does not.
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
        """Return the parameters of LoRA on queries, keys and values, which CodeGen has in one projection."""
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
# Display names of the values of --quantization.
WEIGHT_BITS_LABELS: Mapping[str, str] = {"nf4": "4-bit", "int8": "8-bit", "none": "16-bit"}
QUANTIZATIONS = tuple(WEIGHT_BITS_LABELS)
# The quantizations with which each technique can train, as in train/techniques.py.
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
# The defaults of both presets.
DEFAULT_LORA_RANK, DEFAULT_LORA_ALPHA = 16, 32


@dataclass(frozen=True)
class StudyModel:
    """A base: the value for `--base`, and the quantization in which it answers zero-shot, ICL and RAG.

    `beside` names the published model whose scores are printed beside this one's. `techniques` are run on this model.
    Without `architecture` there are no estimates.
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
        """The name in file and adapter names."""
        return "".join(letter if letter.isalnum() or letter == "." else "-" for letter in self.name.lower()).replace(
            "--", "-"
        )


@dataclass(frozen=True)
class StudyDataset:
    """A data set: its first `problems` test problems (None: all), decoding, and numbers of ICL and RAG examples."""

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
        """Return the SamplingParams; raises PromptOrTuneError for an invalid combination."""
        return make_sampling_params(self.mode, self.candidates, self.max_new_tokens, seed, self.temperature, self.top_p)


@dataclass(frozen=True)
class ResearchQuestion:
    """The part of the grid of one research question. `together` lists the example methods to combine adapters with."""

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
    """The hardware for the estimates, with sustained rates, not peak rates.

    `gigabytes_per_second` is the speed of reading weights, `teraflops` that of long prompts and training, and
    `step_milliseconds` the fixed cost of a decoding step.
    """

    name: str
    memory_gb: float
    gigabytes_per_second: float
    teraflops: float
    step_milliseconds: float


@dataclass(frozen=True)
class TrainingSpec:
    """Training and naming of adapters. `name` is a pattern of {technique}, {data} and {model}.

    `known` maps (technique, data) to the name of an adapter that does not follow the pattern. `epochs` None means the
    preset's.
    """

    preset: str = "default"
    name: str = "{technique}-{data}"
    known: Mapping[tuple[str, str], str] = field(default_factory=dict)
    epochs: float | None = None


@dataclass(frozen=True)
class StudyConfig:
    """The contents of a study's YAML file. `techniques` maps each technique to its quantization."""

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
        """Return the model of that name, which must exist."""
        return next(model for model in self.models if model.name == name)

    def dataset(self, name: str) -> StudyDataset:
        """Return the data set of that name, which must exist."""
        return next(data for data in self.data if data.name == name)

    def question(self, rq: str) -> ResearchQuestion:
        """Return a research question; raises PromptOrTuneError if the file has no section for it."""
        if rq not in self.questions:
            raise PromptOrTuneError(f"{self.name} has no section {rq}: add one with the models and data it runs.")
        return self.questions[rq]

    def adapter_name(self, technique: str, data: str, model: StudyModel, pair: tuple[int, int] | None = None) -> str:
        """Return the adapter's name, which contains rank and alpha if `pair` is not the default."""
        name = self.training.known.get((technique, data))
        name = name or self.training.name.format(technique=technique, data=data, model=model.slug)
        if pair is None or pair == (DEFAULT_LORA_RANK, DEFAULT_LORA_ALPHA):
            return name
        return f"{name}-r{pair[0]}-a{pair[1]}"
