"""Test of accelerate launch: two processes give the result of one process with batches twice as large."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.serve.tiny import make_base
from train.__main__ import main
from train.trainer import read_log

pytestmark = pytest.mark.slow

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a tiny base, and rows of equal length, so that two batches of four equal one batch of eight."""
    folder = tmp_path_factory.mktemp("processes")
    make_base("llama", folder / "base")
    rows = [{"intent": f"print the number {index}", "snippet": f"print({index})"} for index in range(10, 58)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _arguments(folder: Path, name: str, batch: int) -> list[str]:
    return [
        "--adapter-name", name, "--dataset-name", str(folder / "rows.jsonl"), "--technique", "lora",
        "--model-name-or-path", str(folder / "base"), "--output-dir", str(folder / "store"), "--device", "cpu",
        "--lora-dropout", "0", "--learning-rate", "1e-3", "--num-train-epochs", "1", "--eval-every", "0.5",
        "--validation-split", "0.34", "--per-device-train-batch-size", str(batch),
        # Rows have 61 tokens, so a batch is computed in two parts.
        "--max-tokens-at-once", str(50 * batch),
    ]  # fmt: skip


def test_two_processes_give_the_losses_and_weights_of_one(folder: Path) -> None:
    assert main(_arguments(folder, "one", 8)) == 0
    launch = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
        "-m", "train",
    ]  # fmt: skip
    # accelerate starts several CPU processes itself only through MPI; its launcher for GPUs is the same for both.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    ran = subprocess.run(
        [*launch, *_arguments(folder, "two", 4)],
        capture_output=True, text=True, timeout=300, env=environment, cwd=Path(__file__).parents[2], check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert ran.stdout.count("The adapter is ready") == 1, "only the main process reports"
    one, two = (read_log(folder / "store" / name / "log.jsonl") for name in ("one", "two"))
    assert [entry["step"] for entry in two] == [entry["step"] for entry in one]
    for field in ("loss", "eval_loss"):
        ours, theirs = ([entry[field] for entry in log if field in entry] for log in (two, one))
        assert ours == pytest.approx(theirs, rel=5e-3)
    first, second = (load_file(folder / "store" / name / WEIGHTS) for name in ("one", "two"))
    similarities = [
        torch.nn.functional.cosine_similarity(first[key].flatten().float(), second[key].flatten().float(), 0)
        for key in first
        if "lora_B" in key
    ]
    # B starts at zero, so its direction is that of the gradients, which would differ with half of the batch.
    assert min(similarities) > 0.98
    assert sorted(path.name for path in (folder / "store").iterdir()) == ["one", "two"]
