"""The modules that each technique changes, for each family of the study, against PEFT and the study's Table 3."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from peft.utils.constants import (
    TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING,
    TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
)
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    CodeGenConfig,
    LlamaConfig,
    Qwen2Config,
    T5Config,
)

from errors import TrainingError
from models.identity import BaseIdentity
from train.techniques import (
    attention_target_modules,
    ia3_attention_target_modules,
    ia3_target_modules,
    paper_lora_target_modules,
)

# As published on the Hub: sizes alone, the weights are never made.
_CONFIGS: dict[str, Any] = {
    "CodeLlama-7B": LlamaConfig(vocab_size=32016, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32),
    "Qwen2.5-Coder-0.5B": Qwen2Config(
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
    ),
    "CodeGen-350M-mono": CodeGenConfig(vocab_size=51200, n_embd=1024, n_layer=20, n_head=16, rotary_dim=32),
    # CodeGen2 has a class of its own with the same names; its sizes in CodeGen's class give the same counts.
    "CodeGen2-1B": CodeGenConfig(vocab_size=51200, n_embd=2048, n_layer=16, n_head=16),
    "CodeGen2-3.7B": CodeGenConfig(vocab_size=51200, n_embd=4096, n_layer=16, n_head=16),
    "CodeGen2-7B": CodeGenConfig(vocab_size=51200, n_embd=4096, n_layer=32, n_head=16),
    "CodeT5+-220M": T5Config(vocab_size=32103, d_model=768, d_ff=3072, d_kv=64, num_layers=12, num_heads=12),
    "CodeT5+-770M": T5Config(vocab_size=32103, d_model=1024, d_ff=4096, d_kv=64, num_layers=24, num_heads=16),
}


def _model(name: str) -> Any:
    config = _CONFIGS[name]
    family = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        return family.from_config(config)


def _base(model: Any) -> BaseIdentity:
    shapes = {
        name: (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    return BaseIdentity("x", "y", type(model).__name__, "none", "cpu", 512, has_chat_template=False, shapes=shapes)


def _trainable(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize(
    ("name", "attention", "inputs", "ia3", "feedforward"),
    [
        ("CodeLlama-7B", "k_proj o_proj q_proj v_proj", "k_proj q_proj v_proj", "down_proj k_proj v_proj", "down_proj"),
        (
            "Qwen2.5-Coder-0.5B",
            "k_proj o_proj q_proj v_proj",
            "k_proj q_proj v_proj",
            "down_proj k_proj v_proj",
            "down_proj",
        ),
        ("CodeGen-350M-mono", "out_proj qkv_proj", "qkv_proj", "fc_out qkv_proj", "fc_out"),
        ("CodeGen2-1B", "out_proj qkv_proj", "qkv_proj", "fc_out qkv_proj", "fc_out"),
        ("CodeT5+-220M", "k o q v", "k q v", "k v wo", "wo"),
    ],
)
def test_each_family_has_its_modules(name: str, attention: str, inputs: str, ia3: str, feedforward: str) -> None:
    base = _base(_model(name))
    assert attention_target_modules(base) == attention.split()
    assert ia3_attention_target_modules(base) == attention.split()
    assert paper_lora_target_modules(base) == inputs.split()
    assert ia3_target_modules(base) == (ia3.split(), [feedforward])


@pytest.mark.parametrize(
    ("name", "parameters", "printed", "unit"),
    [
        ("CodeLlama-7B", 12_582_912, 12.5, 0.1e6),
        ("CodeGen-350M-mono", 1_310_720, 1.3, 0.1e6),
        ("CodeGen2-1B", 2_097_152, 2, 1e6),
        ("CodeGen2-3.7B", 4_194_304, 4, 1e6),
        ("CodeGen2-7B", 8_388_608, 8.3, 0.1e6),
        ("CodeT5+-220M", 2_654_208, 2.7, 0.1e6),
        ("CodeT5+-770M", 7_077_888, 7, 1e6),
    ],
)
def test_lora_of_rank_16_has_as_many_parameters_as_in_table_3(
    name: str, parameters: int, printed: float, unit: float
) -> None:
    model = _model(name)
    lora = LoraConfig(r=16, target_modules=paper_lora_target_modules(_base(model)))
    with torch.device("meta"):
        assert _trainable(get_peft_model(model, lora)) == parameters
    # The study rounds some numbers and cuts others off.
    assert abs(parameters - printed * 1e6) < unit


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("CodeLlama-7B", 614_400), ("CodeGen-350M-mono", 143_360), ("CodeT5+-220M", 129_024), ("CodeT5+-770M", 344_064)],
)
def test_ia3_rescales_keys_values_and_the_feed_forward(name: str, parameters: int) -> None:
    model = _model(name)
    targets, feedforward = ia3_target_modules(_base(model))
    with torch.device("meta"):
        tuned = get_peft_model(model, IA3Config(target_modules=targets, feedforward_modules=feedforward))
    assert _trainable(tuned) == parameters
    layers = {name: layer for name, layer in tuned.named_modules() if hasattr(layer, "is_feedforward")}
    assert {name.rsplit(".", 1)[-1] for name, layer in layers.items() if layer.is_feedforward} == set(feedforward)
    assert {name.rsplit(".", 1)[-1] for name in layers} == set(targets)


def test_codegens_ia3_count_of_table_3_needs_all_attention_and_the_feed_forward() -> None:
    """What the docstring of ia3_modules says of the study's 0.16M."""
    model = _model("CodeGen-350M-mono")
    base = _base(model)
    _, feedforward = ia3_target_modules(base)
    targets = [*attention_target_modules(base), *feedforward]
    with torch.device("meta"):
        tuned = get_peft_model(model, IA3Config(target_modules=targets, feedforward_modules=feedforward))
    assert _trainable(tuned) == 163_840


@pytest.mark.parametrize(("name", "kind"), [("CodeLlama-7B", "llama"), ("CodeT5+-220M", "t5")])
def test_ia3_agrees_with_pefts_own_mapping(name: str, kind: str) -> None:
    targets, feedforward = ia3_target_modules(_base(_model(name)))
    assert targets == sorted(TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING[kind])
    assert feedforward == TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING[kind]


@pytest.mark.parametrize(
    ("kind", "attention", "feedforward"),
    [
        ("gptj", "k_proj out_proj q_proj v_proj", "fc_out"),
        ("opt", "k_proj out_proj q_proj v_proj", "fc2"),
        ("phi", "dense k_proj q_proj v_proj", "fc2"),
        ("phi3", "o_proj qkv_proj", "down_proj"),
        ("gpt_bigcode", "attn.c_proj c_attn", "mlp.c_proj"),
        ("gpt_neox", "dense query_key_value", "dense_4h_to_h"),
        ("falcon", "dense query_key_value", "dense_4h_to_h"),
        ("starcoder2", "k_proj o_proj q_proj v_proj", "c_proj"),
    ],
)
def test_other_families_that_people_bring(kind: str, attention: str, feedforward: str) -> None:
    with torch.device("meta"):
        base = _base(AutoModelForCausalLM.from_config(AutoConfig.for_model(kind)))
    assert attention_target_modules(base) == attention.split()
    assert ia3_target_modules(base)[1] == [feedforward]


@pytest.mark.parametrize(
    "modules", [attention_target_modules, paper_lora_target_modules, ia3_target_modules, ia3_attention_target_modules]
)
def test_an_unknown_architecture_is_one_sentence(modules: Any) -> None:
    with torch.device("meta"):
        base = _base(AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2")))
    with pytest.raises(TrainingError, match=r"GPT2LMHeadModel are not known here: .* --target-modules\.$"):
        modules(base)
