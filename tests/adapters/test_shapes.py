"""DoRA, IA3, prompt and prefix tuning: valid configs, and the tensors that each must have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.source import BaseIdentity
from tests.adapters.folders import BASE, CONFIG, IN, LAYERS, OUT, Tensors, refused, store, tensors, write_adapter

COMMON = {key: CONFIG[key] for key in ("task_type", "base_model_name_or_path", "inference_mode", "peft_version")}
IA3: dict[str, Any] = {
    **COMMON,
    "peft_type": "IA3",
    "target_modules": ["q_proj"],
    "feedforward_modules": [],
    "init_ia3_weights": True,
    "fan_in_fan_out": False,
    "modules_to_save": None,
}
PROMPT: dict[str, Any] = {
    **COMMON,
    "peft_type": "PROMPT_TUNING",
    "num_virtual_tokens": 5,
    "num_transformer_submodules": 1,
    "num_attention_heads": 4,
    "num_layers": 2,
    "token_dim": IN,
    "prompt_tuning_init": "TEXT",
    "prompt_tuning_init_text": "Write Python",
    "tokenizer_name_or_path": "somewhere",
    "tokenizer_kwargs": None,
}
# Two layers, three heads of four features.
PREFIX: dict[str, Any] = {
    **COMMON,
    "peft_type": "PREFIX_TUNING",
    "num_virtual_tokens": 5,
    "num_transformer_submodules": 1,
    "num_attention_heads": 3,
    "num_layers": 2,
    "token_dim": 12,
    "encoder_hidden_size": 12,
    "prefix_projection": True,
    "init_weights": "zero",
}
DORA = {**CONFIG, "use_dora": True}


def ones(*shape: int) -> Any:
    return np.ones(shape, np.float32)


def vectors(*shape: int) -> Tensors:
    return {f"base_model.model.{layer}.ia3_l": ones(*shape) for layer in LAYERS}


def magnitudes(features: int) -> Tensors:
    return tensors() | {f"base_model.model.{layer}.lora_magnitude_vector": ones(features) for layer in LAYERS}


def embeddings(*shape: int) -> Tensors:
    return {"prompt_embeddings": ones(*shape)}


@pytest.mark.parametrize(
    ("config", "weights", "base"),
    [
        (DORA, magnitudes(OUT), BASE),
        ({**DORA, "use_rslora": True}, magnitudes(OUT), BASE),
        (IA3, vectors(OUT, 1), BASE),
        ({**IA3, "feedforward_modules": ["q_proj"]}, vectors(1, IN), BASE),
        (PROMPT, embeddings(5, IN), BASE),
        ({**PROMPT, "num_transformer_submodules": 2}, embeddings(10, IN), replace(BASE, is_encoder_decoder=True)),
        (PREFIX, embeddings(5, 2 * 2 * 12), BASE),
    ],
)
def test_adapter_of_every_technique_opens(
    tmp_path: Path, config: dict[str, Any], weights: Tensors, base: BaseIdentity
) -> None:
    write_adapter(tmp_path / "good", config, weights=weights)
    folder = store(tmp_path).open("good", base)
    assert folder.config == config
    assert folder.virtual_tokens == config.get("num_virtual_tokens", 0)


@pytest.mark.parametrize(
    ("config", "change", "expected"),
    [
        (IA3, {"feedforward_modules": None}, "feedforward_modules must be a list of module names"),
        (IA3, {"feedforward_modules": ["o_proj"]}, "o_proj is in feedforward_modules and not in target_modules"),
        (IA3, {"feedforward_modules": ["q_proj"]}, "feedforward_modules of adapter_config.json it must be (1, inputs)"),
        (IA3, {"target_modules": ".*"}, "target_modules must be a list of module names"),
        (IA3, {"target_modules": ["k_proj"]}, "which is not in target_modules (k_proj)"),
        (IA3, {"modules_to_save": ["lm_head"]}, "sets modules_to_save, which this version does not apply"),
        (IA3, {"r": 8}, "sets r, which this version does not apply"),
        (PROMPT, {"num_virtual_tokens": 0}, "has num_virtual_tokens = 0: 1 to 512 is served"),
        (PROMPT, {"num_virtual_tokens": 513}, "has num_virtual_tokens = 513"),
        (PROMPT, {"num_virtual_tokens": None}, "has num_virtual_tokens = None"),
        (PROMPT, {"num_virtual_tokens": 4}, "prompt_embeddings (5, 16), which do not fit num_virtual_tokens = 4"),
        (PROMPT, {"num_transformer_submodules": None}, "num_transformer_submodules = None: it must be 1 or 2"),
        (PROMPT, {"modules_to_save": ["lm_head"]}, "sets modules_to_save"),
        (PROMPT, {"prefix_projection": True}, "sets prefix_projection, which this version does not apply"),
        (PREFIX, {"num_attention_heads": 5}, "has token_dim = 12, which 5 attention heads do not divide"),
        (PREFIX, {"num_attention_heads": 0}, "has num_attention_heads = 0"),
        (PREFIX, {"num_attention_heads": 2}, "for 2 layers, 2 heads of 6; the base has 48 for 2 layers, 3 heads of 4"),
        (PREFIX, {"num_layers": 3}, "for 3 layers"),
        (PREFIX, {"token_dim": 10**9}, "has token_dim = 1000000000"),
        (PREFIX, {"num_virtual_tokens": True}, "has num_virtual_tokens = True"),
    ],
)
def test_unsupported_config_is_refused(
    tmp_path: Path, config: dict[str, Any], change: dict[str, Any], expected: str
) -> None:
    weights = {"IA3": vectors(OUT, 1), "PROMPT_TUNING": embeddings(5, IN), "PREFIX_TUNING": embeddings(5, 48)}
    write_adapter(tmp_path / "bad", {**config, **change}, weights=weights[config["peft_type"]])
    assert expected in refused(tmp_path / "bad")


@pytest.mark.parametrize(
    ("config", "weights", "expected"),
    [
        (
            CONFIG,
            magnitudes(OUT),
            "has lora_magnitude_vector of module model.layers.0.self_attn.q_proj without use_dora",
        ),
        (DORA, magnitudes(OUT + 1), "has a magnitude vector (13,) and B (12, 4)"),
        (IA3, tensors(), "lora_A.weight, which is not part of an IA3"),
        (CONFIG, vectors(OUT, 1), "ia3_l, which is not part of a LoRA"),
        (IA3, vectors(OUT), "feedforward_modules of adapter_config.json it must be (outputs, 1)"),
        (IA3, vectors(OUT + 1, 1), "has an IA3 vector (13, 1), the base needs (12, 1)"),
        (
            {**IA3, "target_modules": ["up_proj"]},
            {"base_model.model.up_proj.ia3_l": ones(OUT, 1)},
            "weights for module up_proj, which the base does not have",
        ),
        (PROMPT, embeddings(5, IN + 1), "virtual tokens of 17 features, the base has 16"),
        (PROMPT, embeddings(5), "prompt_embeddings (5,), which do not fit"),
        (PROMPT, {**embeddings(5, IN), "more": ones(1)}, "has more where virtual tokens are one tensor"),
        (PROMPT, {"embedding.weight": ones(5, IN)}, "has embedding.weight where virtual tokens are one tensor"),
        (PROMPT, embeddings(0, IN), "so it is empty"),
        (PREFIX, embeddings(5, 47), "has a prefix of 47 features"),
        (PREFIX, embeddings(5, 12), "has a prefix of 12 features"),  # the input of the projection, not its output
    ],
)
def test_weights_that_do_not_fit_are_refused(
    tmp_path: Path, config: dict[str, Any], weights: Tensors, expected: str
) -> None:
    write_adapter(tmp_path / "bad", config, weights=weights)
    assert expected in refused(tmp_path / "bad")


def test_virtual_tokens_for_another_kind_of_base_are_refused(tmp_path: Path) -> None:
    write_adapter(tmp_path / "prefix", PREFIX, weights=embeddings(5, 48))
    message = refused(tmp_path / "prefix", replace(BASE, is_encoder_decoder=True))
    assert "has num_transformer_submodules = 1, which is 2 for encoder-decoder bases" in message
    write_adapter(tmp_path / "both", {**PROMPT, "num_transformer_submodules": 2}, weights=embeddings(10, IN))
    assert "was trained for an encoder-decoder base" in refused(tmp_path / "both")
