"""Tiny bases with random weights in the architectures of the study, adapter folders for them, and a base cut short."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    CodeGenConfig,
    CodeGenForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from adapters.manifest import Manifest
from models.source import BaseIdentity
from tasks.prompt import STYLES

if TYPE_CHECKING:
    from peft import PeftConfig


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per byte and three special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def make_base(kind: str, folder: Path, seed: int = 0) -> Path:
    """Save a tiny base of the kind "llama", "qwen2", "codegen" or "t5" to `folder`."""
    torch.manual_seed(seed)
    size = len(tokenizer())
    ends: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    model: Any
    if kind == "llama":
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=size,
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=512,
                **ends,
            )
        )
    elif kind == "qwen2":
        model = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=size,
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=512,
                tie_word_embeddings=True,
                **ends,
            )
        )
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):  # zero in a new model, and large in trained models
                    parameter.normal_(std=3.0)
    elif kind == "codegen":
        model = CodeGenForCausalLM(
            CodeGenConfig(vocab_size=size, n_embd=64, n_layer=2, n_head=4, n_positions=512, rotary_dim=8, **ends)
        )
    else:
        config = T5Config(
            vocab_size=size, d_model=64, d_ff=128, d_kv=16, num_layers=3, num_heads=4, decoder_start_token_id=0, **ends
        )
        model = T5ForConditionalGeneration(config)
    # Random weights of the usual size give nearly uniform logits; larger ones give different tokens.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def first_layers(base: Path, count: int, folder: Path) -> Path:
    """Save the first `count` layers of the base in a folder, with all else it has, to `folder`."""
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    model = AutoModelForCausalLM.from_pretrained(base, num_hidden_layers=count, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    return folder


def make_lora(folder: Path, base: BaseIdentity, model: Any, rank: int, targets: list[str], seed: int) -> Path:
    """Save a random LoRA folder for `base` with its manifest."""
    from peft import LoraConfig

    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, init_lora_weights=False)
    return make_adapter(folder, base, model, config, seed)


def make_adapter(folder: Path, base: BaseIdentity, model: Any, config: PeftConfig, seed: int) -> Path:
    """Save an adapter folder of any technique as PEFT writes it, with random weights and its manifest.

    Vectors that PEFT initializes with ones (IA3, DoRA) are drawn around one; virtual tokens are drawn at the scale of
    this tiny base's embeddings.
    """
    from peft import get_peft_model

    torch.manual_seed(seed)
    config.task_type = "SEQ_2_SEQ_LM" if base.is_encoder_decoder else "CAUSAL_LM"
    wrapped = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "ia3_l" in name or "magnitude" in name:
                parameter.mul_(torch.rand_like(parameter) * 1.5 + 0.25)
            elif "prompt_encoder" in name:
                parameter.normal_(std=1.0)
    wrapped.peft_config["default"].base_model_name_or_path = base.id
    wrapped.save_pretrained(folder, save_embedding_layers=False)
    Manifest(
        name=folder.name,
        technique=str(config.peft_type.value).lower(),
        base_id=base.id,
        base_revision=base.revision,
        trained_quantization="none",
        prompt_style="plain",
        prompt_fingerprint=STYLES["plain"].fingerprint,
        dataset="starter",
        dataset_digest="sha256:0",
        seed=seed,
        licence="apache-2.0",
    ).write(folder)
    return folder
