"""Tiny bases with random weights of the families of models that users bring, from transformers' own configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig

from tests.serve.tiny import tokenizer

VOCABULARY = len(tokenizer())
_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
# As many keys and values as queries: a configuration of these families has no such setting.
_ALL_HEADS = {"num_key_value_heads": 4}
# Shorter than most prompts.
_WINDOW = {"sliding_window": 8}
_SLIDING = {**_WINDOW, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"]}
_LINEAR = {
    "layer_types": ["linear_attention", "linear_attention", "full_attention"], "head_dim": 8,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_ROUTED = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 16,
    "n_shared_experts": 1, "first_k_dense_replace": 1,
}  # fmt: skip
_LATENT = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "num_key_value_heads": 4,
}  # fmt: skip
_PER_LAYER = {
    "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY, "num_kv_shared_layers": 1,
    "layer_types": ["sliding_attention", "full_attention", "full_attention"],
}  # fmt: skip

# What the configuration of each family needs besides the common sizes.
SERVED: dict[str, dict[str, Any]] = {
    # Keys and values of all tokens
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "phi3": {},
    "starcoder2": {},
    "granite": {},
    "olmo2": {},
    "smollm3": {},
    "gpt2": _ALL_HEADS,
    "gpt_neox": _ALL_HEADS,
    "stablelm": {},
    "glm4": {"head_dim": 8},
    "ernie4_5": {"head_dim": 8},
    "hunyuan_v1_dense": {"head_dim": 8},
    "nemotron": {},
    "seed_oss": {"head_dim": 8},
    "apertus": {},
    # Mixtures of experts
    "qwen3_moe": {**_EXPERTS, "head_dim": 8},
    "mixtral": {"num_local_experts": 4},
    "phimoe": {"num_local_experts": 4},
    "dots1": _ROUTED,
    "deepseek_v2": {**_ROUTED, **_LATENT},
    "deepseek_v3": {**_ROUTED, **_LATENT},
    # Sliding windows, in all or some layers
    "mistral": _WINDOW,
    "gemma2": {**_WINDOW, "head_dim": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": {**_SLIDING, "head_dim": 8, "query_pre_attn_scalar": 8},
    "cohere2": _SLIDING,
    "olmo3": _SLIDING,
    "exaone4": _SLIDING,
    "gpt_oss": {**_WINDOW, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
    # Sliding windows, layers of two head sizes, and a layer that reads another's keys and values
    "gemma4_text": {**_WINDOW, **_PER_LAYER, "head_dim": 8, "global_head_dim": 16},
    # States, in all or some layers
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"], "block_auto_adjust_ff_dim": False},
    "falcon_h1": {**_MAMBA, "mamba_d_ssm": 64, "head_dim": 8},
    "qwen3_5_text": _LINEAR,
    "qwen3_next": {**_LINEAR, **_EXPERTS, "shared_expert_intermediate_size": 16},
    "mamba": {"state_size": 8},
    "mamba2": {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1},
    "falcon_mamba": {"state_size": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "mamba_d_state": 8, "mamba_dt_rank": 4},
    "bamba": {**_MAMBA, "attn_layer_indices": [1]},
    "granitemoehybrid": {
        **_MAMBA, "layer_types": ["mamba", "attention", "mamba"], "num_local_experts": 2, "num_experts_per_tok": 1,
        "shared_intermediate_size": 16,
    },
    "nemotron_h": {
        "num_hidden_layers": 4, "hybrid_override_pattern": "M*-M", "mamba_num_heads": 4, "mamba_head_dim": 16,
        "ssm_state_size": 8, "n_groups": 1, "head_dim": 8,
    },
}  # fmt: skip
# Refused by what their configuration says,
_REFUSED: dict[str, dict[str, Any]] = {
    "bert": {},
    "clip": {},
    "whisper": {},
    "qwen2_vl": {},
    "rwkv": {},
    "openai-gpt": {},
    "deepseek_v32": {**_ROUTED, **_LATENT},
    "deepseek_v4": {},
}
# or when they are run: a cache of another class, states in the model itself, positions that count the padding.
_REFUSED_IN_TRIAL: dict[str, dict[str, Any]] = {
    "xlstm": {},
    "minimax": {"head_dim": 8, "num_local_experts": 4, "block_size": 8},
    "recurrent_gemma": {"lru_width": 32, "attention_window_size": 8},
    "bart": {
        "is_decoder": True, "is_encoder_decoder": False, "d_model": 32, "decoder_layers": 2,
        "decoder_attention_heads": 4, "decoder_ffn_dim": 48,
    },
}  # fmt: skip


def make_config(kind: str) -> PreTrainedConfig:
    """Return the tiny configuration of a family."""
    special = {**SERVED, **_REFUSED, **_REFUSED_IN_TRIAL}[kind]
    config: PreTrainedConfig = AutoConfig.for_model(kind, **{**_COMMON, **special})
    return config


def make_vision_language(kind: str, folder: Path) -> Any:
    """Save a tiny vision-language model, "gemma3" or "qwen3_5", with a tokenizer to `folder`, and return it."""
    vision = {"hidden_size": 32, "intermediate_size": 48}
    if kind == "gemma3":
        vision |= {"num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    else:
        vision |= {"depth": 1, "num_heads": 2, "out_hidden_size": 32, "num_position_embeddings": 16}
    text = make_config(f"{kind}_text").to_dict()
    torch.manual_seed(0)
    model: Any = AutoModelForImageTextToText.from_config(
        AutoConfig.for_model(kind, text_config=text, vision_config=vision)
    )
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return model.eval()


def make_family(kind: str, folder: Path) -> Path:
    """Save a tiny base of a family to `folder`.

    Matrices are larger than in a new model, so that logits differ, and biases are not zero.
    """
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(make_config(kind))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "A_log" not in name:
                parameter.mul_(8)
            elif name.endswith("bias") and not parameter.any():
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
