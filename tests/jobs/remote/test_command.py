"""The commands to copy mean exactly the settings of the form, whatever stands in them, in a real shell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from huggingface_hub.cli.hf import app

from errors import PromptOrTuneError
from jobs.hf_jobs.submit import manual_commands
from jobs.job import ServingOptions
from train.settings import make_config, parse_args

EVIL = "'; touch owned; echo \"$(id)`id`\n\\ #.csv"
# A stand-in for python and hf that keeps how it was called and, as hf, says who is logged in.
KEEPER = """#!{python}
import json, os, sys
with open(os.environ["CALLS"], "a") as file:
    file.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
if sys.argv[1:3] == ["auth", "whoami"]:
    print("someone")
"""


def run(command: str, folder: Path, **variables: str) -> list[list[str]]:
    """How `python`, `hf`, `pip` and `cp` are called when the command is run in a POSIX shell."""
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    for name in ("python", "hf", "pip", "cp"):
        (programs / name).write_text(KEEPER.format(python=sys.executable))
        (programs / name).chmod(0o755)
    calls = folder / "calls"
    calls.write_text("")
    environment = {"PATH": f"{programs}{os.pathsep}/usr/bin:/bin", "CALLS": str(calls), **variables}
    done = subprocess.run(["sh", "-c", command], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in calls.read_text().splitlines()]


CONFIGS: list[dict[str, Any]] = [
    {"adapter_name": "lora-mine", "dataset_name": "my.csv"},
    {"adapter_name": "q", "dataset_name": "my.csv", "technique": "qlora-4bit", "num_train_epochs": 3.5, "lora_r": 4},
    {"adapter_name": "p", "dataset_name": "my.csv", "technique": "lora", "preset": "paper", "max_train_samples": 7},
    {"adapter_name": "t", "dataset_name": "my.csv", "lora_target_modules": ["q_proj", "v_proj"], "use_rslora": True},
    {"adapter_name": "c", "dataset_name": "my.csv", "intent_column": "-what", "code_column": "a 'b' \"c\" $d"},
    {"adapter_name": "b", "dataset_name": "my.csv", "model_name_or_path": "Qwen/Qwen2.5-Coder-0.5B", "seed": 3},
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config["adapter_name"])
def test_the_command_is_read_back_as_the_same_settings(config: dict[str, Any], tmp_path: Path) -> None:
    (_, command), _ = manual_commands(config, ServingOptions(), "my.csv")
    (called,) = run(command, tmp_path)
    assert called[:3] == ["python", "-m", "train"]
    assert parse_args(called[3:], "")[0] == make_config({"model_name_or_path": "embedded", **config})


def test_only_what_differs_from_the_defaults_is_said() -> None:
    (_, command), _ = manual_commands(
        {"adapter_name": "a", "dataset_name": "my.csv", "lora_r": 16, "seed": 42}, ServingOptions()
    )
    assert command.split() == ["python", "-m", "train", "\\", "--adapter-name", "a", "\\", "--dataset-name", "my.csv"]


def test_the_base_that_is_served_is_the_one_to_train_for() -> None:
    serving = ServingOptions(base="Qwen/Qwen2.5-Coder-0.5B@" + "a" * 40)
    (_, command), _ = manual_commands({"adapter_name": "a", "dataset_name": "my.csv"}, serving)
    assert f"--model-name-or-path {serving.base}" in command


def test_no_folder_of_this_machine_is_named(tmp_path: Path) -> None:
    (tmp_path / "my.csv").write_text("intent,snippet\na,b\n")
    config = {
        "adapter_name": "a", "dataset_name": str(tmp_path / "my.csv"), "data_dir": str(tmp_path),
        "output_dir": str(tmp_path), "model_name_or_path": str(tmp_path),
    }  # fmt: skip
    assert str(tmp_path) not in "".join(command for _, command in manual_commands(config, ServingOptions()))


@pytest.mark.parametrize("name", [EVIL, "-rf.csv", "a b.csv", "$HOME.csv", "*.csv", "[x].csv"])
def test_a_file_name_stays_one_word_through_both_shells(name: str, tmp_path: Path) -> None:
    config = {"adapter_name": "lora-mine", "dataset_name": "/uploads/of/somebody/rows.csv"}
    (_, here), (_, jobs) = manual_commands(config, ServingOptions(), name)
    (called,) = run(here, tmp_path)
    assert parse_args(called[3:], "")[0].dataset_name == name
    whoami, upload, begun = run(jobs, tmp_path)
    assert whoami == ["hf", "auth", "whoami", "-q"]
    assert upload[:5] == ["hf", "upload", "someone/prompt-or-tune-jobs", ".", "."]
    image = begun.index("python:3.11")
    assert begun[image + 1 : image + 3] == ["bash", "-c"]
    script = begun[image + 3].replace("cd /tmp/run", "true")
    *_, trained = run(script, tmp_path, HF_USER="someone")
    config_there = parse_args(trained[3:], "")[0]
    assert config_there.dataset_name == name
    assert (config_there.hub_model_id, config_there.hub_private_repo) == ("someone/lora-mine", True)
    assert not (tmp_path / "owned").exists()


def test_the_flags_are_those_that_hf_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, (_, command) = manual_commands(
        {"adapter_name": "a", "dataset_name": "my.csv"}, ServingOptions(), "my.csv", "t4-small"
    )
    _, upload, begun = run(command, tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    told = CliRunner().invoke(app, [*begun[1:3], "--dry-run", *begun[3:]])
    assert told.exit_code == 0, told.output
    assert "t4-small" in told.output
    asked = CliRunner().invoke(app, [*upload[1:], "--help"])
    assert asked.exit_code == 0, asked.output


def test_settings_that_cannot_train_are_said_and_give_no_command() -> None:
    with pytest.raises(PromptOrTuneError, match="learning_rate must be above 0"):
        manual_commands({"adapter_name": "a", "dataset_name": "my.csv", "learning_rate": 0}, ServingOptions())
