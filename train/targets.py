"""Which linear layers a technique changes, by the family of the base.

A family is known by the names of its attention projections, not by its class: CodeGen2 brings a class of its own and
has CodeGen's names, every fine-tuned Llama has Llama's.
"""

from __future__ import annotations

from dataclasses import dataclass

from adapters.manifest import BaseIdentity
from errors import TrainingError


@dataclass(frozen=True)
class _ArchitectureModules:
    """Last parts of module names: the projections into the attention, the one out of it, and what IA3 rescales."""

    qkv: tuple[str, ...]
    out: str
    # Keys and values, as far as they have a projection of their own.
    kv: tuple[str, ...]
    # The layer that leaves the feed-forward block: IA3 rescales what goes into it.
    feedforward: str


_ARCHITECTURES = (
    # Llama, CodeLlama, Qwen2, Mistral, Gemma
    _ArchitectureModules(("q_proj", "k_proj", "v_proj"), "o_proj", ("k_proj", "v_proj"), "down_proj"),
    # CodeGen and CodeGen2
    _ArchitectureModules(("qkv_proj",), "out_proj", ("qkv_proj",), "fc_out"),
    # T5 and CodeT5+
    _ArchitectureModules(("q", "k", "v"), "o", ("k", "v"), "wo"),
    # GPT-J, whose feed-forward names CodeGen took over
    _ArchitectureModules(("q_proj", "k_proj", "v_proj"), "out_proj", ("k_proj", "v_proj"), "fc_out"),
    # OPT, BART and PLBART
    _ArchitectureModules(("q_proj", "k_proj", "v_proj"), "out_proj", ("k_proj", "v_proj"), "fc2"),
    # Phi-1 and Phi-2, StarCoder2
    _ArchitectureModules(("q_proj", "k_proj", "v_proj"), "dense", ("k_proj", "v_proj"), "fc2"),
    _ArchitectureModules(("q_proj", "k_proj", "v_proj"), "o_proj", ("k_proj", "v_proj"), "c_proj"),
    # Phi-3
    _ArchitectureModules(("qkv_proj",), "o_proj", ("qkv_proj",), "down_proj"),
    # StarCoder; GPT-2's own layers are no linear ones and do not count
    _ArchitectureModules(("c_attn",), "attn.c_proj", ("c_attn",), "mlp.c_proj"),
    # GPT-NeoX, Falcon, BLOOM
    _ArchitectureModules(("query_key_value",), "dense", ("query_key_value",), "dense_4h_to_h"),
)


def attention_target_modules(base: BaseIdentity) -> list[str]:
    """Suffixes of the names of all attention projections; TrainingError where the base's family is not known."""
    family = _find_architecture(base)
    return sorted((*family.qkv, family.out))


def paper_lora_target_modules(base: BaseIdentity) -> list[str]:
    """What the study gave LoRA: queries, keys and values, not the projection out of the attention.

    With rank 16 that is Table 3's number of parameters for every base (arXiv 2308.10462; 12.5M for CodeLlama-7B).
    """
    return sorted(_find_architecture(base).qkv)


def ia3_target_modules(base: BaseIdentity) -> tuple[list[str], list[str]]:
    """IA3's targets, and those of them that are rescaled at their input: keys, values and the feed-forward's output.

    As in (IA)^3 (arXiv 2205.05638) and in PEFT's mapping for Llama and T5. Where queries, keys and values share one
    projection, all three are rescaled. The study does not name its modules, and Table 3 counts more parameters: 0.16M
    for CodeGen-350M is all attention projections and the feed-forward's output, where this is 0.14M.
    """
    family = _find_architecture(base)
    return sorted((*family.kv, family.feedforward)), [family.feedforward]


def ia3_attention_target_modules(base: BaseIdentity) -> list[str]:
    """All attention projections, none of them a feed-forward one: the choice that did best in PEFT's own suite."""
    return attention_target_modules(base)


def _find_architecture(base: BaseIdentity) -> _ArchitectureModules:
    dotted = [f".{name}" for name in base.shapes]
    for family in _ARCHITECTURES:
        if all(
            any(name.endswith(f".{part}") for name in dotted) for part in (*family.qkv, family.out, family.feedforward)
        ):
            return family
    raise TrainingError(
        f"The attention projections of {base.architecture} are not known here: name them with --target-modules."
    )
