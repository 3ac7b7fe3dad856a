"""Tests of training on a base with its own code, such as CodeGen2, with --trust-remote-code."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from transformers import dynamic_module_utils

from adapters.export import vllm_checks
from adapters.store import Store
from errors import BaseModelError
from tests import messages
from tests.serve.own_code import make_own_code_base
from tests.train.runs import tiny_config
from train.merge import SmokeTestTarget, smoke_test_adapter
from train.run import train

pytestmark = pytest.mark.slow


def _silent(_: str) -> None:
    return


@pytest.fixture
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with the base; transformers' copy of its code is in a temporary folder."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    for name in [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]:
        del sys.modules[name]
    make_own_code_base(tmp_path / "base", tmp_path / "mark")
    return tmp_path


def test_remote_code_does_not_run_without_the_flag(run_folder: Path) -> None:
    with pytest.raises(BaseModelError, match=messages.REMOTE_CODE_NOT_RUN):
        train(tiny_config(run_folder), _silent)
    assert not (run_folder / "mark").exists()
    assert not list(run_folder.glob("store/*"))


@pytest.mark.parametrize("technique", ["lora", "qlora-4bit", "ia3", "prefix-tuning"])
def test_adapter_is_trained_and_served_with_the_flag(run_folder: Path, technique: str) -> None:
    short = {"num_train_epochs": 1.0, "max_train_samples": 16, "max_eval_samples": 4, "eval_every": 1.0}
    config = tiny_config(run_folder, technique=technique, trust_remote_code=True, learning_rate=3e-2, **short)
    folder = Store((train(config, _silent).parent,)).inspect("lora-tiny")
    if "target_modules" in folder.config:
        ia3 = ["fc_out"] if technique == "ia3" else []
        assert sorted(folder.config["target_modules"]) == [*ia3, "out_proj", "qkv_proj"]
    if "lora" in technique:
        assert [rule.reason for rule in vllm_checks(folder) if not rule.passed] == []
    target = SmokeTestTarget(str(run_folder / "base"), device="cpu", trust_remote_code=True)
    assert "finite, and different from the base alone" in smoke_test_adapter(folder, target, _silent)
