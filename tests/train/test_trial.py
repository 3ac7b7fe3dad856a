"""`verify --base`: an adapter is put onto its base, and answers finitely and otherwise than the base."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PromptTuningConfig
from safetensors.torch import load_file, save_file

from adapters.__main__ import main
from adapters.store import AdapterFolder, Store
from errors import AdapterError, BaseModelError
from models.loader import load_base
from tests.serve.tiny import make_adapter, make_base
from train.merge import TestTarget, smoke_test_adapter


def _silent(_: str) -> None:
    return


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base("llama", tmp_path_factory.mktemp("trial") / "llama")


def _adapter(folder: Path, base: Path, config: Any) -> AdapterFolder:
    loaded = load_base(str(base), "none", "cpu", _silent, training=True)
    make_adapter(folder, loaded.identity, loaded.model, config, seed=1)
    (folder / "README.md").unlink()  # PEFT's own card names the base by where it lay
    return Store((folder.parent,)).inspect(folder.name)


def _change(folder: Path, value: float) -> None:
    """Sets every second matrix of a LoRA: zero takes its effect, too large a number its sense."""
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({key: torch.full_like(t, value) if "lora_B" in key else t for key, t in tensors.items()}, file)


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False),
        IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
        PromptTuningConfig(num_virtual_tokens=3, num_transformer_submodules=1),
    ],
    ids=["lora", "ia3", "prompt"],
)
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_what_it_answers_is_shown_beside_the_base(tmp_path: Path, base: Path, config: Any, quantization: str) -> None:
    said = smoke_test_adapter(_adapter(tmp_path / "good", base, config), TestTarget(str(base), quantization), _silent)
    assert said.startswith(f"on llama ({'unquantized' if quantization == 'none' else 'NF4'}): finite")
    assert said.count("    without  ") == said.count("    with     ") == 2
    assert "\x00" not in said


def test_an_adapter_that_changes_nothing(tmp_path: Path, base: Path) -> None:
    folder = _adapter(tmp_path / "idle", base, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    _change(folder.path, 0)
    with pytest.raises(AdapterError, match=r"answers exactly as llama does without it: it has learned nothing\.$"):
        smoke_test_adapter(folder, TestTarget(str(base)), _silent)


def test_an_adapter_of_nonsense(tmp_path: Path, base: Path) -> None:
    folder = _adapter(tmp_path / "broken", base, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    _change(folder.path, 3e38)
    with pytest.raises(AdapterError, match="gives log-probabilities that are not finite on llama"):
        smoke_test_adapter(folder, TestTarget(str(base)), _silent)


def test_the_command_loads_the_base_and_no_other(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _adapter(tmp_path / "store" / "good", base, LoraConfig(r=8, target_modules=["q_proj"], init_lora_weights=False))
    command = ["--root", str(tmp_path / "store"), "verify", "good", "--device", "cpu", "--base"]
    assert main([*command, str(base)]) == 0
    said = capsys.readouterr().out
    assert "11 of 11 checks passed" in said
    assert "on llama (unquantized): finite, and not what the base says alone" in said
    other = make_base("llama", tmp_path / "other", seed=5)
    assert main([*command, str(other)]) == 2
    assert "was trained for llama" in capsys.readouterr().err
    shutil.rmtree(other)
    with pytest.raises(BaseModelError):
        smoke_test_adapter(Store((tmp_path / "store",)).inspect("good"), TestTarget(str(other)), _silent)
