"""Checks of adapter folders: broken, unsafe, hostile and foreign files, configs, manifests, bases and prompts."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import save_file

from adapters import manifest
from adapters import store as store_module
from adapters.store import Store
from adapters.weights import WEIGHTS_NAME, read_raw_tensors
from errors import AdapterError
from tests import messages
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


def test_linked_folder_is_refused(good: Path) -> None:
    (good.parent / "link").symlink_to(good, target_is_directory=True)
    assert "'link' is a symbolic link: copy the folder itself" in refused(good.parent / "link")
    (status,) = [status for status in store(good.parent).status(BASE) if status.name == "link"]
    assert status.manifest is None


def test_missing_weights_are_refused(good: Path) -> None:
    (good / "adapter_model.safetensors").unlink()
    assert "has no file adapter_model.safetensors" in refused(good)


def test_too_large_files_are_refused(good: Path) -> None:
    with (good / "adapter_model.safetensors").open("r+b") as file:
        file.truncate((2 << 30) + 1)  # a sparse file
    assert "has 2.15 GB, the limit is 2.15 GB" in refused(good)
    save_file(tensors(), good / "adapter_model.safetensors")
    (good / "manifest.json").write_text(" " * ((8 << 20) + 1))
    assert "manifest.json has 8388609 bytes" in refused(good)
    (good / "adapter_config.json").write_text(json.dumps({**CONFIG, "note": "x" * (256 << 10)}))
    assert "adapter_config.json has" in refused(good)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "cannot be read"),
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("\xff", "must be a JSON object|cannot be read"),
        ("[]", "must be a JSON object of at most 200 settings"),
        (json.dumps({str(number): None for number in range(201)}), "must be a JSON object of at most 200 settings"),
    ],
)
def test_invalid_config_file_is_refused(good: Path, text: str, expected: str) -> None:
    (good / "adapter_config.json").write_text(text)
    assert any(message in refused(good) for message in expected.split("|"))


@pytest.mark.parametrize(
    ("change", "expected"),
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
def test_unsupported_config_is_refused(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    message = refused(write_adapter(tmp_path / "bad", {**CONFIG, **change}))
    assert expected in message
    assert message.isprintable()


def test_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
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
def test_manifest_with_values_of_wrong_types_is_refused(good: Path, change: dict[str, Any]) -> None:
    (good / "manifest.json").write_text(json.dumps({**asdict(MANIFEST), **change}))
    assert refused(good).isprintable()


@pytest.mark.parametrize("text", ["", "[]", "{", "{}", "3", "[" * 100_000])
def test_invalid_manifest_file_is_refused(good: Path, text: str) -> None:
    (good / "manifest.json").write_text(text)
    assert "manifest.json" in refused(good)


def test_adapter_of_another_base_or_revision_is_refused(good: Path) -> None:
    assert refused(good, replace(BASE, id="other/base")) == (
        f"Adapter 'good' was trained for tiny/base (revision {'a' * 40}), the base here is other/base "
        f"(revision {'a' * 40}): start with --base tiny/base@{'a' * 40} or train it again."
    )
    assert "the base here is tiny/base (revision bbb)" in refused(good, replace(BASE, revision="bbb"))


def test_advice_does_not_name_a_revision_that_is_a_digest(tmp_path: Path) -> None:
    manifest = replace(MANIFEST, base_id="embedded", base_revision="sha256:0011223344556677")
    message = refused(write_adapter(tmp_path / "embedded", manifest=manifest))
    assert "start with --base embedded or train it again" in message


def test_adapter_with_another_prompt_is_refused(tmp_path: Path) -> None:
    unknown = write_adapter(tmp_path / "unknown", manifest=replace(MANIFEST, prompt_style="poem"))
    assert "the prompt style 'poem', which is unknown here (known are chat, plain)" in refused(unknown)
    old = write_adapter(tmp_path / "old", manifest=replace(MANIFEST, prompt_fingerprint="00ff"))
    assert "(fingerprint 00ff), it is 0123456789abcdef here" in refused(old)
    with pytest.raises(AdapterError, match=messages.UNKNOWN_AND_NONE_KNOWN):
        Store((tmp_path,)).open("old", BASE)


CONFIG_NAME, MANIFEST_NAME = "adapter_config.json", "manifest.json"
DEPTHS = [5, 30, 40, 300, 900, 1500, 5000, 60_000]


def nest(depth: int, kind: str) -> str:
    return "[" * depth + "]" * depth if kind == "list" else '{"a":' * depth + "1" + "}" * depth


@pytest.mark.parametrize("kind", ["list", "object"])
@pytest.mark.parametrize("depth", DEPTHS)
def test_deeply_nested_json_is_refused_in_every_file(good: Path, depth: int, kind: str) -> None:
    """Deep nesting exceeds the recursion limit of parsers and of code that prints, copies or compares the values."""
    nested = nest(depth, kind)
    for key in ("r", "lora_alpha", "peft_type", "target_modules", "init_lora_weights", "layer_replication"):
        (good / CONFIG_NAME).write_text(json.dumps({**CONFIG, key: "HERE"}).replace('"HERE"', nested))
        assert refused(good).isprintable()
    (good / CONFIG_NAME).write_text(json.dumps(CONFIG))
    for key in ("version", "seed", "base_id", "log", "strange"):
        (good / MANIFEST_NAME).write_text(json.dumps({**asdict(MANIFEST), key: "HERE"}).replace('"HERE"', nested))
        assert refused(good).isprintable()
    MANIFEST.write(good)
    for header in ('{"a": HERE}', '{"a": {"dtype": HERE, "shape": [1], "data_offsets": [0, 4]}}', "HERE"):
        raw = header.replace("HERE", nested).encode()
        (good / WEIGHTS_NAME).write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(4))
        assert refused(good).isprintable()


@pytest.mark.parametrize("file", [CONFIG_NAME, MANIFEST_NAME])
def test_repeated_json_name_is_refused(good: Path, file: str) -> None:
    """Some parsers use the first value and others the last."""
    text = (good / file).read_text()
    first = next(iter(json.loads(text)))
    (good / file).write_text(text.replace("{", f'{{"{first}": "LORA", ', 1))
    assert "a name is repeated" in refused(good)


def test_folder_of_many_files_is_refused(good: Path) -> None:
    for number in range(manifest.MAX_FILES):
        (good / f"x{number}").touch()
    assert refused(good) == f"Adapter 'good' has more than {manifest.MAX_FILES} files: leave only its own files there."


def pipe(path: Path) -> None:
    os.mkfifo(path)


def link_to_a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.mkdir()


def listener(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        here = Path.cwd()
        os.chdir(path.parent)  # the path of a socket may have 107 bytes
        try:
            made.bind(path.name)
        finally:
            os.chdir(here)


def device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("no right to make devices here")


KINDS = [pipe, link_to_a_device, folder, listener, device]


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("file", [MANIFEST_NAME, WEIGHTS_NAME])
def test_special_files_are_not_read(good: Path, file: str, make: Callable[[Path], None]) -> None:
    (good / file).unlink()
    make(good / file)
    assert file in refused(good)


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("file", [CONFIG_NAME, MANIFEST_NAME, WEIGHTS_NAME])
def test_special_file_that_replaces_a_checked_file_is_not_read(
    good: Path, monkeypatch: pytest.MonkeyPatch, file: str, make: Callable[[Path], None]
) -> None:
    check_files = manifest.check_files

    def check_then_replace(path: Path, name: str) -> None:
        check_files(path, name)
        (path / file).unlink()
        make(path / file)

    monkeypatch.setattr(store_module, "check_files", check_then_replace)
    assert file in refused(good)


def test_growing_file_is_read_up_to_the_limit(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fstat = os.fstat

    def fstat_before_growth(descriptor: int) -> os.stat_result:
        status = list(fstat(descriptor))
        status[stat.ST_SIZE] = 10
        return os.stat_result(status)

    (good / CONFIG_NAME).write_text(json.dumps({**CONFIG, "note": "x" * manifest.MAX_CONFIG_BYTES}))
    monkeypatch.setattr(os, "fstat", fstat_before_growth)
    assert f"adapter_config.json has {manifest.MAX_CONFIG_BYTES + 1} bytes, the limit is" in refused(good)


def shorter(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + bytes(4))


def other_values(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")


def other_header(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"F32", b"BF1"))


def link_to_the_same(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to(path.with_name("moved"))


def gone(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def another_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    "swap", [shorter, longer, other_values, other_header, link_to_the_same, gone, empty, another_pipe]
)
def test_file_that_changes_between_check_and_load_is_not_loaded(good: Path, swap: Callable[[Path], None]) -> None:
    opened = store(good.parent).open("good", BASE)
    path = good / WEIGHTS_NAME
    assert len(read_raw_tensors(path, opened.sha256, "good").tensors) == 4
    swap(path)
    with pytest.raises(AdapterError, match=messages.ONE_LINE_ABOUT_ADAPTER_GOOD):
        read_raw_tensors(path, opened.sha256, "good")


def test_replaced_file_with_the_same_bytes_is_loaded(good: Path) -> None:
    """The digest is compared, not the inode."""
    opened = store(good.parent).open("good", BASE)
    path = good / WEIGHTS_NAME
    raw = path.read_bytes()
    path.unlink()
    path.write_bytes(raw)
    loaded = read_raw_tensors(path, opened.sha256, "good")
    assert bytes(loaded.data) == raw[8 + int.from_bytes(raw[:8], "little") :]


def test_huge_ranks_and_headers_of_huge_tensors_are_refused(tmp_path: Path) -> None:
    for rank in (257, 2**31, 10**300):
        assert "1 to 256 is served" in refused(write_adapter(tmp_path / f"r{len(str(rank))}", {**CONFIG, "r": rank}))
    folder = write_adapter(tmp_path / "claims", {**CONFIG, "r": 256})
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    claim = {name: {"dtype": "F32", "shape": [256, 2**36], "data_offsets": [0, 2**46]}}
    raw = json.dumps(claim).encode()
    (folder / WEIGHTS_NAME).write_bytes(len(raw).to_bytes(8, "little") + raw)
    assert "bytes of tensors where its header states" in refused(folder)
