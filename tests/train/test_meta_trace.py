"""Tests of train/meta_trace.py: a traced step against the same step on real tensors."""

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

pytestmark = pytest.mark.slow

LONG = BatchShape(rows=4, max_length=48, label_tokens=40, max_response_length=24)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases")
    for kind in ("llama", "codegen", "t5"):
        make_base(kind, folder / kind)
    return folder


def _config(technique: str, **changes: Any) -> TrainConfig:
    values = {"adapter_name": "x", "dataset_name": "starter", "technique": technique, "device": "cpu"}
    if "qlora" not in technique:
        values["quantization"] = "none"
    return make_config(values, virtual_tokens_init="random", **changes)


def _dtype(config: TrainConfig) -> torch.dtype:
    return torch.float32 if config.technique == "full" else torch.bfloat16


def _traced(folder: Path, config: TrainConfig, batch: BatchShape = LONG, device: str = "cpu") -> StepCost:
    return trace_step(config, meta_model(folder, _dtype(config)), batch, device)


def _batch(batch: BatchShape, is_encoder_decoder: bool) -> dict[str, torch.Tensor]:
    """Make a batch of real ids; the first row is shorter, so that the mask matters."""
    ids = torch.randint(3, 250, (batch.rows, batch.max_length))
    mask = torch.ones_like(ids)
    mask[0, -1] = 0
    labels = torch.full(
        (batch.rows, batch.max_response_length if is_encoder_decoder else batch.max_length), IGNORE_INDEX
    )
    labels[:, -batch.label_tokens // batch.rows :] = 7
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def _measured(folder: Path, config: TrainConfig) -> tuple[int, int, int]:
    """Measure the bytes that autograd saves before the logits, operations of a step, and trainable parameters."""
    loaded = load_base(str(folder), config.quantization, "cpu", lambda _: None, training=True, dtype=_dtype(config))
    model = build_peft_model(config, loaded, ()).train()
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    saved: dict[int, torch.UntypedStorage] = {}
    before_logits: list[int] = []
    base = loaded.model
    base.get_output_embeddings().register_forward_pre_hook(
        lambda *_: before_logits.append(sum(storage.nbytes() for storage in saved.values()))
    )

    def save(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage
        return tensor

    batch = _batch(LONG, base.config.is_encoder_decoder)
    with FlopCounterMode(display=False) as flops:
        with (
            torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=config.technique == "full"),
        ):
            loss = model(**batch, num_items_in_batch=1)["loss"]
        loss.backward()
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return before_logits[0], flops.get_total_flops(), trainable


@pytest.mark.parametrize("technique", ["lora", "ia3", "prompt-tuning", "prefix-tuning", "full"])
@pytest.mark.parametrize("kind", ["llama", "codegen", "t5"])
def test_traced_step_agrees_with_a_real_step(kind: str, technique: str, bases: Path) -> None:
    """The reference is the set of tensors that autograd saves; other live tensors, such as a cache, are small."""
    config = _config(technique)
    traced = _traced(bases / kind, config)
    saved, flops, trainable = _measured(bases / kind, config)
    assert traced.trainable_parameters == trainable
    assert 0.88 * saved < traced.activation_bytes < 1.2 * saved
    assert traced.flops == pytest.approx(flops, rel=0.1)


def test_cuda_dropout_saves_one_byte_per_number(bases: Path) -> None:
    """LoRA's dropout on 32-bit inputs saves its output, and another 4 bytes per number on a CPU or 1 byte on CUDA."""
    config = _config("lora")
    cpu, cuda = (_traced(bases / "llama", config, device=device).activation_bytes for device in ("cpu", "cuda"))
    model = meta_model(bases / "llama", torch.bfloat16)
    targets = ("q_proj", "k_proj", "v_proj", "o_proj")
    layers = {name: module for name, module in model.named_modules() if name.endswith(targets)}
    # The input of the first layer needs no gradient, so dropout saves nothing there.
    first = "layers.0.self_attn."
    inputs = sum(m.in_features for name, m in layers.items() if first not in name or name.endswith("o_proj"))
    assert cpu - cuda == 3 * LONG.rows * LONG.max_length * inputs


def test_longer_batches_save_more_and_checkpointing_saves_less(bases: Path) -> None:
    config = _config("lora")
    short, long = (
        _traced(bases / "llama", config, BatchShape(4, tokens, 40)).activation_bytes
        for tokens in (LONG.max_length, 2 * LONG.max_length)
    )
    assert long == pytest.approx(2 * short, rel=0.02)
    checkpointed = _traced(bases / "llama", _config("lora", gradient_checkpointing=True))
    plain = _traced(bases / "llama", config)
    assert checkpointed.activation_bytes < 0.2 * plain.activation_bytes
    assert checkpointed.peak_bytes < 0.8 * plain.peak_bytes
    assert checkpointed.flops > 1.2 * plain.flops


@pytest.mark.parametrize("technique", ["qlora-4bit", "qlora-8bit", "full"])
def test_checkpointed_layers_are_recomputed_with_the_same_replacements(technique: str, bases: Path) -> None:
    """Checkpointing checks that recomputed tensors have the shapes and dtypes of the forward pass."""
    checkpointed, plain = (
        _traced(bases / "llama", _config(technique, gradient_checkpointing=on)).activation_bytes for on in (True, False)
    )
    # int8 saves the inputs of its products even then, as attributes that checkpointing does not drop.
    assert 0 < checkpointed < (0.3 if technique == "qlora-8bit" else 0.2) * plain


def test_adamw_has_two_numbers_per_parameter_and_adafactor_a_row_and_a_column(bases: Path) -> None:
    adamw = _traced(bases / "llama", _config("lora", optim="adamw_torch"))
    assert adamw.optimizer_state_bytes == pytest.approx(8 * adamw.trainable_parameters, rel=0.01)
    adafactor = _traced(bases / "llama", _config("lora"))
    assert 0 < adafactor.optimizer_state_bytes < 0.4 * adamw.optimizer_state_bytes


def test_int8_saves_the_inputs_of_its_products_and_nf4_does_not(bases: Path) -> None:
    plain, nf4, int8 = (_traced(bases / "llama", _config(name)) for name in ("lora", "qlora-4bit", "qlora-8bit"))
    assert nf4.activation_bytes == plain.activation_bytes
    assert int8.activation_bytes > 1.05 * plain.activation_bytes
    assert plain.flops == nf4.flops == int8.flops


def test_output_layer_is_not_quantized(bases: Path) -> None:
    model = meta_model(bases / "llama", torch.bfloat16)
    assert {module.weight.device.type for module in model.modules() if hasattr(module, "weight")} == {"meta"}
    # Two layers of seven products each.
    assert len(quantizable_layers(model)) == 14
