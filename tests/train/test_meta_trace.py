"""A step on shapes alone, against the same step on real tensors: what torch keeps, what it computes, what it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from models.loader import load_base
from tests.serve.tiny import make_base
from train.config import TrainConfig
from train.meta_trace import BatchShape, StepCost, meta_model, quantizable_layers, trace_step
from train.model import build_peft_model
from train.settings import make_config
from train.tokenize import IGNORE_INDEX

LONG = BatchShape(rows=4, max_length=48, label_tokens=40, max_response_length=24)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("bases")
    for kind in ("llama", "codegen", "t5"):
        make_base(kind, place / kind)
    return place


def _config(technique: str, **changes: Any) -> TrainConfig:
    values = {"adapter_name": "x", "dataset_name": "starter", "technique": technique, "device": "cpu"}
    if "qlora" not in technique:
        values["quantization"] = "none"
    return make_config(values, virtual_tokens_init="random", **changes)


def _dtype(config: TrainConfig) -> torch.dtype:
    return torch.float32 if config.technique == "full" else torch.bfloat16


def _traced(folder: Path, config: TrainConfig, batch: BatchShape = LONG) -> StepCost:
    return trace_step(config, meta_model(folder, _dtype(config)), batch)


def _batch(batch: BatchShape, is_encoder_decoder: bool) -> dict[str, torch.Tensor]:
    """Real ids; the first row is shorter, as in every real batch, so that a mask is there."""
    ids = torch.randint(3, 250, (batch.rows, batch.max_length))
    mask = torch.ones_like(ids)
    mask[0, -1] = 0
    labels = torch.full(
        (batch.rows, batch.max_response_length if is_encoder_decoder else batch.max_length), IGNORE_INDEX
    )
    labels[:, -batch.label_tokens // batch.rows :] = 7
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def _really(folder: Path, config: TrainConfig) -> tuple[int, int, int]:
    """Bytes that autograd keeps until the logits are made, operations of a step, and trained parameters."""
    loaded = load_base(str(folder), config.quantization, "cpu", lambda _: None, training=True, dtype=_dtype(config))
    model = build_peft_model(config, loaded, ()).train()
    own = {each.untyped_storage().data_ptr() for each in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}
    marks: list[int] = []
    base = loaded.model
    base.get_output_embeddings().register_forward_pre_hook(
        lambda *_: marks.append(sum(each.nbytes() for each in kept.values()))
    )

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    batch = _batch(LONG, base.config.is_encoder_decoder)
    with FlopCounterMode(display=False) as flops:
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=config.technique == "full"),
        ):
            loss = model(**batch, num_items_in_batch=1)["loss"]
        loss.backward()
    trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
    return marks[0], flops.get_total_flops(), trained


@pytest.mark.parametrize("technique", ["lora", "ia3", "prompt-tuning", "prefix-tuning", "full"])
@pytest.mark.parametrize("kind", ["llama", "codegen", "t5"])
def test_shapes_alone_count_as_real_tensors_do(kind: str, technique: str, bases: Path) -> None:
    """Autograd's own record of what it keeps is the oracle; what else is alive, such as a cache, is little."""
    config = _config(technique)
    traced = _traced(bases / kind, config)
    kept, flops, trained = _really(bases / kind, config)
    assert traced.trainable_parameters == trained
    assert 0.88 * kept < traced.activation_bytes < 1.2 * kept
    assert traced.flops == pytest.approx(flops, rel=0.1)


def test_longer_batches_keep_more_and_checkpointing_keeps_less(bases: Path) -> None:
    config = _config("lora")
    short, long = (
        _traced(bases / "llama", config, BatchShape(4, tokens, 40)).activation_bytes
        for tokens in (LONG.max_length, 2 * LONG.max_length)
    )
    assert long == pytest.approx(2 * short, rel=0.02)
    spared = _traced(bases / "llama", _config("lora", gradient_checkpointing=True))
    whole = _traced(bases / "llama", config)
    assert spared.activation_bytes < 0.2 * whole.activation_bytes
    assert spared.peak_bytes < 0.8 * whole.peak_bytes
    assert spared.flops > 1.2 * whole.flops


@pytest.mark.parametrize("technique", ["qlora-4bit", "qlora-8bit", "full"])
def test_a_layer_that_is_computed_again_is_computed_alike(technique: str, bases: Path) -> None:
    """Checkpointing compares what it computes with what it computed; products that stand in must stand in twice."""
    spared, whole = (
        _traced(bases / "llama", _config(technique, gradient_checkpointing=on)).activation_bytes for on in (True, False)
    )
    # int8 keeps the inputs of its products even then, as attributes that checkpointing cannot drop.
    assert 0 < spared < (0.3 if technique == "qlora-8bit" else 0.2) * whole


def test_adamw_keeps_two_numbers_a_parameter_and_adafactor_a_row_and_a_column(bases: Path) -> None:
    adamw = _traced(bases / "llama", _config("lora", optim="adamw_torch"))
    assert adamw.optimizer_state_bytes == pytest.approx(8 * adamw.trainable_parameters, rel=0.01)
    adafactor = _traced(bases / "llama", _config("lora"))
    assert 0 < adafactor.optimizer_state_bytes < 0.4 * adamw.optimizer_state_bytes


def test_int8_keeps_the_inputs_of_its_products_and_nf4_unpacks_them_for_a_moment(bases: Path) -> None:
    plain, nf4, int8 = (_traced(bases / "llama", _config(name)) for name in ("lora", "qlora-4bit", "qlora-8bit"))
    assert nf4.activation_bytes == plain.activation_bytes
    assert int8.activation_bytes > 1.05 * plain.activation_bytes
    assert plain.flops == nf4.flops == int8.flops


def test_the_layer_that_makes_the_logits_is_not_quantized(bases: Path) -> None:
    model = meta_model(bases / "llama", torch.bfloat16)
    assert {each.weight.device.type for each in model.modules() if hasattr(each, "weight")} == {"meta"}
    # Two layers of seven products each.
    assert len(quantizable_layers(model)) == 14
