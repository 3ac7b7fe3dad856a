"""Exported adapters: the folder that vLLM and PEFT load, and refusals that name vLLM's rule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from peft import PeftConfig
from safetensors.numpy import load_file

from adapters.__main__ import main
from adapters.export import vllm_checks
from adapters.store import AdapterFolder, Store
from adapters.weights import WEIGHTS_NAME
from tests.adapters.folders import CONFIG, tensors, write_adapter

RANK = 8
LORA: dict[str, Any] = {**CONFIG, "r": RANK, "lora_alpha": 16}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_adapter(tmp_path / "adapters" / "mine", LORA, weights=tensors(RANK))
    return tmp_path / "adapters"


def export(root: Path, out: Path, *arguments: str) -> int:
    return main(["--root", str(root), "export", "mine", str(out), *arguments])


def test_folder_for_vllm_names_the_base_and_has_the_same_weights(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(root, tmp_path / "out", "--for", "vllm", "--base-name", "Team/Served Base") == 0
    path = tmp_path / "out" / "mine"
    assert sorted(file.name for file in path.iterdir()) == ["README.md", "adapter_config.json", WEIGHTS_NAME]
    config = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
    assert config == {**LORA, "base_model_name_or_path": "Team/Served Base"}
    assert (path / WEIGHTS_NAME).read_bytes() == (root / "mine" / WEIGHTS_NAME).read_bytes()
    printed = capsys.readouterr().out
    assert f"VLLM_LORA_RESOLVER_CACHE_DIR={tmp_path / 'out'} " in printed
    assert "vllm serve 'Team/Served Base' --enable-lora --max-lora-rank 8" in printed


def test_exported_folder_passes_every_rule_of_vllm(root: Path, tmp_path: Path) -> None:
    export(root, tmp_path, "--for", "vllm", "--base-name", "served")
    exported = Store((root,)).inspect("mine")
    config = json.loads((tmp_path / "mine" / "adapter_config.json").read_text(encoding="utf-8"))
    folder = AdapterFolder("mine", tmp_path / "mine", exported.manifest, config, exported.digest)
    assert [check.reason for check in vllm_checks(folder, "served") if not check.passed] == []
    assert [check.name for check in vllm_checks(folder, "Served") if not check.passed] == ["base_model_name_or_path"]


def test_other_users_read_an_export_unless_its_folder_is_private(root: Path, tmp_path: Path) -> None:
    for name, modes in (("open", (0o755, 0o644)), ("private", (0o700, 0o600))):
        (tmp_path / name).mkdir(mode=modes[0])
        assert export(root, tmp_path / name, "--for", "vllm") == 0
        path = tmp_path / name / "mine"
        assert path.stat().st_mode & 0o777 == modes[0]
        assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {modes[1]}


def test_peft_reads_the_exported_folder(root: Path, tmp_path: Path) -> None:
    assert export(root, tmp_path / "out", "--for", "peft", "--base-name", "some/base") == 0
    config = PeftConfig.from_pretrained(str(tmp_path / "out" / "mine"))
    assert (config.base_model_name_or_path, config.r, config.revision) == ("some/base", RANK, None)
    assert load_file(tmp_path / "out" / "mine" / WEIGHTS_NAME).keys() == tensors(RANK).keys()


def test_adapter_that_vllm_refuses_is_not_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "ia3-conala", str(tmp_path / "out"), "--for", "vllm"]) == 2
    errors = capsys.readouterr().err
    assert "'ia3-conala' cannot be exported for vLLM: its type is IA3 and vLLM loads only LoRA" in errors
    assert not (tmp_path / "out").exists()
    assert main(["export", "ia3-conala", str(tmp_path / "out"), "--for", "peft"]) == 0


def test_export_replaces_nothing(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out" / "mine").mkdir(parents=True)
    assert export(root, tmp_path / "out", "--for", "vllm") == 2
    assert "an export replaces nothing" in capsys.readouterr().err
    assert list((tmp_path / "out" / "mine").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--for", "merged", "--base-name", "x"), "--base-name is for vllm and peft"),
        (("--for", "vllm", "--base", "embedded"), "--for vllm loads no base"),
    ],
)
def test_option_of_another_program_is_refused(
    root: Path, tmp_path: Path, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(root, tmp_path / "out", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.model
@pytest.mark.slow
def test_merged_model_is_written_below_the_folder(tmp_path: Path) -> None:
    assert main(["export", "lora-starter", str(tmp_path), "--for", "merged"]) == 0
    assert (tmp_path / "lora-starter" / "model.safetensors").is_file()
