"""Adapter folders for the benchmark: copies of one with other weights, and ones of random weights for any base."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from adapters.checks import CONFIG_NAME
from adapters.manifest import Manifest
from adapters.peft_config import is_feedforward
from adapters.store import AdapterFolder
from adapters.weights import WEIGHTS_NAME, digest
from common.paths import check_disk_space
from models.identity import BaseIdentity
from tasks.prompt import STYLES
from train.techniques import attention_target_modules, ia3_target_modules

RANK = 16
VIRTUAL_TOKENS = 20
Shape = tuple[int, ...]
# PEFT's config, and the shape of each tensor.
AdapterFiles = tuple[dict[str, Any], dict[str, Shape]]


def copy_adapters(source: AdapterFolder, root: Path, number: int) -> list[str]:
    """`number` adapters like `of` under `root`, each with weights of its own; their names."""
    from safetensors.torch import load_file, save_file

    check_disk_space(root, int(1.1 * number * (source.path / WEIGHTS_NAME).stat().st_size))
    tensors = load_file(source.path / WEIGHTS_NAME)
    names = [f"copy-{place:04}" for place in range(number)]
    for place, name in enumerate(names):
        folder = root / name
        folder.mkdir()
        shutil.copy(source.path / CONFIG_NAME, folder)
        # Other bytes each, of the size of trained ones.
        weaker = {key: tensor * (1 - 0.2 * place / number) for key, tensor in tensors.items()}
        save_file(weaker, folder / WEIGHTS_NAME)
        weights = digest(folder / WEIGHTS_NAME, name)
        replace(source.manifest, name=name, weights_digest=weights).write(folder)
    return names


def make_adapter(folder: Path, technique: str, base: BaseIdentity) -> None:
    """An adapter of small random weights: "lora" (rank 16, attention), "ia3" or "prompt-tuning" (20 virtual tokens)."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)

    def random(shape: Shape) -> Any:
        return (torch.randn(shape, generator=generator) * 0.02).to(torch.bfloat16)

    config, shapes = _MAKERS[technique](base)
    config |= {"base_model_name_or_path": base.id, "task_type": "CAUSAL_LM", "inference_mode": True}
    folder.mkdir()
    (folder / CONFIG_NAME).write_text(json.dumps(config), encoding="utf-8")
    around = 1 if technique == "ia3" else 0
    save_file({key: around + random(shape) for key, shape in shapes.items()}, folder / WEIGHTS_NAME)
    Manifest(
        name=folder.name,
        technique=technique,
        base_id=base.id,
        base_revision=base.revision,
        trained_quantization=base.quantization,
        prompt_style="plain",
        prompt_fingerprint=STYLES["plain"].fingerprint,
        dataset="",
        dataset_digest="",
        seed=0,
        licence="",
        weights_digest=digest(folder / WEIGHTS_NAME, folder.name),
    ).write(folder)


def _make_lora(base: BaseIdentity) -> AdapterFiles:
    targets = attention_target_modules(base)
    shapes: dict[str, Shape] = {}
    for key, (features_out, features_in) in _target_shapes(base, targets):
        shapes[f"{key}.lora_A.weight"] = (RANK, features_in)
        shapes[f"{key}.lora_B.weight"] = (features_out, RANK)
    config = {"peft_type": "LORA", "target_modules": targets, "r": RANK, "lora_alpha": 2 * RANK, "bias": "none"}
    return config, shapes


def _make_ia3(base: BaseIdentity) -> AdapterFiles:
    targets, inwards = ia3_target_modules(base)
    config: dict[str, Any] = {"peft_type": "IA3", "target_modules": targets, "feedforward_modules": inwards}
    shapes: dict[str, Shape] = {
        f"{key}.ia3_l": (1, features_in) if is_feedforward(key, config) else (features_out, 1)
        for key, (features_out, features_in) in _target_shapes(base, targets)
    }
    return config, shapes


def _make_prompt_tuning(base: BaseIdentity) -> AdapterFiles:
    config = {
        "peft_type": "PROMPT_TUNING",
        "num_virtual_tokens": VIRTUAL_TOKENS,
        "num_transformer_submodules": 1,
        "num_layers": base.num_layers,
        "num_attention_heads": base.num_key_value_heads,
        "token_dim": base.hidden_size,
    }
    return config, {"prompt_embeddings": (VIRTUAL_TOKENS, base.hidden_size)}


def _target_shapes(base: BaseIdentity, targets: Sequence[str]) -> Iterator[tuple[str, tuple[int, int]]]:
    """PEFT's name, and (out, in) features, of every layer of the base that `targets` mean."""
    for module, features in base.shapes.items():
        if module.endswith(tuple(f".{target}" for target in targets)):
            yield f"base_model.model.{module}", features


_MAKERS: dict[str, Callable[[BaseIdentity], AdapterFiles]] = {
    "lora": _make_lora,
    "ia3": _make_ia3,
    "prompt-tuning": _make_prompt_tuning,
}
