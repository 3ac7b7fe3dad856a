"""Tests of train/merge.py: merged weights against the formulas of the techniques, refusals, and the smoke test."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PrefixTuningConfig, PromptTuningConfig
from safetensors.torch import load_file, save_file

from adapters.__main__ import main
from adapters.manifest import Manifest
from adapters.store import AdapterFolder, Store
from errors import AdapterError, BaseModelError, DiskSpaceError
from models.loader import load_base
from tests import messages
from tests.serve.tiny import make_adapter, make_base
from train.merge import SmokeTestTarget, merge_adapter, quantization_caveat, smoke_test_adapter
from train.techniques import attention_target_modules, ia3_target_modules


def _silent(_: str) -> None:
    return


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny base of each architecture: `llama`, `qwen2`, `codegen` and `t5`."""
    bases = tmp_path_factory.mktemp("merge")
    for kind in ("llama", "qwen2", "codegen", "t5"):
        make_base(kind, bases / kind)
    return bases


def _adapter(bases: Path, kind: str, name: str, make: Any, **changes: Any) -> AdapterFolder:
    """Make an adapter `name` with PEFT's config `make(identity)` for the base of that kind."""
    loaded = load_base(str(bases / kind), "none", "cpu", _silent, training=True, dtype="auto")
    folder = bases / "store" / name
    shutil.rmtree(folder, ignore_errors=True)
    make_adapter(folder, loaded.identity, loaded.model, make(loaded.identity), seed=1)
    replace(Manifest.read(folder), **changes).write(folder)
    return Store((bases / "store",)).inspect(name)


def _lora(**options: Any) -> Any:
    return lambda identity: LoraConfig(
        r=4, lora_alpha=12, target_modules=attention_target_modules(identity), init_lora_weights=False, **options
    )


def _ia3(identity: Any) -> IA3Config:
    targets, feedforward = ia3_target_modules(identity)
    return IA3Config(target_modules=targets, feedforward_modules=feedforward)


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return {key: tensor for file in sorted(folder.glob("*.safetensors")) for key, tensor in load_file(file).items()}


def _by_module(adapter: AdapterFolder) -> dict[str, dict[str, torch.Tensor]]:
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in _weights(adapter.path).items():
        module, part = key.removeprefix("base_model.model.").removesuffix(".weight").rsplit(".", 1)
        found.setdefault(module, {})[part] = tensor.float()
    return found


@pytest.mark.parametrize(
    ("kind", "options", "scale"),
    [
        ("llama", {}, 3.0),
        ("llama", {"use_rslora": True}, 6.0),
        ("llama", {"use_dora": True}, 3.0),
        ("qwen2", {}, 3.0),
        ("codegen", {}, 3.0),
        ("t5", {}, 3.0),
    ],
)
def test_lora_is_added_to_the_weights(
    bases: Path, tmp_path: Path, kind: str, options: dict[str, bool], scale: float
) -> None:
    adapter = _adapter(bases, kind, "lora", _lora(**options))
    merge_adapter(adapter, tmp_path / "out", _silent, base=str(bases / kind))
    before, after = _weights(bases / kind), _weights(tmp_path / "out")
    assert before.keys() == after.keys()
    changed = _by_module(adapter)
    for module, parts in changed.items():
        wanted = before[f"{module}.weight"] + scale * parts["lora_B"] @ parts["lora_A"]
        if "lora_magnitude_vector" in parts:
            wanted *= (parts["lora_magnitude_vector"] / wanted.norm(dim=1))[:, None]
        torch.testing.assert_close(after[f"{module}.weight"], wanted.bfloat16(), rtol=0.01, atol=1e-4)
        assert not torch.equal(after[f"{module}.weight"], before[f"{module}.weight"].bfloat16())
    for key in after.keys() - {f"{module}.weight" for module in changed}:
        assert torch.equal(after[key], before[key].bfloat16()), key


@pytest.mark.parametrize("kind", ["llama", "qwen2", "codegen", "t5"])
def test_ia3_is_multiplied_into_weights_and_biases(bases: Path, tmp_path: Path, kind: str) -> None:
    adapter = _adapter(bases, kind, "ia3", _ia3)
    merge_adapter(adapter, tmp_path / "out", _silent, base=str(bases / kind))
    before, after = _weights(bases / kind), _weights(tmp_path / "out")
    modules = _by_module(adapter)
    assert modules
    for module, parts in modules.items():
        # A vector of shape (out, 1) scales a layer's output, one of shape (1, in) its input.
        wanted = before[f"{module}.weight"] * parts["ia3_l"]
        assert torch.equal(after[f"{module}.weight"], wanted.bfloat16()), module
        if f"{module}.bias" in before:
            scales_input = module.endswith(tuple(adapter.config["feedforward_modules"]))
            scaled = before[f"{module}.bias"] * (1 if scales_input else parts["ia3_l"].flatten())
            assert torch.equal(after[f"{module}.bias"], scaled.bfloat16()), module


def test_merged_model_can_be_used_as_a_base(bases: Path, tmp_path: Path) -> None:
    adapter = _adapter(bases, "llama", "lora", _lora())
    tmp_path.chmod(0o755)  # what is written into a private folder is private
    out = merge_adapter(adapter, tmp_path / "deep" / "out", _silent, base=str(bases / "llama"))
    assert {tensor.dtype for tensor in _weights(out).values()} == {torch.bfloat16}
    assert "tokenizer.json" in {path.name for path in out.iterdir()}
    assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {0o644}
    manifest = Manifest.read(out)
    assert (manifest.technique, manifest.prompt_style, manifest.weights_digest) == ("lora, merged", "plain", "")
    loaded = load_base(str(out), "none", "cpu", _silent)
    wrapped = load_base(str(bases / "llama"), "none", "cpu", _silent, dtype="auto")
    from peft import PeftModel

    tuned = PeftModel.from_pretrained(wrapped.model, str(adapter.path))
    ids = loaded.tokenizer("sort a list", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        merged, apart = loaded.model(ids).logits.float(), tuned(ids).logits
    assert torch.nn.functional.cosine_similarity(merged, apart, dim=-1).min() > 0.999
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_merged_weights_of_a_half_precision_base_are_in_half_precision(bases: Path, tmp_path: Path) -> None:
    base = tmp_path / "llama"  # the base's name in the adapter's manifest
    shutil.copytree(bases / "llama", base)
    save_file(
        {key: tensor.half() for key, tensor in _weights(base).items()}, base / "model.safetensors", {"format": "pt"}
    )
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "dtype": "float16"}))
    adapter = _adapter(tmp_path, "llama", "lora", _lora())
    out = merge_adapter(adapter, tmp_path / "out", _silent, base=str(base))
    assert {tensor.dtype for tensor in _weights(out).values()} == {torch.float16}


@pytest.mark.parametrize(("quantization", "has_caveat"), [("nf4", True), ("int8", True), ("none", False)])
def test_caveat_of_quantized_training_is_reported_and_in_the_card(
    bases: Path, tmp_path: Path, quantization: str, has_caveat: bool
) -> None:
    adapter = _adapter(bases, "llama", "lora", _lora(), trained_quantization=quantization)
    lines: list[str] = []
    out = merge_adapter(adapter, tmp_path / "out", lines.append, base=str(bases / "llama"))
    card = (out / "README.md").read_text()
    caveat = f"trained against the {quantization} weights of its base and is merged into the 16-bit ones"
    assert (caveat in card) is has_caveat
    assert any(caveat in line for line in lines) is has_caveat
    assert card.startswith("---\nlibrary_name: transformers\nbase_model: llama\n")
    assert bool(quantization_caveat(adapter.manifest)) is has_caveat


@pytest.mark.parametrize(
    "make",
    [
        lambda _: PromptTuningConfig(num_virtual_tokens=3, num_transformer_submodules=1),
        lambda _: PrefixTuningConfig(num_virtual_tokens=3),
    ],
    ids=["prompt", "prefix"],
)
def test_virtual_tokens_cannot_be_merged(bases: Path, tmp_path: Path, make: Any) -> None:
    adapter = _adapter(bases, "llama", "virtual", make)
    with pytest.raises(AdapterError, match=messages.VIRTUAL_TOKENS_NOT_MERGED):
        merge_adapter(adapter, tmp_path / "out", _silent, base=str(bases / "llama"))
    assert not (tmp_path / "out").exists()


def test_adapter_of_another_base_is_an_error(bases: Path, tmp_path: Path) -> None:
    adapter = _adapter(bases, "llama", "lora", _lora())
    with pytest.raises(AdapterError, match=messages.TRAINED_FOR_LLAMA):
        merge_adapter(adapter, tmp_path / "out", _silent, base=str(bases / "qwen2"))
    with pytest.raises(AdapterError, match=messages.BASE_NEEDS_PATH):
        merge_adapter(adapter, tmp_path / "out", _silent)
    assert list(tmp_path.iterdir()) == []


def test_adapter_on_a_shared_lm_head_is_an_error(bases: Path, tmp_path: Path) -> None:
    adapter = _adapter(
        bases, "qwen2", "lora", lambda _: LoraConfig(r=4, target_modules=["lm_head"], init_lora_weights=False)
    )
    with pytest.raises(AdapterError, match=messages.LM_HEAD_IS_SHARED):
        merge_adapter(adapter, tmp_path / "out", _silent, base=str(bases / "qwen2"))


def test_existing_folders_and_full_disks_are_errors(
    bases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = _adapter(bases, "llama", "lora", _lora())
    with pytest.raises(AdapterError, match=messages.OUTPUT_FOLDER_EXISTS):
        merge_adapter(adapter, tmp_path, _silent, base=str(bases / "llama"))

    class Usage:
        free = 1000

    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage())
    with pytest.raises(DiskSpaceError, match=messages.MERGE_DISK_FULL):
        merge_adapter(adapter, tmp_path / "out", _silent, base=str(bases / "llama"))
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_finite_leave_no_files(bases: Path, tmp_path: Path) -> None:
    adapter = _adapter(bases, "llama", "lora", _lora())
    file = adapter.path / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({key: torch.full_like(tensor, float("nan")) for key, tensor in tensors.items()}, file)
    with pytest.raises(AdapterError, match=messages.MERGED_WEIGHTS_NOT_FINITE):
        merge_adapter(adapter, tmp_path / "out", _silent, base=str(bases / "llama"))
    assert list(tmp_path.iterdir()) == []


def test_disk_full_during_the_merge_leaves_no_files(
    bases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError
    from transformers import LlamaForCausalLM

    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    adapter = _adapter(bases, "llama", "lora", _lora())
    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", full)
    with pytest.raises(DiskSpaceError, match=messages.NO_SPACE_LEFT_ON_DEVICE):
        merge_adapter(adapter, tmp_path / "out", _silent, base=str(bases / "llama"))
    assert list(tmp_path.iterdir()) == []


def test_merge_command_writes_the_model_or_prints_one_error(
    bases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _adapter(bases, "llama", "lora", _lora(), trained_quantization="nf4")
    command = ["--root", str(bases / "store"), "merge", "lora", str(tmp_path / "out"), "--base", str(bases / "llama")]
    assert main(command) == 0
    captured = capsys.readouterr()
    assert captured.out == f"The merged model is ready: --base {tmp_path / 'out'}\n"
    assert "was trained against the nf4 weights" in captured.err
    assert main(command) == 2
    assert "exists: name a folder that does not, a merged model replaces nothing.\n" in capsys.readouterr().err
    assert main(["--root", str(tmp_path), "show", "out"]) == 2
    assert capsys.readouterr().err == (
        f"'out' is a whole model, not an adapter: use it with --base {tmp_path / 'out'}.\n"
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base("llama", tmp_path_factory.mktemp("trial") / "llama")


def _smoke_test_adapter(folder: Path, base: Path, config: Any) -> AdapterFolder:
    loaded = load_base(str(base), "none", "cpu", _silent, training=True)
    make_adapter(folder, loaded.identity, loaded.model, config, seed=1)
    (folder / "README.md").unlink()  # the card that PEFT writes contains the path of the base
    return Store((folder.parent,)).inspect(folder.name)


def _change(folder: Path, value: float) -> None:
    """Set every B matrix of a LoRA to `value`: 0 removes its effect, a huge value makes it infinite."""
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
def test_smoke_test_shows_answers_of_base_and_adapter(
    tmp_path: Path, base: Path, config: Any, quantization: str
) -> None:
    text = smoke_test_adapter(
        _smoke_test_adapter(tmp_path / "good", base, config), SmokeTestTarget(str(base), quantization), _silent
    )
    assert text.startswith(f"on llama ({'unquantized' if quantization == 'none' else 'NF4'}): finite")
    assert text.count("    without  ") == text.count("    with     ") == 2
    assert "\x00" not in text


def test_smoke_test_reports_an_adapter_without_effect(tmp_path: Path, base: Path) -> None:
    folder = _smoke_test_adapter(
        tmp_path / "idle", base, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
    )
    _change(folder.path, 0)
    with pytest.raises(AdapterError, match=messages.ADAPTER_WITHOUT_EFFECT):
        smoke_test_adapter(folder, SmokeTestTarget(str(base)), _silent)


def test_smoke_test_reports_an_adapter_that_is_not_finite(tmp_path: Path, base: Path) -> None:
    folder = _smoke_test_adapter(
        tmp_path / "broken", base, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
    )
    _change(folder.path, 3e38)
    with pytest.raises(AdapterError, match=messages.LOGPROBS_NOT_FINITE):
        smoke_test_adapter(folder, SmokeTestTarget(str(base)), _silent)


def test_verify_command_checks_the_base(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _smoke_test_adapter(
        tmp_path / "store" / "good", base, LoraConfig(r=8, target_modules=["q_proj"], init_lora_weights=False)
    )
    command = ["--root", str(tmp_path / "store"), "verify", "good", "--device", "cpu", "--base"]
    assert main([*command, str(base)]) == 0
    output = capsys.readouterr().out
    assert "10 of 10 checks passed" in output
    assert "on llama (unquantized): finite, and different from the base alone" in output
    other = make_base("llama", tmp_path / "other", seed=5)
    assert main([*command, str(other)]) == 2
    assert "was trained for llama" in capsys.readouterr().err
    shutil.rmtree(other)
    with pytest.raises(BaseModelError):
        smoke_test_adapter(Store((tmp_path / "store",)).inspect("good"), SmokeTestTarget(str(other)), _silent)
