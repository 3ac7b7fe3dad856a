"""One step on the meta device.

One training step on tensors that have a shape and no memory: what it keeps, what it peaks at, what it computes.

Torch's "meta" device runs the model's real code, PEFT's real layers and the real loss, so every technique on every
architecture is counted as it is, before a weight is loaded; a base of 34B takes seconds.

Lets a model's real code run on tensors without memory: a count of bytes, and stand-ins for what needs values.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from models.identity import BaseIdentity
from models.loader import LoadedBase
from train.config import TrainConfig
from train.model import build_peft_model
from train.tokenize import IGNORE_INDEX

META_ATTENTION = "shapes-only"
# What torch.autocast computes in 16 bits, as far as models call it.
_MATMULS = (torch.nn.functional.linear, torch.matmul, torch.bmm, torch.Tensor.matmul, torch.Tensor.__matmul__)


class AllocationTracker(TorchDispatchMode):
    """Counts the bytes of all storages that are alive and were made under it."""

    def __init__(self) -> None:
        super().__init__()
        self.current_bytes = self.peak_bytes = 0
        self._sizes: dict[int, int] = {}
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def ignore(self, tensors: Iterable[torch.Tensor]) -> None:
        """These were there before."""
        for tensor in tensors:
            self._sizes[tensor.untyped_storage()._cdata] = 0

    def reset_peak(self) -> int:
        """Forgets the peak so far; what is alive."""
        self.peak_bytes = self.current_bytes
        return self.current_bytes

    def __torch_dispatch__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._add_storage(tensor.untyped_storage())
        return result

    def _add_storage(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self._sizes:
            self._sizes[storage._cdata] = storage.nbytes()
            self.current_bytes += storage.nbytes()
            self.peak_bytes = max(self.peak_bytes, self.current_bytes)
            self._storages[storage._cdata] = weakref.ref(storage, partial(self._remove_storage, storage._cdata))

    def _remove_storage(self, storage: int, _reference: Any) -> None:
        del self._storages[storage]
        self.current_bytes -= self._sizes.pop(storage)


class MetaMode(TorchFunctionMode):
    """Stands in for what needs values or a real device: boolean indices, autocast to 16 bits, quantized products."""

    def __init__(self, config: TrainConfig, num_label_tokens: int, quantized: Collection[int]) -> None:
        super().__init__()
        self._autocast = config.technique == "full"
        self._matmul = _Int8Linear if config.quantization == "int8" else _Nf4Linear
        self._num_label_tokens = num_label_tokens
        self._quantized = quantized
        self._casted_parameters: dict[int, torch.Tensor] = {}

    def __torch_function__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.Tensor.__getitem__ and getattr(args[1], "dtype", None) == torch.bool:
            return args[0].flatten(0, args[1].dim() - 1)[: self._num_label_tokens].clone()
        if function is torch.nn.functional.linear and id(args[1]) in self._quantized:
            return self._matmul.apply(*args[:2])
        if self._autocast and function in _MATMULS:
            args = tuple(map(self._cast_to_half, args))
            kwargs = {name: self._cast_to_half(value) for name, value in (kwargs or {}).items()}
        return function(*args, **(kwargs or {}))

    def _cast_to_half(self, value: Any) -> Any:
        """As torch.autocast: what is 32 bits becomes 16, and a parameter's copy is kept until the forward pass ends."""
        if not isinstance(value, torch.Tensor) or value.dtype != torch.float32:
            return value
        if not isinstance(value, torch.nn.Parameter):
            return value.to(torch.bfloat16)
        if id(value) not in self._casted_parameters:
            self._casted_parameters[id(value)] = value.to(torch.bfloat16)
        return self._casted_parameters[id(value)]

    def end_forward(self) -> None:
        """The forward pass has ended."""
        self._casted_parameters.clear()


class _Nf4Linear(torch.autograd.Function):
    """bitsandbytes' MatMul4Bit: the weight is unpacked to 16 bits for a moment, forward and backward."""

    @staticmethod
    def forward(ctx: Any, inputs: Any, weight: Any) -> Any:
        ctx.save_for_backward(weight)
        return torch.nn.functional.linear(inputs, weight.clone())

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (weight,) = ctx.saved_tensors
        return torch.matmul(gradients[0], weight.clone()), None


class _Int8Linear(_Nf4Linear):
    """bitsandbytes' MatMul8bitFp and MatMul8bitLt keep their input as well, until the whole graph is gone."""

    @staticmethod
    def forward(ctx: Any, inputs: Any, weight: Any) -> Any:
        ctx.inputs = inputs
        return _Nf4Linear.forward(ctx, inputs, weight)


def register_meta_attention() -> None:
    """An attention that keeps what torch's fused kernels keep: its inputs and its output, and no square of tokens."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(META_ATTENTION, _meta_attention)
    # A padded batch's mask is a bit a token and row: nothing beside the rest.
    AttentionMaskInterface.register(META_ATTENTION, lambda *_args, **_options: None)


def _meta_attention(
    _module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, _mask: Any, **options: Any
) -> tuple[torch.Tensor, None]:
    """As transformers' sdpa: with a mask, keys and values are repeated for all heads (rows, heads, tokens, size)."""
    repeat = query.shape[1] // key.shape[1]
    if repeat > 1:
        key, value = (each.repeat_interleave(repeat, dim=1) for each in (key, value))
    if options.get("dropout"):
        # No fused kernel on CPUs drops out; on a GPU this is too much (T5 alone has such a dropout).
        bias = options.get("position_bias")
        dropped = torch.nn.functional.scaled_dot_product_attention(query, key, value, bias, options["dropout"])
        return dropped.transpose(1, 2), None
    # Under autocast all three are 16 bits wide, whatever rotating the first two has made of them.
    return _FusedAttention.apply(query.to(value.dtype), key.to(value.dtype), value).transpose(1, 2), None


class _FusedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any) -> Any:
        # Laid out as (rows, tokens, heads, size), so that the projection behind it makes no copy.
        output = query.new_empty(query.transpose(1, 2).shape).transpose(1, 2)
        ctx.save_for_backward(query, key, value, output)
        return output

    @staticmethod
    def backward(ctx: Any, *_gradients: Any) -> Any:
        return tuple(torch.empty_like(each) for each in ctx.saved_tensors[:3])


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
    """A padded batch as train.tokenize makes it; the labels are learned where `MetaMode` says."""
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
