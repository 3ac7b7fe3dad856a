"""One training step on tensors that have a shape and no memory: what it keeps, what it peaks at, what it computes.

Torch's "meta" device runs the model's real code, PEFT's real layers and the real loss, so every technique on every
architecture is counted as it is, before a weight is loaded; a base of 34B takes seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from adapters.manifest import BaseIdentity
from serve.backends.local.loading import LoadedBase
from train.config import TrainConfig
from train.encode import IGNORE_INDEX
from train.fit import build_peft_model
from train.shapes import META_ATTENTION, AllocationTracker, MetaMode, register_meta_attention


@dataclass(frozen=True)
class BatchShape:
    """The sizes of a batch: rows, the tokens of the longest prompt with its response, learned tokens of all rows.

    For encoder-decoder bases `longest` is the longest prompt and `longest_response` the longest response.
    """

    rows: int
    max_length: int
    label_tokens: int
    max_response_length: int = 0


@dataclass(frozen=True)
class StepCost:
    """Bytes, parameters and floating-point operations of one step.

    `kept_bytes` are alive when the logits are about to be made: what the backward pass will need. `peak_bytes` is the
    most that is alive at once, with logits, gradients and the optimizer's `state_bytes`. Neither counts parameters.
    """

    activation_bytes: int
    peak_bytes: int
    optimizer_state_bytes: int
    flops: int
    trainable_parameters: int
    trainable_bytes: int


def meta_model(folder: Any, dtype: torch.dtype, trust_remote_code: bool = False) -> Any:
    """The model that the folder's (or a configuration object's) config.json describes, without its weights."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedConfig

    known = isinstance(folder, PreTrainedConfig)
    config = folder if known else AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    family = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        model = family.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
    register_meta_attention()
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = META_ATTENTION
    return model


def trace_step(config: TrainConfig, base: Any, batch: BatchShape) -> StepCost:
    """Counts the second step of a run, as the first one makes the optimizer's state; wraps and changes `base`.

    Raises whatever a base's own code raises on tensors without values.
    """
    shapes = {name: (m.out_features, m.in_features) for name, m in base.named_modules() if hasattr(m, "out_features")}
    frozen = {id(each.weight) for each in quantizable_layers(base)} if config.quantization != "none" else set()
    identity = BaseIdentity(
        *("", "", type(base).__name__, "none", "meta", 0, False), base.config.is_encoder_decoder, shapes=shapes
    )
    loaded = LoadedBase(base, None, identity)  # nothing here is text
    with torch.device("meta"):
        # The start values of virtual tokens are values, and only shapes count.
        model = build_peft_model(replace(config, virtual_tokens_init="random"), loaded, ()).train()
    trained = [each for each in model.parameters() if each.requires_grad]
    optimizer = _build_optimizer(config.optim, trained)
    live, shapes_only = AllocationTracker(), MetaMode(config, batch.label_tokens, frozen)
    if config.gradient_checkpointing:
        # Torch leaves such modes behind during a backward pass, and layers are computed again in there.
        again = {"context_fn": lambda: (nullcontext(), shapes_only)}
        base.gradient_checkpointing_enable({"use_reentrant": False, **again})
    live.ignore([*model.parameters(), *model.buffers()])
    marks: list[int] = []
    base.get_output_embeddings().register_forward_pre_hook(lambda *_: marks.append(live.current_bytes))

    def step() -> None:
        with torch.device("meta"), shapes_only:
            loss = model(**_meta_inputs(base, batch), num_items_in_batch=1)["loss"]
            shapes_only.end_forward()
            loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, config.max_grad_norm, foreach=False)
        optimizer.step()
        optimizer.zero_grad()

    flops = FlopCounterMode(display=False)
    with live:
        with flops:  # which keeps more alive than there is without it
            step()
        state = live.reset_peak()
        step()
    return StepCost(
        activation_bytes=marks[1] - state,
        peak_bytes=live.peak_bytes,
        optimizer_state_bytes=state,
        flops=flops.get_total_flops(),
        trainable_parameters=sum(each.numel() for each in trained),
        trainable_bytes=sum(each.nbytes for each in trained),
    )


def quantizable_layers(base: Any) -> list[Any]:
    """The linear layers that bitsandbytes quantizes: all but the one that makes the logits."""
    head = base.get_output_embeddings()
    return [each for each in base.modules() if isinstance(each, torch.nn.Linear) and each is not head]


def _meta_inputs(base: Any, batch: BatchShape) -> dict[str, torch.Tensor]:
    """A padded batch as train.encode makes it; the labels are learned where `MetaMode` says."""
    ids = torch.zeros(batch.rows, batch.max_length, dtype=torch.long)
    responses = batch.max_response_length if base.config.is_encoder_decoder else batch.max_length
    labels = torch.full((batch.rows, responses), IGNORE_INDEX)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def _build_optimizer(name: str, parameters: Sequence[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """As Trainer makes them (transformers 5.23); a rate of 0 would leave work out."""
    from transformers import Adafactor

    if name == "adafactor":
        return Adafactor(parameters, scale_parameter=False, relative_step=False, lr=1e-3)
    return torch.optim.AdamW(parameters, lr=1e-3, foreach=False)
