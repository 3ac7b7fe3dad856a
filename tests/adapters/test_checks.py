"""Broken, unsafe and foreign adapter folders are refused with the mend: files, config, manifest, base, prompt."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import save_file

from adapters.store import Store
from errors import AdapterError
from tests.adapters.folders import BASE, CONFIG, MANIFEST, refused, store, tensors, write_adapter


@pytest.mark.parametrize("pickle", ["adapter_model.bin", "x.pt", "x.PTH", "x.pkl", "model.ckpt"])
def test_pickles_are_refused_by_name(good: Path, pickle: str) -> None:
    (good / pickle).write_bytes(b"")
    assert refused(good) == f"Adapter 'good': {pickle} is a pickle, which can run code: delete it."
    (good / "adapter_model.safetensors").unlink()
    assert refused(good).endswith("convert it to safetensors (adapter_model.safetensors).")


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "manifest.json", "README.md"])
def test_linked_files_are_refused(good: Path, tmp_path: Path, name: str) -> None:
    target = tmp_path / "elsewhere"
    target.write_text("secret")
    if (good / name).exists():
        shutil.copy(good / name, target)
        (good / name).unlink()
    (good / name).symlink_to(target)
    assert refused(good) == f"Adapter 'good': {name} is a symbolic link: put the file itself there."


def test_a_linked_folder_is_refused(good: Path) -> None:
    (good.parent / "link").symlink_to(good, target_is_directory=True)
    assert "'link' is a symbolic link: copy the folder itself" in refused(good.parent / "link")
    (status,) = [each for each in store(good.parent).status(BASE) if each.name == "link"]
    assert status.manifest is None


def test_a_missing_or_strange_file(good: Path) -> None:
    (good / "adapter_model.safetensors").unlink()
    assert "has no file adapter_model.safetensors" in refused(good)
    (good / "adapter_model.safetensors").mkdir()
    assert "has no file adapter_model.safetensors" in refused(good)
    (good / "adapter_model.safetensors").rmdir()
    os.mkfifo(good / "adapter_model.safetensors")  # opening it would wait for ever
    assert "has no file adapter_model.safetensors" in refused(good)


def test_sizes_have_limits(good: Path) -> None:
    with (good / "adapter_model.safetensors").open("r+b") as file:
        file.truncate((2 << 30) + 1)  # sparse: takes no room
    assert "has 2.0 GiB, the limit is 2 GiB" in refused(good)
    save_file(tensors(), good / "adapter_model.safetensors")
    (good / "manifest.json").write_text(" " * ((8 << 20) + 1))
    assert "manifest.json has 8388609 bytes" in refused(good)
    (good / "adapter_config.json").write_text(json.dumps({**CONFIG, "note": "x" * (256 << 10)}))
    assert "adapter_config.json has" in refused(good)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "cannot be read"),
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("\xff", "must be a JSON object|cannot be read"),
        ("[]", "must be a JSON object of at most 200 settings"),
        (json.dumps({str(number): None for number in range(201)}), "must be a JSON object of at most 200 settings"),
    ],
)
def test_a_config_that_is_none(good: Path, text: str, says: str) -> None:
    (good / "adapter_config.json").write_text(text)
    assert any(each in refused(good) for each in says.split("|"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"peft_type": "VERA"}, "is a VERA adapter; this version serves LoRA, IA3, Prompt tuning and Prefix tuning"),
        ({"peft_type": "P_TUNING"}, "is a P_TUNING adapter; this version serves LoRA"),
        ({"peft_type": None}, "is a None adapter; this version serves LoRA"),
        ({"peft_type": ["LORA"]}, "adapter; this version serves LoRA"),
        ({"peft_type": "\x1b[31m" + "x" * 10_000}, "…"),
        ({"use_dora": True}, "lacks lora_magnitude_vector of module model.layers.0.self_attn.q_proj"),
        ({"use_dora": "yes"}, "use_dora must be true or false"),
        ({"use_rslora": 1}, "use_rslora must be true or false"),
        ({"bias": "all"}, "train it with bias 'none'"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4 (init_lora_weights), which changes the base's weights"),
        ({"modules_to_save": ["lm_head"]}, "sets modules_to_save, which this version does not apply"),
        ({"rank_pattern": {"q_proj": 8}}, "sets rank_pattern"),
        ({"alpha_pattern": {"q_proj": 8}}, "sets alpha_pattern"),
        ({"layer_replication": [[0, 1]]}, "sets layer_replication"),
        ({"fan_in_fan_out": True}, "sets fan_in_fan_out"),
        ({"lora_bias": True}, "sets lora_bias"),
        ({"some_future_setting": 1}, "sets some_future_setting"),
        ({"r": 0}, "has rank r = 0: 1 to 256 is served"),
        ({"r": 257}, "has rank r = 257"),
        ({"r": 4.0}, "has rank r = 4.0"),
        ({"r": True}, "has rank r = True"),
        ({"r": None}, "has rank r = None"),
        ({"lora_alpha": "8"}, "has lora_alpha = 8"),
        ({"lora_alpha": None}, "has lora_alpha = None"),
        ({"lora_alpha": float("nan")}, "has lora_alpha = nan"),
        ({"lora_alpha": 10**400}, "has lora_alpha = 1000"),
        ({"target_modules": "(a+)+$"}, "target_modules must be a list of module names"),
        ({"target_modules": []}, "target_modules must be a list of module names"),
        ({"target_modules": [1]}, "target_modules must be a list of module names"),
        ({"target_modules": ["k_proj"]}, "q_proj, which is not in target_modules (k_proj)"),
        ({"target_modules": ["roj"]}, "which is not in target_modules"),
        ({"r": 8}, "do not fit the rank r = 8"),
    ],
)
def test_a_config_that_cannot_be_served(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    sentence = refused(write_adapter(tmp_path / "bad", {**CONFIG, **change}))
    assert says in sentence
    assert sentence.isprintable()


def test_a_folder_without_a_manifest(tmp_path: Path) -> None:
    assert "has no manifest.json: train it with" in refused(write_adapter(tmp_path / "bare", manifest=None))


@pytest.mark.parametrize(
    "change",
    [
        {"base_id": 3},
        {"prompt_style": ["plain"]},
        {"seed": "0"},
        {"log": [1]},
        {"scores": "abc"},
        {"config": []},
        {"version": 2},
        {"\x1b[31mextra": 1},
        {"e" * 100_000: 1},
    ],
)
def test_a_manifest_with_values_of_other_types(good: Path, change: dict[str, Any]) -> None:
    (good / "manifest.json").write_text(json.dumps({**asdict(MANIFEST), **change}))
    assert refused(good).isprintable()


@pytest.mark.parametrize("text", ["", "[]", "{", "{}", "3", "[" * 100_000])
def test_a_manifest_that_is_none(good: Path, text: str) -> None:
    (good / "manifest.json").write_text(text)
    assert "manifest.json" in refused(good)


def test_another_base_or_revision(good: Path) -> None:
    assert refused(good, replace(BASE, id="other/base")) == (
        f"Adapter 'good' was trained for tiny/base (revision {'a' * 40}), the base here is other/base "
        f"(revision {'a' * 40}): start with --base tiny/base@{'a' * 40} or train it again."
    )
    assert "the base here is tiny/base (revision bbb)" in refused(good, replace(BASE, revision="bbb"))


def test_a_revision_that_is_a_digest_is_no_part_of_the_advice(tmp_path: Path) -> None:
    manifest = replace(MANIFEST, base_id="embedded", base_revision="sha256:0011223344556677")
    sentence = refused(write_adapter(tmp_path / "embedded", manifest=manifest))
    assert "start with --base embedded or train it again" in sentence


def test_another_prompt(tmp_path: Path) -> None:
    unknown = write_adapter(tmp_path / "unknown", manifest=replace(MANIFEST, prompt_style="poem"))
    assert "the prompt style 'poem', which is unknown here (known are chat, plain)" in refused(unknown)
    old = write_adapter(tmp_path / "old", manifest=replace(MANIFEST, prompt_fingerprint="00ff"))
    assert "(fingerprint 00ff), it is 0123456789abcdef here" in refused(old)
    with pytest.raises(AdapterError, match=r"unknown here \(known are none\)"):
        Store((tmp_path,)).open("old", BASE)
