"""LoRA, DoRA and IA3 layers: the change of one linear module's inputs or outputs for some rows of a batch.

LoRA adds `s (x A^T) B^T` (arXiv 2106.09685; s is alpha / r, or alpha / sqrt(r) for rsLoRA, arXiv 2312.03732). DoRA
also scales each output feature by m / ||W + s B A|| (arXiv 2402.09353; the bias is not scaled, as in PEFT). IA3 scales
the outputs, or the inputs of feed-forward layers (arXiv 2205.05638). All work in place on a slice of the rows, so that
the other rows stay bit for bit what the bare base computes.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from adapters.peft_config import is_feedforward

_PEFT_PREFIX = "base_model.model."
# Columns of a quantized weight that are dequantized at once for its norm.
_COLUMNS_PER_CHUNK = 512


class AdapterLayer:
    """The change of one linear module; `inputs` and `outputs` are the module's, (..., features)."""

    changes_inputs = False

    def scaled(self, factor: float) -> AdapterLayer:
        """Return the layer with its effect multiplied by `factor`. Raises ValueError for layers without a scale."""
        if factor != 1:
            raise ValueError(f"{type(self).__name__} cannot be scaled.")
        return self

    def change_inputs(self, inputs: torch.Tensor) -> None:
        """Change the module's inputs in place, before it computes."""

    def change_outputs(self, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
        """Change the module's outputs for `inputs` in place."""


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
        """Return the addend to the outputs, (..., out); float32 on a CPU, where small 16-bit products are slower."""
        dtype = torch.float32 if self.a.device.type == "cpu" else self.a.dtype
        low_rank = torch.nn.functional.linear(inputs.to(dtype), self.a.to(dtype))
        return torch.nn.functional.linear(low_rank, self.b.to(dtype)).mul_(self.scale)


@dataclass(frozen=True)
class DoraLayer(AdapterLayer):
    """`ratio` is m / ||W + s B A||, (out,) float32; `offset`, (1 - ratio) * bias, undoes the scaling of the bias."""

    lora: LoraLayer
    ratio: torch.Tensor
    offset: torch.Tensor | None

    def change_outputs(self, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
        scaled_outputs = (outputs + self.lora.delta(inputs)) * self.ratio
        outputs.copy_(scaled_outputs if self.offset is None else scaled_outputs + self.offset)


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
    """Return the layers of a LoRA or DoRA folder, whose shapes have been checked, by module name."""
    rank = int(config["r"])
    scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
    layers: dict[str, AdapterLayer] = {}
    for name in sorted({key.removeprefix(_PEFT_PREFIX).rsplit(".lora_", 1)[0] for key in tensors}):
        a = tensors[f"{_PEFT_PREFIX}{name}.lora_A.weight"].to(device)
        b = tensors[f"{_PEFT_PREFIX}{name}.lora_B.weight"].to(device)
        lora = LoraLayer(a, b, scale)
        if config.get("use_dora"):
            magnitude = tensors[f"{_PEFT_PREFIX}{name}.lora_magnitude_vector"].float().to(device)
            ratio = magnitude / weight_norm(modules[name], a.float(), b.float() * scale)
            bias = modules[name].bias
            layers[name] = DoraLayer(lora, ratio, None if bias is None else (1 - ratio) * bias.detach().float())
        else:
            layers[name] = lora
    return layers


def build_ia3_layers(
    config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], device: torch.device
) -> dict[str, AdapterLayer]:
    """Return the layers of an IA3 folder, whose shapes have been checked, by module name."""
    layers: dict[str, AdapterLayer] = {}
    for key, tensor in tensors.items():
        name = key.removeprefix(_PEFT_PREFIX).removesuffix(".ia3_l")
        scale = tensor.flatten().float().to(device)
        layers[name] = IA3InputLayer(scale) if is_feedforward(name, config) else IA3OutputLayer(scale)
    return layers


@torch.inference_mode()
def weight_norm(layer: torch.nn.Module, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return ||W + B A|| of every output feature, (out,) float32; `b` includes the LoRA scale.

    The columns of a quantized weight are computed by the module itself, from unit vectors and without its bias: this
    gives the values that are used for serving, in whichever layout bitsandbytes has packed them.
    """
    squares = torch.zeros(b.shape[0], device=b.device)
    for begin in range(0, a.shape[1], _COLUMNS_PER_CHUNK):
        end = min(begin + _COLUMNS_PER_CHUNK, a.shape[1])
        squares += (_weight_columns(layer, begin, end, a) + b @ a[:, begin:end]).square().sum(-1)
    return squares.sqrt()


def _weight_columns(layer: Any, begin: int, end: int, example: torch.Tensor) -> torch.Tensor:
    """Return W[:, begin:end] in float32."""
    if type(layer) is torch.nn.Linear:
        return layer.weight[:, begin:end].float()
    if isinstance(layer, Conv1D):  # (in, out)
        return layer.weight[begin:end].T.float()
    unit_vectors = torch.zeros((end - begin, example.shape[1]), device=example.device)
    unit_vectors[torch.arange(end - begin), torch.arange(begin, end)] = 1
    return torch.as_tensor(_without_bias_and_hooks(layer)(unit_vectors.to(_compute_dtype(layer)))).float().T


def _without_bias_and_hooks(layer: Any) -> Any:
    """Return a copy of the module that shares its weight, without bias and hooks.

    The module itself must not change: the engine's thread may be running it, with hooks for other rows.
    """
    copy = object.__new__(type(layer))
    copy.__dict__.update(layer.__dict__)
    copy.__dict__["_parameters"] = {**layer._parameters, "bias": None}
    copy.__dict__["_forward_hooks"], copy.__dict__["_forward_pre_hooks"] = OrderedDict(), OrderedDict()
    return copy


def _compute_dtype(layer: Any) -> torch.dtype:
    """Return the dtype in which a bitsandbytes module computes."""
    return getattr(layer, "compute_dtype", None) or torch.bfloat16
