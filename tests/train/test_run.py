"""Tests of a complete training run on a tiny base, from the data set to an adapter that the backend loads."""

from __future__ import annotations

import json
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch

from adapters.store import Store
from errors import TrainingError
from models.loader import load_base
from serve.backends.local.backend import LocalBackend
from serve.types import Row, RowOutput, SamplingParams
from tasks.prompt import STYLES, render_prompt
from tests import messages
from tests.serve.tiny import make_base
from tests.train.runs import losses, tiny_config
from train.__main__ import main
from train.run import train
from train.trainer import read_log

pytestmark = pytest.mark.slow

FINGERPRINTS = {name: style.fingerprint for name, style in STYLES.items()}
FILES = ["README.md", "adapter_config.json", "adapter_model.safetensors", "config.yaml", "log.jsonl", "loss.png",
         "manifest.json"]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    make_base("llama", folder / "base")
    return folder


@pytest.fixture(scope="module")
def trained(folder: Path) -> tuple[Path, list[str]]:
    lines: list[str] = []
    return train(tiny_config(folder), lines.append), lines


def test_adapter_opens_in_the_store_and_changes_answers(folder: Path, trained: tuple[Path, list[str]]) -> None:
    backend = LocalBackend(load_base(str(folder / "base"), "none", "cpu", lambda _: None, dtype=torch.float32))
    adapter = Store((folder / "store",), fingerprints=FINGERPRINTS).open("lora-tiny", backend.base)
    assert sorted(path.name for path in trained[0].iterdir()) == FILES
    backend.load_adapter(adapter)
    prompt = render_prompt("sort a list", (), STYLES["plain"])
    rows = [Row(prompt, STYLES["plain"]), Row(prompt, STYLES["plain"], "lora-tiny")]
    events = backend.generate(rows, SamplingParams(max_new_tokens=8), Event())
    logprobs = {event.index: event.candidates[0].logprob for event in events if isinstance(event, RowOutput)}
    assert logprobs[0] != logprobs[1]


def test_manifest_describes_the_run(folder: Path, trained: tuple[Path, list[str]]) -> None:
    manifest = json.loads((trained[0] / "manifest.json").read_text())
    assert manifest["prompt_fingerprint"] == STYLES["plain"].fingerprint
    assert manifest["config"]["target_modules"] == ["k_proj", "o_proj", "q_proj", "v_proj"]
    assert manifest["config"]["n_train"] == 24
    assert manifest["config"]["trainable_parameters"] == 14336
    assert manifest["config"]["train_tokens"] == read_log(trained[0] / "log.jsonl")[-1]["tokens"]
    assert str(folder) not in json.dumps(manifest), "the manifest has no path of this machine"
    eval_losses = [entry["eval_loss"] for entry in manifest["log"]]
    assert len(eval_losses) == 6
    assert min(eval_losses) < eval_losses[0], "nothing was learned"
    best = {"metric": "validation loss", "value": min(eval_losses), "n": 6, "dataset": "starter"}
    assert manifest["scores"] == [pytest.approx(best)]


def test_log_contains_every_step(trained: tuple[Path, list[str]]) -> None:
    log = read_log(trained[0] / "log.jsonl")
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 2, 3, 4, 5, 6]
    step = next(entry for entry in log if "loss" in entry)
    fields = {"step", "epoch", "loss", "learning_rate", "grad_norm", "tokens", "tokens_per_second", "seconds",
              "memory_bytes"}  # fmt: skip
    assert step.keys() == fields
    assert step["memory_bytes"] > 50e6


def test_learning_rate_warms_up_and_falls_linearly(folder: Path) -> None:
    made = train(tiny_config(folder, adapter_name="rates", warmup_ratio=0.34), lambda _: None)
    rates = [entry["learning_rate"] for entry in read_log(made / "log.jsonl") if "loss" in entry]
    # ceil(0.34 * 6) = 3 of the 6 steps are warm-up; the logged rate is that of its step.
    assert rates == pytest.approx([0.0, 1e-3, 2e-3, 3e-3, 2e-3, 1e-3])


def test_progress_is_reported(trained: tuple[Path, list[str]]) -> None:
    assert any("validation loss" in line and "left" in line for line in trained[1])
    assert any(line.startswith("24 training samples") for line in trained[1])


def test_training_is_reproducible_with_the_same_seed(folder: Path, trained: tuple[Path, list[str]]) -> None:
    again = train(tiny_config(folder, output_dir=folder / "again"), lambda _: None)
    for name in ("adapter_model.safetensors", "adapter_config.json", "config.yaml"):
        assert (again / name).read_bytes() == (trained[0] / name).read_bytes()


def test_early_stopping_ends_the_run(folder: Path) -> None:
    """With a too high learning rate the validation loss rises immediately; the run ends two evaluations later."""
    config = tiny_config(folder, adapter_name="early", learning_rate=3.0, early_stopping_patience=2, num_train_epochs=9)
    log = read_log(train(config, lambda _: None) / "log.jsonl")
    eval_losses = [entry["eval_loss"] for entry in log if "eval_loss" in entry]
    assert len(eval_losses) < 27
    assert eval_losses.index(min(eval_losses)) == len(eval_losses) - 3


def test_existing_adapter_is_not_overwritten(folder: Path, trained: tuple[Path, list[str]]) -> None:
    with pytest.raises(TrainingError, match=messages.OVERWRITE_FLAG):
        train(tiny_config(folder), lambda _: None)
    assert trained[0].is_dir()


def test_run_that_cannot_start_leaves_no_files(folder: Path) -> None:
    with pytest.raises(TrainingError, match=messages.FEWER_THAN_ONE_BATCH):
        train(tiny_config(folder, adapter_name="lora-few", max_train_samples=3), lambda _: None)
    assert not list((folder / "store").glob("*lora-few*"))


def test_command_trains_from_a_yaml_file_and_a_table(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"question": f"print the number {index}", "answer": f"print({index})"} for index in range(30)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n")
    (tmp_path / "run.yaml").write_text(
        f"technique: ia3\nmodel_name_or_path: {folder / 'base'}\ndataset_name: {tmp_path / 'mine.jsonl'}\n"
        f"adapter_name: ia3-mine\noutput_dir: {tmp_path}\nnum_train_epochs: 1\ndevice: cpu\nquantization: none\n"
    )
    assert main([str(tmp_path / "run.yaml"), "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert "IA3 on base" in output
    assert "«print(" in output
    assert "line 31" in output
    assert not (tmp_path / "ia3-mine").exists()
    assert main([str(tmp_path / "run.yaml")]) == 0
    output = capsys.readouterr().out
    assert "1 rows cannot be read and are left out" in output
    assert f"The adapter is ready in {tmp_path / 'ia3-mine'}." in output
    assert json.loads((tmp_path / "ia3-mine" / "manifest.json").read_text())["dataset"] == "mine.jsonl"


def test_gradient_checkpointing_does_not_change_losses_and_adamw_does(folder: Path) -> None:
    """Gradient checkpointing does not change the losses; AdamW does, after the first step."""
    changes: dict[str, Any] = {"lora_dropout": 0.0, "num_train_epochs": 1}
    plain, checkpointed, adamw = (
        losses(train(tiny_config(folder, adapter_name=name, **changes, **option), lambda _: None) / "log.jsonl")
        for name, option in (
            ("plain", {}),
            ("checkpointed", {"gradient_checkpointing": True}),
            ("adamw", {"optim": "adamw_torch"}),
        )
    )
    assert checkpointed == plain
    assert adamw[0] == plain[0]
    assert adamw[-1] != plain[-1]
