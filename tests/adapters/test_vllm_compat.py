"""Compatibility with vLLM: each check fails after one change, and all checks pass for the bundled adapters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from adapters.export import needed_max_lora_rank, vllm_checks
from adapters.store import LIBRARY, AdapterFolder, Store
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
    assert len(vllm_checks(_folder(path))) == 10


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
    assert reason.startswith(f"base_model_name_or_path is {configured} and the base is tiny/base: vLLM compares")


def test_encoder_decoder_base_is_refused(path: Path) -> None:
    assert "task_type is SEQ_2_SEQ_LM" in _failed(_folder(path, task_type="SEQ_2_SEQ_LM"))["task_type CAUSAL_LM"]


@pytest.mark.parametrize("rank", [1024, 0, -8, True, "16", None])
def test_ranks_that_no_server_takes_fail(path: Path, rank: Any) -> None:
    assert "vLLM's ranks are 1 to 512: train with one of them" in _failed(_folder(path, r=rank))["ranks"]
    assert "ranks" in _failed(_folder(path, rank_pattern={"q_proj": rank}))


@pytest.mark.parametrize(
    ("changes", "limit"),
    [({"r": 1}, 1), ({"r": 4}, 8), ({"r": 12}, 16), ({"r": 512}, 512), ({"rank_pattern": {"q_proj": 48}}, 64)],
)
def test_every_other_rank_passes_with_the_limit_that_it_needs(path: Path, changes: dict[str, Any], limit: int) -> None:
    assert _failed(_folder(path, **changes)) == {}
    assert needed_max_lora_rank({**GOOD, **changes}) == limit


def test_alphas_of_single_modules_pass(path: Path) -> None:
    assert _failed(_folder(path, alpha_pattern={"q_proj": 32})) == {}


@pytest.mark.parametrize("change", [{"bias": "all"}, {"bias": "lora_only"}, {"lora_bias": True}])
def test_trained_biases_fail(path: Path, change: dict[str, Any]) -> None:
    assert "train with bias none" in _failed(_folder(path, **change))["bias none"]


def test_dora_fails(path: Path) -> None:
    assert _failed(_folder(path, use_dora=True)) == {
        "no DoRA or other variant": "it is a DoRA (use_dora), which vLLM refuses: train without it, or merge it"
    }


@pytest.mark.parametrize(
    "change", [{"alora_invocation_tokens": [1]}, {"layer_replication": [[0, 1]]}, {"use_qalora": True}]
)
def test_variants_that_vllm_lacks_fail(path: Path, change: dict[str, Any]) -> None:
    assert next(iter(change)) in _failed(_folder(path, **change))["no DoRA or other variant"]


@pytest.mark.parametrize(("init", "passes"), [("pissa", False), ("loftq", False), ("gaussian", True), (False, True)])
def test_initial_values_that_change_the_base_fail(path: Path, init: Any, passes: bool) -> None:
    assert ("initial values" in _failed(_folder(path, init_lora_weights=init))) is not passes


def test_fully_trained_layers_fail(path: Path) -> None:
    failed = _failed(_folder(path, modules_to_save=["lm_head"]))
    assert list(failed) == ["no modules_to_save"]


@pytest.mark.parametrize("targets", [".*q_proj", "all-linear", [LAYERS[0]], ["self_attn.q_proj"]])
def test_modules_in_any_form_pass_because_tensor_names_decide(path: Path, targets: Any) -> None:
    assert _failed(_folder(path, target_modules=targets)) == {}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.layers.0.self_attn.q_proj.weight", "is not named base_model.model.<layer>.lora_A.weight"),
        (key(LAYERS[0], "magnitude_vector"), "is not named"),
        ("base_model.model.lm_head.weight", "is not named"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight", "is not named"),
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
