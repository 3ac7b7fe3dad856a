"""Fine-tuning techniques: PEFT config, quantization of the base, presets, and target modules by architecture.

A new technique (VeRA, OFT, bottleneck adapters) is one more entry in TECHNIQUES: a function that makes the PEFT config,
and the settings that differ from the defaults of TrainConfig.

An architecture is recognized by the names of its attention projections, not by its class: CodeGen2 has a class of its
own and CodeGen's names, every fine-tuned Llama has Llama's names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from errors import TrainingError, unknown_name_error
from models.source import BaseIdentity, keeps_all_tokens
from train.config import TrainConfig

if TYPE_CHECKING:
    from peft import PeftConfig


@dataclass(frozen=True)
class _ArchitectureModules:
    """Suffixes of module names: input projections of the attention, its output projection, and IA3's targets."""

    qkv: tuple[str, ...]
    out: str
    # Projections of keys and values; if all three share one projection, that one.
    kv: tuple[str, ...]
    # The output layer of the feed-forward block; IA3 rescales its input. "" if it is no module of its own: the weights
    # of all experts of a mixture are one tensor.
    feedforward: str


_QKV, _KV = ("q_proj", "k_proj", "v_proj"), ("k_proj", "v_proj")
_ARCHITECTURES = (
    # Llama, CodeLlama, Qwen, Mistral, Gemma, OLMo, Granite, Cohere
    _ArchitectureModules(_QKV, "o_proj", _KV, "down_proj"),
    # CodeGen and CodeGen2
    _ArchitectureModules(("qkv_proj",), "out_proj", ("qkv_proj",), "fc_out"),
    # T5 and CodeT5+
    _ArchitectureModules(("q", "k", "v"), "o", ("k", "v"), "wo"),
    # GPT-J; CodeGen has the same feed-forward names
    _ArchitectureModules(_QKV, "out_proj", _KV, "fc_out"),
    # OPT, BART and PLBART
    _ArchitectureModules(_QKV, "out_proj", _KV, "fc2"),
    # LFM2, whose convolutions have an out_proj too
    _ArchitectureModules(_QKV, "out_proj", _KV, "w2"),
    # Phi-1 and Phi-2, StarCoder2
    _ArchitectureModules(_QKV, "dense", _KV, "fc2"),
    _ArchitectureModules(_QKV, "o_proj", _KV, "c_proj"),
    # Phi-3
    _ArchitectureModules(("qkv_proj",), "o_proj", ("qkv_proj",), "down_proj"),
    # GPT-2 and StarCoder
    _ArchitectureModules(("c_attn",), "attn.c_proj", ("c_attn",), "mlp.c_proj"),
    # GPT-NeoX, Falcon, BLOOM
    _ArchitectureModules(("query_key_value",), "dense", ("query_key_value",), "dense_4h_to_h"),
    # DeepSeek: queries, keys and values are each computed from a smaller vector (V2-Lite has whole queries)
    _ArchitectureModules(
        ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"), "o_proj", ("kv_b_proj",), "down_proj"
    ),
    _ArchitectureModules(("q_proj", "kv_a_proj_with_mqa", "kv_b_proj"), "o_proj", ("kv_b_proj",), "down_proj"),
    # Mixtures of experts: Mixtral, Qwen3-MoE, gpt-oss
    _ArchitectureModules(_QKV, "o_proj", _KV, ""),
)
# Input and output projections of layers that keep a state instead of keys and values: LFM2, Mamba and hybrids with it,
# Qwen3.5, Qwen3-Next. The output projection of Mamba is not one of them: its kernel reads the weight itself, without
# an adapter's layer (PEFT refuses it too).
_STATE_MODULES = (
    "conv.in_proj", "mamba.in_proj", "mixer.in_proj", "linear_attn.in_proj_qkv", "linear_attn.in_proj_z",
    "linear_attn.in_proj_qkvz", "linear_attn.out_proj",
)  # fmt: skip


def attention_target_modules(base: BaseIdentity) -> list[str]:
    """Return the suffixes of all projections of attention and state layers.

    Raises TrainingError for an unknown architecture.
    """
    states = _state_modules(base)
    if states and not _has_attention(base):
        return states
    architecture = _find_architecture(base)
    return sorted((*architecture.qkv, architecture.out, *states))


def paper_lora_target_modules(base: BaseIdentity) -> list[str]:
    """Return the study's LoRA targets: queries, keys and values, without the attention's output projection.

    With rank 16 they have Table 3's number of parameters for every base (arXiv 2308.10462; 12.5M for CodeLlama-7B).
    State layers have their input projections.
    """
    states = [name for name in _state_modules(base) if not name.endswith("out_proj")]
    if states and not _has_attention(base):
        return states
    return sorted((*_find_architecture(base).qkv, *states))


def ia3_target_modules(base: BaseIdentity) -> tuple[list[str], list[str]]:
    """Return IA3's targets (keys, values, the feed-forward's output), and those of them rescaled at their input.

    As in (IA)^3 (arXiv 2205.05638) and in PEFT's mapping for Llama and T5. If queries, keys and values share one
    projection, all three are rescaled. The study does not name its modules, and Table 3 counts more parameters: its
    0.16M for CodeGen-350M are all attention projections and the feed-forward's output, where these targets have 0.14M.
    Experts of a mixture are not rescaled.
    """
    architecture = _find_architecture(base)
    feedforward = [architecture.feedforward] if architecture.feedforward else []
    return sorted((*architecture.kv, *feedforward)), feedforward


def ia3_attention_target_modules(base: BaseIdentity) -> list[str]:
    """Return all attention projections and no feed-forward layer: the best choice in PEFT's own comparison."""
    architecture = _find_architecture(base)
    return sorted((*architecture.qkv, architecture.out))


def _state_modules(base: BaseIdentity) -> list[str]:
    return sorted(suffix for suffix in _STATE_MODULES if _has_module(base, suffix))


def _has_module(base: BaseIdentity, suffix: str) -> bool:
    return any(f".{name}".endswith(f".{suffix}") for name in base.shapes)


def _has_attention(base: BaseIdentity) -> bool:
    return any(all(_has_module(base, suffix) for suffix in architecture.qkv) for architecture in _ARCHITECTURES)


def _find_architecture(base: BaseIdentity) -> _ArchitectureModules:
    for architecture in _ARCHITECTURES:
        suffixes = (*architecture.qkv, architecture.out, *([architecture.feedforward] * bool(architecture.feedforward)))
        if all(_has_module(base, suffix) for suffix in suffixes):
            return architecture
    raise TrainingError(
        f"The attention projections of {base.architecture} are not known here: name them with --lora-target-modules or "
        "--ia3-target-modules."
    )


PRESETS = ("default", "paper")
# arXiv 2308.10462, section 4.
_PAPER_SETTINGS = {
    "num_train_epochs": 5.0,
    "per_device_train_batch_size": 8,
    "optim": "adafactor",
    "warmup_ratio": 0.05,
    "weight_decay": 0.0,
    "eval_every": 0.2,
    "virtual_tokens_init": "random",
    "learning_rate": 3e-4,
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.05,
}
# Measured on the embedded base (docs/training.md): three times the study's rate.
_LORA_SETTINGS = {"learning_rate": 1e-3}


@dataclass(frozen=True)
class Technique:
    """A fine-tuning technique.

    `make_peft_config` returns None if the base itself is trained. `quantizations` of the base are those that the
    technique can train on, the first one by default. `default_settings` and `paper_settings` override the common
    settings of the two presets.
    """

    name: str
    title: str
    make_peft_config: Callable[[TrainConfig, BaseIdentity], PeftConfig | None]
    quantizations: tuple[str, ...]
    default_settings: Mapping[str, Any] = field(default_factory=dict)
    paper_settings: Mapping[str, Any] = field(default_factory=dict)
    uses_virtual_tokens: bool = False
    # The reason why it cannot be combined with gradient checkpointing; '' if it can.
    no_checkpointing_reason: str = ""

    def settings(self, preset: str) -> dict[str, Any]:
        """Return the values of TrainConfig that this technique sets under a preset."""
        if preset not in PRESETS:
            raise unknown_name_error("preset", preset, PRESETS)
        return {**_PAPER_SETTINGS, **self.paper_settings} if preset == "paper" else dict(self.default_settings)

    def check_base(self, base_config: Any) -> None:
        """Raise TrainingError if a base of this transformers configuration could not be served with the adapter."""
        if self.uses_virtual_tokens and not base_config.is_encoder_decoder and not keeps_all_tokens(base_config):
            raise TrainingError(
                f"{self.title} puts virtual tokens before the prompt, and this base does not keep the keys and values "
                "of tokens far back (it has a sliding window, or states): choose --technique lora or ia3."
            )
        if self.name == "prefix-tuning" and getattr(base_config, "kv_lora_rank", None):
            raise TrainingError(
                f"{self.title} learns keys and values of one size, and the latent attention of this base has two "
                "sizes: choose --technique prompt-tuning, lora or ia3."
            )

    def validate(self, config: TrainConfig) -> None:
        """Raise TrainingError for settings that this technique cannot train with."""
        if config.quantization not in self.quantizations:
            others = [other.name for other in TECHNIQUES.values() if config.quantization in other.quantizations]
            raise TrainingError(
                f"{self.title} trains on a base with quantization {' or '.join(self.quantizations)}, "
                f"not {config.quantization}: leave quantization out, or choose --technique {' or '.join(others)}."
            )
        if config.gradient_checkpointing and self.no_checkpointing_reason:
            raise TrainingError(
                f"{self.title} with gradient checkpointing cannot train: {self.no_checkpointing_reason}"
            )


def _task_type(base: BaseIdentity) -> Any:
    from peft import TaskType

    return TaskType.SEQ_2_SEQ_LM if base.is_encoder_decoder else TaskType.CAUSAL_LM


def _lora_config(config: TrainConfig, base: BaseIdentity) -> PeftConfig:
    from peft import LoraConfig

    default_targets = paper_lora_target_modules if config.preset == "paper" else attention_target_modules
    return LoraConfig(
        task_type=_task_type(base),
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        target_modules=list(config.lora_target_modules or default_targets(base)),
    )


def _ia3_config(config: TrainConfig, base: BaseIdentity) -> PeftConfig:
    from peft import IA3Config

    targets, feedforward = list(config.ia3_target_modules), list(config.ia3_feedforward_modules)
    if not targets:
        # All attention projections, not only PEFT's keys and values: Table 3 counts them (0.16M, CodeGen-350M).
        keys_values, feedforward = ia3_target_modules(base)
        targets = sorted({*keys_values, *ia3_attention_target_modules(base)})
    return IA3Config(task_type=_task_type(base), target_modules=targets, feedforward_modules=feedforward)


def _prompt_tuning_config(config: TrainConfig, base: BaseIdentity) -> PeftConfig:
    from peft import PromptTuningConfig

    # On encoder-decoder bases, the virtual tokens are prepended to the encoder's input only.
    return PromptTuningConfig(
        task_type=_task_type(base), num_virtual_tokens=config.num_virtual_tokens, num_transformer_submodules=1
    )


def _prefix_tuning_config(config: TrainConfig, base: BaseIdentity) -> PeftConfig:
    from peft import PrefixTuningConfig

    return PrefixTuningConfig(task_type=_task_type(base), num_virtual_tokens=config.num_virtual_tokens)


def _no_peft_config(_config: TrainConfig, _base: BaseIdentity) -> None:
    return None


TECHNIQUES: dict[str, Technique] = {
    technique.name: technique
    for technique in (
        Technique(
            "full", "Full fine-tuning", _no_peft_config, ("none",), {"learning_rate": 5e-5}, {"learning_rate": 5e-5}
        ),
        Technique("lora", "LoRA", _lora_config, ("none",), _LORA_SETTINGS),
        Technique("qlora-8bit", "QLoRA-8bit", _lora_config, ("int8",), _LORA_SETTINGS),
        Technique("qlora-4bit", "QLoRA-4bit", _lora_config, ("nf4",), _LORA_SETTINGS),
        Technique(
            "ia3", "IA3", _ia3_config, ("nf4", "none", "int8"), {"learning_rate": 1e-2}, {"quantization": "none"}
        ),
        Technique(
            "prompt-tuning",
            "Prompt tuning",
            _prompt_tuning_config,
            ("nf4", "none", "int8"),
            {"learning_rate": 3e-2, "num_virtual_tokens": 20},
            {"learning_rate": 3e-3, "num_virtual_tokens": 20, "quantization": "none"},
            uses_virtual_tokens=True,
        ),
        Technique(
            "prefix-tuning",
            "Prefix tuning",
            _prefix_tuning_config,
            ("nf4", "none", "int8"),
            {"learning_rate": 3e-2, "num_virtual_tokens": 20},
            # The text says 20 virtual tokens, its Table 3 counts the parameters of 10.
            {"learning_rate": 3e-2, "num_virtual_tokens": 10, "quantization": "none"},
            uses_virtual_tokens=True,
            no_checkpointing_reason="the prefix is a key/value cache, and checkpointing drops caches (peft issue "
            "2035); turn gradient_checkpointing off, or choose prompt-tuning.",
        ),
    )
}


def get_technique(name: str) -> Technique:
    """Return the technique of that name. Raises UnknownNameError with the nearest name otherwise."""
    if name not in TECHNIQUES:
        raise unknown_name_error("technique", name, TECHNIQUES)
    return TECHNIQUES[name]
