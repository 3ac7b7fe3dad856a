"""Fused linear layers: one product for modules with the same input (query, key and value, or gate and up).

With a few rows per step the launch of a product costs more than its computation, so a layer of four products is faster
than one of seven. NF4 weights that bitsandbytes has packed for its CPU kernel are laid out by blocks of output
features, so those of several modules can be concatenated. The kernel is called directly: the code around it (an
autograd function, checks of the quantization state) takes longer than the product. A fused product is used only if its
result is bit for bit that of its modules; otherwise each module computes its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ctypes import c_int64, c_void_p
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

# (rows, in) -> (rows, outputs of all modules, concatenated)
LinearFn = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class FusedLinear:
    """A product and the output size of each of its modules."""

    forward: LinearFn
    output_sizes: tuple[int, ...]


@torch.inference_mode()
def fuse_linears(layers: Sequence[nn.Module]) -> FusedLinear:
    """Return the fused product of `layers`. Fused weights are stored once: the modules then use views of them."""
    modules: list[Any] = list(layers)
    widths = tuple(int(module.out_features) for module in modules)
    trial_input = torch.linspace(-1, 1, 3 * modules[0].in_features, device=modules[0].weight.device).view(3, -1)
    trial_input = trial_input.to(_compute_dtype(modules[0]))
    expected = _unfused(modules)(trial_input)  # bitsandbytes packs its weights during this first forward
    candidate = (
        _fuse_packed_nf4(modules) if _is_packed(modules) else _fuse_dense(modules) if _is_dense(modules) else None
    )
    if candidate is not None and torch.equal(candidate.forward(trial_input), expected):
        candidate.tie_weights(modules)
        return FusedLinear(candidate.forward, widths)
    return FusedLinear(_unfused(modules), widths)


def _unfused(modules: Sequence[Any]) -> LinearFn:
    if len(modules) == 1:
        only_module: LinearFn = modules[0]
        return only_module
    return lambda x: torch.cat([module(x) for module in modules], -1)


@dataclass(frozen=True)
class _Candidate:
    """A fused product and its weight, the concatenated weights of the modules."""

    forward: LinearFn
    weight: torch.Tensor

    def tie_weights(self, modules: Sequence[Any]) -> None:
        for module, part in zip(modules, self.weight.split([module.out_features for module in modules]), strict=True):
            module.weight.data = part


def _is_dense(modules: Sequence[Any]) -> bool:
    return all(type(module) is nn.Linear for module in modules)


def _fuse_dense(modules: Sequence[Any]) -> _Candidate:
    weight = torch.cat([module.weight for module in modules]) if len(modules) > 1 else modules[0].weight.data
    bias = _concat_bias(modules)
    return _Candidate(lambda x: nn.functional.linear(x, weight, bias), weight)


def _is_packed(modules: Sequence[Any]) -> bool:
    states: list[Any] = [getattr(module.weight, "quant_state", None) for module in modules]
    return all(getattr(state, "packing_format_for_cpu", False) for state in states) and all(
        state.quant_type == "nf4" and state.blocksize == states[0].blocksize for state in states
    )


def _fuse_packed_nf4(modules: Sequence[Any]) -> _Candidate | None:
    from bitsandbytes.cextension import lib

    try:
        kernel = lib.gemv_4bit_inference_cpu_nf4_bf16
    except (AttributeError, RuntimeError):  # a library without this kernel
        return None
    weight = torch.cat([module.weight.data for module in modules])
    scales = torch.cat([module.weight.quant_state.absmax for module in modules], 1).contiguous()
    bias = _concat_bias(modules)
    out_features, in_features = len(weight), int(modules[0].in_features)
    outs, ins = c_int64(out_features), c_int64(in_features)
    weights_at, scales_at = c_void_p(weight.data_ptr()), c_void_p(scales.data_ptr())
    block = c_int64(modules[0].weight.quant_state.blocksize)

    def product(x: torch.Tensor) -> torch.Tensor:
        x = x.contiguous()
        if x.dtype is not torch.bfloat16 or x.shape[1] != in_features:
            raise ValueError(f"The packed product takes (rows, {in_features}) in bfloat16, not {x.shape}, {x.dtype}.")
        out = x.new_empty((x.shape[0], out_features))
        kernel(
            c_int64(x.shape[0]), outs, ins, c_void_p(x.data_ptr()), weights_at, scales_at, c_void_p(out.data_ptr()),
            block, ins, outs,
        )  # fmt: skip
        return out if bias is None else out.add_(bias)

    # The kernel gets addresses only: refer to both tensors so that their memory is not freed.
    product.__dict__["tensors"] = (weight, scales)
    return _Candidate(product, weight)


def _concat_bias(modules: Sequence[Any]) -> torch.Tensor | None:
    if all(module.bias is None for module in modules):
        return None
    example = modules[0].weight if modules[0].bias is None else modules[0].bias
    parts = [
        example.new_zeros(module.out_features) if module.bias is None else module.bias.detach() for module in modules
    ]
    return torch.cat(parts)


def _compute_dtype(module: Any) -> torch.dtype:
    """Return the dtype of a module's inputs."""
    dtype: torch.dtype = module.weight.dtype
    return dtype if dtype.is_floating_point else (getattr(module, "compute_dtype", None) or torch.bfloat16)
