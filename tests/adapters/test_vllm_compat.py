"""Compatibility with vLLM: each check fails after one change, and all checks pass for the bundled adapters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from adapters.store import LIBRARY, AdapterFolder, Store
from adapters.verify import VLLM_LORA_RANKS, vllm_checks
from tests.adapters.folders import CONFIG, IN, LAYERS, MANIFEST, OUT, key, tensors, write_adapter

RANK = 8
GOOD: dict[str, Any] = {**CONFIG, "r": RANK, "lora_alpha": 16}


def _folder(path: Path, **changes: Any) -> AdapterFolder:
    """Return a folder without the checks of the store."""
    config = {**GOOD, **changes}
    return AdapterFolder(path.name, path, MANIFEST, config, "sha256:0")


def _failed(folder: AdapterFolder) -> dict[str, str]:
    found = vllm_checks(folder)
    assert all(check.passed is not bool(check.reason) for check in found)
    return {check.name: check.reason for check in found if not check.passed}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "good", GOOD, weights=tensors(RANK))


def test_plain_lora_passes_every_check(path: Path) -> None:
    assert _failed(Store((path.parent,)).inspect("good")) == {}
    assert len(vllm_checks(_folder(path))) == 11


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors"])
def test_both_files_must_be_in_the_folder(path: Path, missing: str) -> None:
    (path / missing).unlink()
    assert f"vLLM looks for <root>/good/{missing}, which does not exist" in _failed(_folder(path))["file layout"]


def test_folder_must_have_the_adapters_name(path: Path) -> None:
    other = path.rename(path.with_name("other"))
    failed = _failed(replace(_folder(other), name="good"))
    assert failed["file layout"] == "the folder is called other, vLLM would look for good: rename it"


@pytest.mark.parametrize("kind", ["IA3", "PROMPT_TUNING", "PREFIX_TUNING", None])
def test_other_techniques_than_lora_fail(path: Path, kind: str | None) -> None:
    assert "vLLM loads only LoRA: serve it here" in _failed(_folder(path, peft_type=kind))["peft_type LORA"]


@pytest.mark.parametrize("configured", ["other/base", "tiny/base/", None])
def test_base_must_be_named_as_it_is_served(path: Path, configured: str | None) -> None:
    reason = _failed(_folder(path, base_model_name_or_path=configured))["base_model_name_or_path"]
    assert reason.startswith(
        f"base_model_name_or_path is {configured} and the base is served as tiny/base: vLLM compares"
    )


def test_encoder_decoder_base_is_refused(path: Path) -> None:
    assert "task_type is SEQ_2_SEQ_LM" in _failed(_folder(path, task_type="SEQ_2_SEQ_LM"))["task_type CAUSAL_LM"]


@pytest.mark.parametrize("rank", [1, 4, 12, 24, 48, 100, 1024, 0, True, "16", None])
def test_ranks_that_vllm_does_not_support_fail(path: Path, rank: Any) -> None:
    assert "vLLM's ranks are 8, 16, 32, 64, 128, 256, 320, 512" in _failed(_folder(path, r=rank))["rank"]


@pytest.mark.parametrize("rank", VLLM_LORA_RANKS)
def test_ranks_that_vllm_supports_pass(path: Path, rank: int) -> None:
    assert "rank" not in _failed(_folder(path, r=rank))


@pytest.mark.parametrize("pattern", ["rank_pattern", "alpha_pattern"])
def test_modules_with_their_own_rank_or_alpha_fail(path: Path, pattern: str) -> None:
    failed = _failed(_folder(path, **{pattern: {"q_proj": 32}}))
    assert failed["one rank and alpha"].startswith(f"{pattern} gives modules")


@pytest.mark.parametrize("change", [{"bias": "all"}, {"bias": "lora_only"}, {"lora_bias": True}])
def test_trained_biases_fail(path: Path, change: dict[str, Any]) -> None:
    assert "train with bias none" in _failed(_folder(path, **change))["bias none"]


def test_dora_fails(path: Path) -> None:
    assert _failed(_folder(path, use_dora=True)) == {
        "no DoRA": "it is a DoRA (use_dora), which vLLM refuses: train without it, or merge it"
    }


def test_fully_trained_layers_fail(path: Path) -> None:
    failed = _failed(_folder(path, modules_to_save=["lm_head"]))
    assert list(failed) == ["no modules_to_save"]


@pytest.mark.parametrize("targets", [".*q_proj", [], ["q_proj", 1], [LAYERS[0]], ["(a+)+$"], None])
def test_target_modules_that_are_not_suffixes_fail(path: Path, targets: Any) -> None:
    assert "target modules" in _failed(_folder(path, target_modules=targets))


def test_target_module_of_two_parts_passes(path: Path) -> None:
    assert _failed(_folder(path, target_modules=["self_attn.q_proj"])) == {}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.layers.0.self_attn.q_proj.lora_A.weight", "is not named base_model.model.<layer>.lora_A.weight"),
        (key(LAYERS[0], "magnitude_vector"), "is not named"),
        ("base_model.model.lm_head.weight", "is not named"),
        (key("model.layers.0.self_attn.q_proj.lora_A.default", "A"), "of a layer that target_modules does not have"),
        (key("model.layers.0.mlp.up_proj", "A"), "of a layer that target_modules does not have"),
        (key("model.layers.0.self_attn.xq_proj", "A"), "of a layer that target_modules does not have"),
    ],
)
def test_tensors_must_have_the_names_that_vllm_parses(path: Path, name: str, expected: str) -> None:
    save_file({**tensors(RANK), name: np.ones((RANK, IN), np.float32)}, path / "adapter_model.safetensors")
    assert expected in _failed(_folder(path))["tensor names"]


def test_weights_that_cannot_be_read_fail_the_check(path: Path) -> None:
    (path / "adapter_model.safetensors").write_bytes(bytes(OUT))
    assert "is not valid" in _failed(_folder(path))["tensor names"]


def test_every_bundled_lora_passes_every_check() -> None:
    library = Store((LIBRARY,))
    folders = [library.inspect(name) for name in library.names()]
    loras = [folder for folder in folders if folder.config["peft_type"] == "LORA"]
    assert loras
    assert {folder.name: _failed(folder) for folder in loras} == {folder.name: {} for folder in loras}
