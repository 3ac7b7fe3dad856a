"""The archive is complete, and the commands to copy give exactly the settings of the form in a real shell."""

from __future__ import annotations

import ast
import fnmatch
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from huggingface_hub.cli.hf import app

from errors import PromptOrTuneError
from jobs.hf_jobs.submit import PROGRAM_PATTERNS, PROJECT_ROOT, build_archive, manual_commands
from jobs.job import Job, ServingOptions
from tests import messages
from train.settings import make_config, parse_args

EVIL = "'; touch owned; echo \"$(id)`id`\n\\ #.csv"
# Fake python and hf that record their arguments; hf also prints the name of the logged-in user.
RECORDER = """#!{python}
import json, os, sys
with open(os.environ["CALLS"], "a") as file:
    file.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
if sys.argv[1:3] == ["auth", "whoami"]:
    print("someone")
"""


def run(command: str, folder: Path, **variables: str) -> list[list[str]]:
    """Run the command in a POSIX shell; return its calls of `python`, `hf`, `pip` and `cp`."""
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    for name in ("python", "hf", "pip", "cp"):
        (programs / name).write_text(RECORDER.format(python=sys.executable))
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
def test_command_is_parsed_to_the_same_settings(config: dict[str, Any], tmp_path: Path) -> None:
    (_, command), _ = manual_commands(config, ServingOptions(), "my.csv")
    (called,) = run(command, tmp_path)
    assert called[:3] == ["python", "-m", "train"]
    assert parse_args(called[3:], "")[0] == make_config({"model_name_or_path": "embedded", **config})


def test_command_contains_only_changed_settings() -> None:
    (_, command), _ = manual_commands(
        {"adapter_name": "a", "dataset_name": "my.csv", "lora_r": 16, "seed": 42}, ServingOptions()
    )
    assert command.split() == ["python", "-m", "train", "\\", "--adapter-name", "a", "\\", "--dataset-name", "my.csv"]


def test_command_contains_the_served_base() -> None:
    serving = ServingOptions(base="Qwen/Qwen2.5-Coder-0.5B@" + "a" * 40)
    (_, command), _ = manual_commands({"adapter_name": "a", "dataset_name": "my.csv"}, serving)
    assert f"--model-name-or-path {serving.base}" in command


def test_commands_contain_no_local_folder(tmp_path: Path) -> None:
    (tmp_path / "my.csv").write_text("intent,snippet\na,b\n")
    config = {
        "adapter_name": "a", "dataset_name": str(tmp_path / "my.csv"), "data_dir": str(tmp_path),
        "output_dir": str(tmp_path), "model_name_or_path": str(tmp_path),
    }  # fmt: skip
    assert str(tmp_path) not in "".join(command for _, command in manual_commands(config, ServingOptions()))


@pytest.mark.parametrize("name", [EVIL, "-rf.csv", "a b.csv", "$HOME.csv", "*.csv", "[x].csv"])
def test_file_name_is_one_argument_after_both_shells(name: str, tmp_path: Path) -> None:
    config = {"adapter_name": "lora-mine", "dataset_name": "/uploads/of/somebody/rows.csv"}
    (_, local_command), (_, jobs_command) = manual_commands(config, ServingOptions(), name)
    (called,) = run(local_command, tmp_path)
    assert parse_args(called[3:], "")[0].dataset_name == name
    whoami, upload, start_command = run(jobs_command, tmp_path)
    assert whoami == ["hf", "auth", "whoami", "-q"]
    assert upload[:5] == ["hf", "upload", "someone/prompt-or-tune-jobs", ".", "."]
    image = start_command.index("python:3.11")
    assert start_command[image + 1 : image + 3] == ["bash", "-c"]
    script = start_command[image + 3].replace("cd /tmp/run", "true")
    *_, trained = run(script, tmp_path, HF_USER="someone")
    remote_config = parse_args(trained[3:], "")[0]
    assert remote_config.dataset_name == name
    assert (remote_config.hub_model_id, remote_config.hub_private_repo) == ("someone/lora-mine", True)
    assert not (tmp_path / "owned").exists()


def test_hf_accepts_the_options_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, (_, command) = manual_commands(
        {"adapter_name": "a", "dataset_name": "my.csv"}, ServingOptions(), "my.csv", "t4-small"
    )
    _, upload, start_command = run(command, tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    dry_run = CliRunner().invoke(app, [*start_command[1:3], "--dry-run", *start_command[3:]])
    assert dry_run.exit_code == 0, dry_run.output
    assert "t4-small" in dry_run.output
    help_page = CliRunner().invoke(app, [*upload[1:], "--help"])
    assert help_page.exit_code == 0, help_page.output


def test_invalid_settings_are_refused() -> None:
    with pytest.raises(PromptOrTuneError, match=messages.LEARNING_RATE_INVALID):
        manual_commands({"adapter_name": "a", "dataset_name": "my.csv", "learning_rate": 0}, ServingOptions())


def program_imports() -> set[str]:
    """Return the project files that `python -m train` and train.run import, also inside functions."""
    files, modules = set[str](), ["train.__main__", "train.run"]
    while modules:
        path = PROJECT_ROOT.joinpath(*modules.pop().split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        name = path.relative_to(PROJECT_ROOT).as_posix()
        if name in files or not path.is_file():
            continue
        files.add(name)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                parts = node.module.split(".")
                modules += [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
                modules += [f"{node.module}.{alias.name}" for alias in node.names]
    return files


def test_manual_upload_contains_every_import_of_train() -> None:
    imports = program_imports()
    assert {"errors.py", "common/files.py", "models/loader.py", "train/run.py"} <= imports
    assert [name for name in imports if not any(fnmatch.fnmatch(name, pattern) for pattern in PROGRAM_PATTERNS)] == []


def test_archive_is_sufficient_to_train(tmp_path: Path) -> None:
    config = {"adapter_name": "lora-mine", "dataset_name": "starter"}
    job = Job("20300101-120000-000000-abc123", "lora-mine", config, ServingOptions(), "starter", where="hub")
    with tarfile.open(fileobj=io.BytesIO(build_archive(job, "someone/lora-mine"))) as archive:
        assert program_imports() <= set(archive.getnames())
        archive.extractall(tmp_path, filter="data")
    script = (
        "import runpy, sys, train.run\n"
        "assert train.run.__file__.startswith(sys.path[0]), train.run.__file__\n"
        "sys.argv = ['train', '--help']\n"
        "runpy.run_module('train', run_name='__main__')\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    (tmp_path / "check.py").write_text(script, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(tmp_path / "check.py")], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "--adapter-name" in done.stdout
