"""Tests of train/trainer.py: out of memory, batches in parts, and NaN during a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from errors import TrainingError
from tests import messages
from tests.serve.tiny import make_base
from tests.train.runs import losses, tiny_config
from train import model as train_model
from train.config import run_directory
from train.run import train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trainer")
    make_base("llama", folder / "base")
    return folder


@pytest.fixture(scope="module", params=[1, 2])
def reference(request: pytest.FixtureRequest, folder: Path) -> tuple[dict[str, Any], list[float]]:
    """Return settings with an accumulation of 1 or 2, and the losses of a run with complete batches.

    In float32 without dropout, runs that split batches differ only in the order of sums.
    """
    changes = {"lora_dropout": 0.0, "gradient_accumulation_steps": request.param}
    made = train(tiny_config(folder, adapter_name=f"reference-{request.param}", **changes), lambda _: None)
    return changes, [_loss(entry) for entry in losses(made / "log.jsonl")]


def _small_memory(monkeypatch: pytest.MonkeyPatch, rows: int, error: Exception) -> None:
    """Make the loss raise `error` for more than `rows` samples."""
    causal = train_model._causal_loss

    def limited_loss(model: Any, base: Any, input_ids: torch.Tensor, *rest: Any) -> Any:
        if len(input_ids) > rows:
            raise error
        return causal(model, base, input_ids, *rest)

    monkeypatch.setattr(train_model, "_causal_loss", limited_loss)


def _loss(entry: tuple[Any, ...]) -> float:
    """Return the training loss of a step, or the validation loss of an evaluation."""
    return float(entry[1] if entry[1] is not None else entry[2])


def test_out_of_memory_halves_the_batch_without_changing_the_losses(
    folder: Path, reference: tuple[dict[str, Any], list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    changes, expected = reference
    accumulation = changes["gradient_accumulation_steps"]
    error: Exception = torch.OutOfMemoryError("CUDA out of memory.")
    if accumulation == 2:
        error = RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")
    _small_memory(monkeypatch, 3, error)
    progress: list[str] = []
    halved = train(tiny_config(folder, adapter_name=f"memory-{accumulation}", **changes), progress.append)
    assert [_loss(entry) for entry in losses(halved / "log.jsonl")] == pytest.approx(expected, rel=2e-3)
    assert [line for line in progress if "Out of memory" in line] == [
        f"  Out of memory: going on with 4 samples at once; the effective batch stays {8 * accumulation}.",
        f"  Out of memory: going on with 2 samples at once; the effective batch stays {8 * accumulation}.",
    ]


def test_long_batches_are_computed_in_parts_without_changing_the_losses(
    folder: Path, reference: tuple[dict[str, Any], list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is in tokens, not in rows; a single longer row is computed nevertheless."""
    changes, expected = reference
    name = f"parts-{changes['gradient_accumulation_steps']}"
    causal, seen = train_model._causal_loss, []

    def watched(model: Any, base: Any, input_ids: torch.Tensor, *rest: Any) -> Any:
        seen.append(tuple(input_ids.shape))
        return causal(model, base, input_ids, *rest)

    monkeypatch.setattr(train_model, "_causal_loss", watched)
    parts = train(tiny_config(folder, adapter_name=name, max_tokens_at_once=700, **changes), lambda _: None)
    assert all(rows == 1 or rows * tokens <= 700 for rows, tokens in seen)
    assert max(rows for rows, _ in seen) > 1
    assert [_loss(entry) for entry in losses(parts / "log.jsonl")] == pytest.approx(expected, rel=2e-3)


def test_sample_too_large_for_the_memory_raises_a_training_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _small_memory(monkeypatch, 0, torch.OutOfMemoryError("CUDA out of memory."))
    with pytest.raises(TrainingError, match=messages.MEMORY_TOO_SMALL):
        train(tiny_config(folder, adapter_name="too-large"), lambda _: None)


def test_other_errors_are_not_treated_as_out_of_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _small_memory(monkeypatch, 0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match=messages.SHAPES_DO_NOT_FIT):
        train(tiny_config(folder, adapter_name="defect"), lambda _: None)


def _change_loss(monkeypatch: pytest.MonkeyPatch, call: int, change: Any) -> None:
    """Apply `change` to the loss from the `call`-th training batch on."""
    seen = []
    forward = train_model._loss_forward

    def changed_forward(model: Any, *rest: Any, **named: Any) -> dict[str, torch.Tensor]:
        output = forward(model, *rest, **named)
        # The estimate before the run traces a step on the meta device; its loss is not changed.
        if not model.training or output["loss"].is_meta:
            return output
        seen.append(1)
        return {"loss": change(output["loss"])} if len(seen) >= call else output

    monkeypatch.setattr(train_model, "_loss_forward", changed_forward)


class _BadGradient(torch.autograd.Function):
    """A finite loss with a NaN gradient."""

    @staticmethod
    def forward(_: Any, loss: torch.Tensor) -> torch.Tensor:
        return loss.clone()

    @staticmethod
    def backward(_: Any, *gradient: torch.Tensor) -> torch.Tensor:
        return gradient[0] * float("nan")


@pytest.mark.parametrize(
    ("what", "change"), [("loss", lambda loss: loss * float("nan")), ("gradient", _BadGradient.apply)]
)
def test_nan_stops_the_run_and_saves_the_last_good_checkpoint(
    folder: Path, monkeypatch: pytest.MonkeyPatch, what: str, change: Any
) -> None:
    config = tiny_config(folder, adapter_name=f"nan-{what}")
    _change_loss(monkeypatch, 4, change)
    with pytest.raises(TrainingError) as error:
        train(config, lambda _: None)
    assert str(error.value) == (
        f"The {what} is no finite number at step 4, so the run stopped; the checkpoint of step 3 is kept. Start again "
        "with --overwrite and a lower --learning-rate (it was 0.003), "
        "or make an adapter of that checkpoint with --finish."
    )
    assert run_directory(config).last_step() == 3
    monkeypatch.undo()
    from safetensors.torch import load_file

    made = load_file(train(config, lambda _: None, finish=True) / "adapter_model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in made.values())


def test_nan_before_any_checkpoint_leaves_no_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(folder, adapter_name="nan-first")
    _change_loss(monkeypatch, 1, lambda loss: loss * float("nan"))
    with pytest.raises(TrainingError, match=messages.NO_CHECKPOINT_YET):
        train(config, lambda _: None)
    assert not run_directory(config).folder.exists()
