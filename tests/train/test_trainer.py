"""What goes wrong in the middle of a run, memory or NaN: nothing learned is lost, or changed in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from errors import TrainingError
from tests.serve.tiny import make_base
from tests.train.runs import losses, tiny_config
from train import model as objective
from train.checkpoints import run_directory
from train.run import train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("faults")
    make_base("llama", place / "base")
    return place


def _small_memory(monkeypatch: pytest.MonkeyPatch, rows: int, error: Exception) -> None:
    """A machine whose memory takes `rows` samples at once."""
    causal = objective._causal_loss

    def guarded(model: Any, base: Any, input_ids: torch.Tensor, *rest: Any) -> Any:
        if len(input_ids) > rows:
            raise error
        return causal(model, base, input_ids, *rest)

    monkeypatch.setattr(objective, "_causal_loss", guarded)


def _loss(entry: tuple[Any, ...]) -> float:
    """The training loss of a step, or the validation loss of an evaluation."""
    return float(entry[1] if entry[1] is not None else entry[2])


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
    ],
)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_out_of_memory_halves_the_batch_and_learns_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, accumulation: int
) -> None:
    """In float32 without dropout nothing differs but the order of sums: the effective batch is the same."""
    changes: dict[str, Any] = {"lora_dropout": 0.0, "gradient_accumulation_steps": accumulation, "overwrite": True}
    name = f"memory-{accumulation}"
    whole = train(tiny_config(folder, adapter_name=f"{name}-whole", **changes), lambda _: None)
    _small_memory(monkeypatch, 3, error)
    said: list[str] = []
    halved = train(tiny_config(folder, adapter_name=name, **changes), said.append)
    ours, theirs = losses(halved / "log.jsonl"), losses(whole / "log.jsonl")
    assert len(ours) == len(theirs)
    assert [_loss(our) for our in ours] == pytest.approx([_loss(their) for their in theirs], rel=2e-3)
    assert [line for line in said if "Out of memory" in line] == [
        f"  Out of memory: going on with 4 samples at once; the effective batch stays {8 * accumulation}.",
        f"  Out of memory: going on with 2 samples at once; the effective batch stays {8 * accumulation}.",
    ]


def test_long_batches_are_computed_in_parts_and_learn_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded by tokens, not by rows; a single long row is computed all the same."""
    changes: dict[str, Any] = {"lora_dropout": 0.0, "gradient_accumulation_steps": 2}
    whole = train(tiny_config(folder, adapter_name="whole", **changes), lambda _: None)
    causal, seen = objective._causal_loss, []

    def watched(model: Any, base: Any, input_ids: torch.Tensor, *rest: Any) -> Any:
        seen.append(tuple(input_ids.shape))
        return causal(model, base, input_ids, *rest)

    monkeypatch.setattr(objective, "_causal_loss", watched)
    parts = train(tiny_config(folder, adapter_name="parts", max_tokens_at_once=700, **changes), lambda _: None)
    assert all(rows == 1 or rows * tokens <= 700 for rows, tokens in seen)
    assert max(rows for rows, _ in seen) > 1
    ours, theirs = losses(parts / "log.jsonl"), losses(whole / "log.jsonl")
    assert [_loss(our) for our in ours] == pytest.approx([_loss(their) for their in theirs], rel=2e-3)


def test_a_sample_too_large_for_the_memory_is_said_in_one_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _small_memory(monkeypatch, 0, torch.OutOfMemoryError("CUDA out of memory."))
    with pytest.raises(TrainingError, match="Memory does not suffice for a single sample"):
        train(tiny_config(folder, adapter_name="too-large"), lambda _: None)


def test_other_faults_are_not_taken_for_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _small_memory(monkeypatch, 0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        train(tiny_config(folder, adapter_name="defect"), lambda _: None)


def _spoiled(monkeypatch: pytest.MonkeyPatch, call: int, spoil: Any) -> None:
    """The objective's result goes through `spoil` from the `call`-th training batch on."""
    seen = []
    forward = objective._loss_forward

    def spoiled(model: Any, *rest: Any, **named: Any) -> dict[str, torch.Tensor]:
        answer = forward(model, *rest, **named)
        # The estimate before the run follows a step on tensors without values; that one is not spoiled.
        if not model.training or answer["loss"].is_meta:
            return answer
        seen.append(1)
        return {"loss": spoil(answer["loss"])} if len(seen) >= call else answer

    monkeypatch.setattr(objective, "_loss_forward", spoiled)


class _BadGradient(torch.autograd.Function):
    """A loss that is a number, with a gradient that is none."""

    @staticmethod
    def forward(_: Any, loss: torch.Tensor) -> torch.Tensor:
        return loss.clone()

    @staticmethod
    def backward(_: Any, *gradient: torch.Tensor) -> torch.Tensor:
        return gradient[0] * float("nan")


@pytest.mark.parametrize(
    ("what", "spoil"), [("loss", lambda loss: loss * float("nan")), ("gradient", _BadGradient.apply)]
)
def test_nan_stops_the_run_and_keeps_the_last_good_checkpoint(
    folder: Path, monkeypatch: pytest.MonkeyPatch, what: str, spoil: Any
) -> None:
    config = tiny_config(folder, adapter_name=f"nan-{what}")
    _spoiled(monkeypatch, 4, spoil)
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


def test_nan_before_any_checkpoint_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(folder, adapter_name="nan-first")
    _spoiled(monkeypatch, 1, lambda loss: loss * float("nan"))
    with pytest.raises(TrainingError, match="no checkpoint exists yet"):
        train(config, lambda _: None)
    assert not run_directory(config).folder.exists()
