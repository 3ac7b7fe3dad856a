"""Trace of a training step on the meta device: bytes kept for the backward pass, peak bytes and operations.

Tensors on torch's "meta" device have a shape and no memory. The step runs the model's own code, PEFT's layers and the
loss, so every technique on every architecture is counted without loading a weight. `MetaMode` replaces the operations
that need values, or that differ on the real device.
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
from transformers.pytorch_utils import Conv1D

from models.loader import LoadedBase, linear_shapes
from models.source import BaseIdentity
from train.config import TrainConfig
from train.model import build_peft_model
from train.tokenize import IGNORE_INDEX

META_ATTENTION = "shapes-only"
# Operations that torch.autocast computes in 16 bits, as far as models call them.
_MATMULS = (torch.nn.functional.linear, torch.matmul, torch.bmm, torch.Tensor.matmul, torch.Tensor.__matmul__)


class AllocationTracker(TorchDispatchMode):
    """Counts the bytes of all live storages that were allocated while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.current_bytes = self.peak_bytes = 0
        self._sizes: dict[int, int] = {}
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def ignore(self, tensors: Iterable[torch.Tensor]) -> None:
        """Exclude tensors that were allocated before."""
        for tensor in tensors:
            self._sizes[tensor.untyped_storage()._cdata] = 0

    def reset_peak(self) -> int:
        """Set the peak to the current bytes, and return them."""
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
    """Replaces operations that need values or a real device: boolean indices, autocast, quantized products, dropout.

    `quantized` are the ids of quantized weights; `device` is the type of the run's device, "cpu" or "cuda".
    """

    def __init__(
        self, config: TrainConfig, num_label_tokens: int, quantized: Collection[int], device: str = "cpu"
    ) -> None:
        super().__init__()
        self._fused_dropout = device == "cuda"
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
        if self._fused_dropout and function is torch.nn.functional.dropout:
            return _cuda_dropout(*args, **(kwargs or {}))
        if self._autocast and function in _MATMULS:
            args = tuple(map(self._cast_to_half, args))
            kwargs = {name: self._cast_to_half(value) for name, value in (kwargs or {}).items()}
        return function(*args, **(kwargs or {}))

    def _cast_to_half(self, value: Any) -> Any:
        """Cast from 32 to 16 bits as torch.autocast, which keeps a parameter's copy until the forward pass ends."""
        if not isinstance(value, torch.Tensor) or value.dtype != torch.float32:
            return value
        if not isinstance(value, torch.nn.Parameter):
            return value.to(torch.bfloat16)
        if id(value) not in self._casted_parameters:
            self._casted_parameters[id(value)] = value.to(torch.bfloat16)
        return self._casted_parameters[id(value)]

    def end_forward(self) -> None:
        """Release the copies of parameters, as autocast does at the end of the forward pass."""
        self._casted_parameters.clear()


def _cuda_dropout(inputs: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    """Apply dropout as CUDA's fused kernel, which keeps a mask of one byte a number.

    The CPU's (and meta's) dropout keeps its random factors in the dtype of the input instead.
    """
    if not training or not p or inplace:
        return torch.dropout(inputs, p, training)
    return torch.native_dropout(inputs, p, training)[0]


class _Nf4Linear(torch.autograd.Function):
    """bitsandbytes' MatMul4Bit: unpacks the weight to 16 bits temporarily, forward and backward."""

    @staticmethod
    def forward(ctx: Any, inputs: Any, weight: Any) -> Any:
        ctx.save_for_backward(weight)
        return torch.nn.functional.linear(inputs, weight.clone())

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (weight,) = ctx.saved_tensors
        return torch.matmul(gradients[0], weight.clone()), None


class _Int8Linear(_Nf4Linear):
    """bitsandbytes' MatMul8bitFp and MatMul8bitLt: keep their input as well, until the graph is freed."""

    @staticmethod
    def forward(ctx: Any, inputs: Any, weight: Any) -> Any:
        ctx.inputs = inputs
        return _Nf4Linear.forward(ctx, inputs, weight)


def register_meta_attention() -> None:
    """Register an attention that keeps what torch's fused kernels keep: its inputs and output, and no score matrix."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(META_ATTENTION, _meta_attention)
    # The mask of a padded batch is negligible.
    AttentionMaskInterface.register(META_ATTENTION, lambda *_args, **_options: None)


def _meta_attention(
    _module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, _mask: Any, **options: Any
) -> tuple[torch.Tensor, None]:
    """Compute as transformers' sdpa: with a mask, keys and values are repeated to (rows, heads, tokens, head_dim)."""
    repeat = query.shape[1] // key.shape[1]
    if repeat > 1:
        key, value = (tensor.repeat_interleave(repeat, dim=1) for tensor in (key, value))
    if options.get("dropout"):
        # The CPU has no fused kernel with dropout; for a GPU this is too much (only T5 has such a dropout).
        bias = options.get("position_bias")
        dropped = torch.nn.functional.scaled_dot_product_attention(query, key, value, bias, options["dropout"])
        return dropped.transpose(1, 2), None
    # Under autocast all three have 16 bits; the rotary embedding may have made the first two 32 bits wide.
    return _FusedAttention.apply(query.to(value.dtype), key.to(value.dtype), value).transpose(1, 2), None


class _FusedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any) -> Any:
        # Contiguous as (rows, tokens, heads, head_dim), so that the next projection makes no copy.
        output = query.new_empty(query.transpose(1, 2).shape).transpose(1, 2)
        ctx.save_for_backward(query, key, value, output)
        return output

    @staticmethod
    def backward(ctx: Any, *_gradients: Any) -> Any:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


@dataclass(frozen=True)
class BatchShape:
    """The sizes of a batch: rows, tokens of the longest prompt with its response, label tokens of all rows.

    For encoder-decoder bases `max_length` is the longest prompt and `max_response_length` the longest response.
    """

    rows: int
    max_length: int
    label_tokens: int
    max_response_length: int = 0


@dataclass(frozen=True)
class StepCost:
    """Bytes, parameters and floating-point operations of one step.

    `activation_bytes` are alive before the logits are computed: the backward pass needs them. `peak_bytes` is the most
    that is alive at once, with logits, gradients and `optimizer_state_bytes`. Both exclude parameters.
    """

    activation_bytes: int
    peak_bytes: int
    optimizer_state_bytes: int
    flops: int
    trainable_parameters: int
    trainable_bytes: int


def meta_model(folder: Any, dtype: torch.dtype, trust_remote_code: bool = False) -> Any:
    """Build the model of a folder's config.json (or of a configuration object) on the meta device."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedConfig

    is_config = isinstance(folder, PreTrainedConfig)
    config = folder if is_config else AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    auto_class = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        model = auto_class.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
    register_meta_attention()
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = META_ATTENTION
    return model


def trace_step(config: TrainConfig, base: Any, batch: BatchShape, device: str = "cpu") -> StepCost:
    """Count the second step of a run on "cpu" or "cuda"; the first one allocates the optimizer's state.

    Wraps and changes `base`. Raises what a base's own code raises on tensors without values.
    """
    quantized = {id(layer.weight) for layer in quantizable_layers(base)} if config.quantization != "none" else set()
    identity = BaseIdentity(
        *("", "", type(base).__name__, "none", "meta", 0, False),
        base.config.is_encoder_decoder,
        shapes=linear_shapes(base),
    )
    loaded = LoadedBase(base, None, identity)  # no tokenizer: there is no text
    with torch.device("meta"):
        # Other initial values of virtual tokens would need real tensors.
        model = build_peft_model(replace(config, virtual_tokens_init="random"), loaded, ()).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = _build_optimizer(config.optim, trained)
    tracker, mode = AllocationTracker(), MetaMode(config, batch.label_tokens, quantized, device)
    if config.gradient_checkpointing:
        # Torch disables function modes during the backward pass, in which checkpointed layers are computed again.
        recompute = {"context_fn": lambda: (nullcontext(), mode)}
        base.gradient_checkpointing_enable({"use_reentrant": False, **recompute})
    tracker.ignore([*model.parameters(), *model.buffers()])
    before_logits: list[int] = []
    base.get_output_embeddings().register_forward_pre_hook(lambda *_: before_logits.append(tracker.current_bytes))

    def step() -> None:
        with torch.device("meta"), mode:
            loss = model(**_meta_inputs(base, batch), num_items_in_batch=1)["loss"]
            mode.end_forward()
            loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, config.max_grad_norm, foreach=False)
        optimizer.step()
        optimizer.zero_grad()

    flops = FlopCounterMode(display=False)
    with tracker:
        with flops:  # only in the first step, because the counter itself keeps tensors alive
            step()
        state = tracker.reset_peak()
        step()
    return StepCost(
        activation_bytes=before_logits[1] - state,
        peak_bytes=tracker.peak_bytes,
        optimizer_state_bytes=state,
        flops=flops.get_total_flops(),
        trainable_parameters=sum(parameter.numel() for parameter in trained),
        trainable_bytes=sum(parameter.nbytes for parameter in trained),
    )


def quantizable_layers(base: Any) -> list[Any]:
    """Return the linear layers that bitsandbytes quantizes: all but the output layer."""
    head = base.get_output_embeddings()
    return [module for module in base.modules() if isinstance(module, torch.nn.Linear | Conv1D) and module is not head]


def _meta_inputs(base: Any, batch: BatchShape) -> dict[str, torch.Tensor]:
    """Make a padded batch as train.tokenize does; `MetaMode` replaces the selection of label tokens."""
    ids = torch.zeros(batch.rows, batch.max_length, dtype=torch.long)
    responses = batch.max_response_length if base.config.is_encoder_decoder else batch.max_length
    labels = torch.full((batch.rows, responses), IGNORE_INDEX)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def _build_optimizer(name: str, parameters: Sequence[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Build the optimizer as Trainer does (transformers 5.23). A learning rate of 0 would skip operations."""
    from transformers import Adafactor

    if name == "adafactor":
        return Adafactor(parameters, scale_parameter=False, relative_step=False, lr=1e-3)
    return torch.optim.AdamW(parameters, lr=1e-3, foreach=False)
