"""Small adapter folders as PEFT and `python -m train` write them, for a base of two layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from adapters.manifest import Manifest
from adapters.store import Store
from errors import AdapterError
from models.source import BaseIdentity

FINGERPRINTS = {"plain": "0123456789abcdef", "chat": "fedcba9876543210"}
LAYERS = ("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj")
OUT, IN, RANK = 12, 16, 4
BASE = BaseIdentity(
    id="tiny/base",
    revision="a" * 40,
    architecture="LlamaForCausalLM",
    quantization="nf4",
    device="cpu",
    context_length=128,
    has_chat_template=True,
    shapes={**dict.fromkeys(LAYERS, (OUT, IN)), "lm_head": (99, IN)},
    hidden_size=IN,
    num_layers=2,
    num_key_value_heads=3,
    head_dim=4,
)
MANIFEST = Manifest(
    name="good",
    technique="lora",
    base_id=BASE.id,
    base_revision=BASE.revision,
    trained_quantization="nf4",
    prompt_style="plain",
    prompt_fingerprint=FINGERPRINTS["plain"],
    dataset="starter",
    dataset_digest="sha256:0011223344556677",
    seed=0,
    licence="Apache-2.0",
    log=({"step": 1, "loss": 2.0},),
    scores=({"metric": "em@1", "value": 0.5, "n": 80},),
)
CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": BASE.id,
    "r": RANK,
    "lora_alpha": 8,
    "lora_dropout": 0.05,
    "target_modules": ["q_proj"],
    "bias": "none",
    "inference_mode": True,
    "init_lora_weights": True,
    "use_dora": False,
    "modules_to_save": None,
    "rank_pattern": {},
    "megatron_core": "megatron.core",
    "peft_version": "0.21.2",
}
Tensors = dict[str, np.ndarray[Any, Any]]


def key(module: str, side: str) -> str:
    return f"base_model.model.{module}.lora_{side}.weight"


def tensors(rank: int = RANK, dtype: type = np.float32) -> Tensors:
    pairs: Tensors = {}
    for layer in LAYERS:
        pairs[key(layer, "A")] = np.ones((rank, IN), dtype)
        pairs[key(layer, "B")] = np.zeros((OUT, rank), dtype)
    return pairs


def write_adapter(
    folder: Path,
    config: dict[str, Any] | None = None,
    manifest: Manifest | None = MANIFEST,
    weights: Tensors | None = None,
) -> Path:
    """Write a small adapter folder as PEFT and `python -m train` do; return its path."""
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG if config is None else config))
    if manifest is not None:
        manifest.write(folder)
    save_file(tensors() if weights is None else weights, folder / "adapter_model.safetensors")
    return folder


def store(root: Path) -> Store:
    return Store((root,), fingerprints=FINGERPRINTS)


def refused(folder: Path, base: BaseIdentity = BASE) -> str:
    """Return the message with which the store refuses the folder."""
    with pytest.raises(AdapterError) as caught:
        store(folder.parent).open(folder.name, base)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    return message
