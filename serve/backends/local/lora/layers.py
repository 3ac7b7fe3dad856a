"""Row deltas: what an adapter changes at one linear layer, for the lines of the batch that wear it.

LoRA adds `s (x GroupT^T) B^T` (arXiv 2106.09685; s is alpha / r, or alpha / sqrt(r) for rsLoRA, arXiv 2312.03732). DoRA
also scales each output feature by m / ||W + s B A|| (arXiv 2402.09353, without the bias, as PEFT has it). IA3 scales
the outputs, or the inputs of feed-forward layers (arXiv 2205.05638). All work in place on a slice of the lines, so
that the other lines stay bit for bit what the bare base computes.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from adapters.peft_config import is_feedforward

_PEFT_PREFIX = "base_model.model."
# Columns of a quantized weight that are read at once to measure it.
_COLUMNS_PER_CHUNK = 512


class AdapterLayer:
    """The change of one layer. `inputs` and `outputs` are the layer's, (lines, places, features)."""

    changes_inputs = False

    def scaled(self, factor: float) -> AdapterLayer:
        """The same change, `factor` times as strong. Raises ValueError where that has no meaning."""
        if factor != 1:
            raise ValueError(f"{type(self).__name__} has one strength only.")
        return self

    def change_inputs(self, inputs: torch.Tensor) -> None:
        """Changes, in place, what the layer will read."""

    def change_outputs(self, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
        """Changes, in place, what the layer has computed of `inputs`."""


@dataclass(frozen=True)
class LoraLayer(AdapterLayer):
    """A is (r, in), B is (out, r), both in the dtype of the adapter's file: float32 would double its memory."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float

    def scaled(self, factor: float) -> AdapterLayer:
        return replace(self, scale=self.scale * factor)

    def change_outputs(self, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
        outputs.add_(self.delta(inputs))

    def delta(self, inputs: torch.Tensor) -> torch.Tensor:
        """What is added, (lines, places, out), in float32 on a CPU, where small products in 16 bits are slower."""
        dtype = torch.float32 if self.a.device.type == "cpu" else self.a.dtype
        low = torch.nn.functional.linear(inputs.to(dtype), self.a.to(dtype))
        return torch.nn.functional.linear(low, self.b.to(dtype)).mul_(self.scale)


@dataclass(frozen=True)
class DoraLayer(AdapterLayer):
    """`ratio` is m / ||W + s B A||, (out,) float32; `offset` is what of the bias it must not scale."""

    lora: LoraLayer
    ratio: torch.Tensor
    offset: torch.Tensor | None

    def change_outputs(self, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
        changed = (outputs + self.lora.delta(inputs)) * self.ratio
        outputs.copy_(changed if self.offset is None else changed + self.offset)


@dataclass(frozen=True)
class IA3OutputLayer(AdapterLayer):
    """IA3 outside the feed-forward layers; `scale` is (out,) float32."""

    scale: torch.Tensor

    def scaled(self, factor: float) -> AdapterLayer:
        return IA3OutputLayer(1 + factor * (self.scale - 1))

    def change_outputs(self, inputs: torch.Tensor, outputs: torch.Tensor) -> None:  # noqa: ARG002
        outputs.mul_(self.scale)


@dataclass(frozen=True)
class IA3InputLayer(AdapterLayer):
    """IA3 of a feed-forward layer; `scale` is (in,) float32."""

    scale: torch.Tensor
    changes_inputs = True

    def scaled(self, factor: float) -> AdapterLayer:
        return IA3InputLayer(1 + factor * (self.scale - 1))

    def change_inputs(self, inputs: torch.Tensor) -> None:
        inputs.mul_(self.scale)


def build_lora_layers(
    config: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    modules: Mapping[str, torch.nn.Module],
    device: torch.device,
) -> dict[str, AdapterLayer]:
    """Module name -> delta, of a LoRA or DoRA folder whose shapes have been checked."""
    rank = int(config["r"])
    scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
    deltas: dict[str, AdapterLayer] = {}
    for name in sorted({key.removeprefix(_PEFT_PREFIX).rsplit(".lora_", 1)[0] for key in tensors}):
        a = tensors[f"{_PEFT_PREFIX}{name}.lora_A.weight"].to(device)
        b = tensors[f"{_PEFT_PREFIX}{name}.lora_B.weight"].to(device)
        lora = LoraLayer(a, b, scale)
        if config.get("use_dora"):
            magnitude = tensors[f"{_PEFT_PREFIX}{name}.lora_magnitude_vector"].float().to(device)
            ratio = magnitude / weight_norm(modules[name], a.float(), b.float() * scale)
            bias = modules[name].bias
            deltas[name] = DoraLayer(lora, ratio, None if bias is None else (1 - ratio) * bias.detach().float())
        else:
            deltas[name] = lora
    return deltas


def build_ia3_layers(
    config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], device: torch.device
) -> dict[str, AdapterLayer]:
    """Module name -> delta, of an IA3 folder whose shapes have been checked."""
    deltas: dict[str, AdapterLayer] = {}
    for key, tensor in tensors.items():
        name = key.removeprefix(_PEFT_PREFIX).removesuffix(".ia3_l")
        scale = tensor.flatten().float().to(device)
        deltas[name] = IA3InputLayer(scale) if is_feedforward(name, config) else IA3OutputLayer(scale)
    return deltas


@torch.inference_mode()
def weight_norm(layer: torch.nn.Module, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """||W + B A|| of every output feature, (out,) float32; B has the scale multiplied in.

    A quantized weight is not read but asked for: the layer computes its columns from unit vectors, without its
    bias. So what is measured is what serves, however bitsandbytes has packed it by now.
    """
    squares = torch.zeros(b.shape[0], device=b.device)
    for begin in range(0, a.shape[1], _COLUMNS_PER_CHUNK):
        end = min(begin + _COLUMNS_PER_CHUNK, a.shape[1])
        squares += (_weight_columns(layer, begin, end, a) + b @ a[:, begin:end]).square().sum(-1)
    return squares.sqrt()


def _weight_columns(layer: Any, begin: int, end: int, like: torch.Tensor) -> torch.Tensor:
    """W[:, begin:end] in float32."""
    if type(layer) is torch.nn.Linear:
        return layer.weight[:, begin:end].float()
    units = torch.zeros((end - begin, like.shape[1]), device=like.device)
    units[torch.arange(end - begin), torch.arange(begin, end)] = 1
    return torch.as_tensor(_without_bias_and_hooks(layer)(units.to(_compute_dtype(layer)))).float().T


def _without_bias_and_hooks(layer: Any) -> Any:
    """The layer with the same weight, without its bias and whatever is hooked to it: the worker may be using it."""
    bare = object.__new__(type(layer))
    bare.__dict__.update(layer.__dict__)
    bare.__dict__["_parameters"] = {**layer._parameters, "bias": None}
    bare.__dict__["_forward_hooks"], bare.__dict__["_forward_pre_hooks"] = OrderedDict(), OrderedDict()
    return bare


def _compute_dtype(layer: Any) -> torch.dtype:
    """The dtype in which a layer of bitsandbytes computes."""
    return getattr(layer, "compute_dtype", None) or torch.bfloat16
