"""Fused forward pass of Llama-like bases over the ragged tokens of many sequences, and its fused linear layers.

With a handful of rows per step, transformers' forward spends more time between the matrix products than in them, and
it has one kind of attention, one mask and one cache for all rows. Here the tokens of all sequences are concatenated,
(rows, hidden size), without padding. Only attention distinguishes sequences, and callers pass it in as a function
(prefill.py, fused_runner.py, shared_prefix_attention.py). The arithmetic is that of transformers; tests compare them.

Modules with the same input (query, key and value, or gate and up) are one product: the launch of a product costs more
than a few rows' computation, so a layer of four products is faster than one of seven. NF4 weights that bitsandbytes
has packed for its CPU kernel are laid out by blocks of output features, so those of several modules can be
concatenated. The kernel is called directly: the code around it (an autograd function, checks of the quantization
state) takes longer than the product. A fused product is used only if its result is bit for bit that of its modules;
otherwise each module computes its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ctypes import c_int64, c_void_p
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from serve.backends.local.kv_cache import is_plain, new_cache

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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


# Architectures with exactly Llama's parts: RMS norms before attention and a gated MLP, rotary position embeddings.
ARCHITECTURES = frozenset({"llama", "qwen2"})
# Rotary embeddings that do not depend on the length of the sequence.
_ROPE_TYPES = frozenset({"default", "linear", "llama3"})

# (layer, queries (rows, heads, head size), keys and values (rows, key/value heads, head size)) -> shape of the queries
AttentionFn = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class LayerPatch(Protocol):
    """The adapters of one forward's rows (lora/batch.py). `change_outputs` changes `y` in place."""

    def change_inputs(self, projection: str, x: torch.Tensor) -> torch.Tensor: ...

    def change_outputs(self, projection: str, x: torch.Tensor, y: torch.Tensor) -> None: ...


@dataclass(frozen=True)
class FusedProjection:
    """One fused product of the base and the names of its modules."""

    name: str
    modules: tuple[str, ...]
    linear: FusedLinear
    in_features: int


@dataclass(frozen=True)
class _Layer:
    norm: Any
    qkv: FusedProjection
    out: FusedProjection
    mlp_norm: Any
    gate_up: FusedProjection
    down: FusedProjection


def can_fuse(model: PreTrainedModel) -> bool:
    """Return whether `FusedLlama` supports the base."""
    config: Any = model.config
    if config.model_type not in ARCHITECTURES or not is_plain(new_cache(config)):
        return False
    return getattr(model.model.rotary_emb, "rope_type", "default") in _ROPE_TYPES


class FusedLlama:
    """The fused forward of a base that `can_fuse`. It shares its weights with the model, which stays usable."""

    def __init__(self, model: PreTrainedModel) -> None:
        hf_model: Any = model
        self._embedding = hf_model.get_input_embeddings()
        self._rotary_emb = hf_model.model.rotary_emb
        self._norm = hf_model.model.norm
        self._lm_head = hf_model.lm_head
        names = {module: name for name, module in hf_model.named_modules()}
        self._layers = [_fuse_layer(layer, names) for layer in hf_model.model.layers]
        first_attention = hf_model.model.layers[0].self_attn
        self._head_dim = int(first_attention.head_dim)
        self._num_heads = hf_model.config.num_attention_heads
        self._num_kv_heads = hf_model.config.num_key_value_heads
        self._act_fn = hf_model.model.layers[0].mlp.act_fn
        self.scale = float(first_attention.scaling)
        self.device = hf_model.device
        self.dtype = self._embedding.weight.dtype
        # Layers, key/value heads and head size: the shape of the keys of one position.
        self.kv_shape = (len(self._layers), self._num_kv_heads, self._head_dim)
        # All fused projections by name.
        self.projections = {
            projection.name: projection
            for layer in self._layers
            for projection in (layer.qkv, layer.out, layer.gate_up, layer.down)
        }

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the embeddings, (rows, hidden size), of token ids, (rows,)."""
        embedded: torch.Tensor = self._embedding(tokens)
        return embedded

    def forward(
        self,
        x: torch.Tensor,
        positions: torch.Tensor,
        attend: AttentionFn,
        patch: LayerPatch | None,
        logits_indices: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return logits, (selected rows, vocabulary), for embeddings `x`, (rows, hidden size), at `positions`, (rows,).

        `attend` is called once per layer, `patch` applies adapters. `logits_indices` selects rows; None means all.
        """
        cos, sin = self._rotary_cos_sin(x, positions)
        num_rows, num_query_heads, num_rotated_heads = len(x), self._num_heads, self._num_heads + self._num_kv_heads
        for number, layer in enumerate(self._layers):
            qkv = _project(layer.qkv, layer.norm(x), patch).view(num_rows, -1, self._head_dim)
            rotated = qkv[:, :num_rotated_heads] * cos
            rotated += qkv[:, :num_rotated_heads].roll(self._head_dim // 2, -1) * sin
            attended = attend(
                number, rotated[:, :num_query_heads], rotated[:, num_query_heads:], qkv[:, num_rotated_heads:]
            )
            x = x + _project(layer.out, attended.reshape(num_rows, -1), patch)
            gate, up = _project(layer.gate_up, layer.mlp_norm(x), patch).chunk(2, -1)
            x += _project(layer.down, self._act_fn(gate).mul_(up), patch)
        logits: torch.Tensor = self._lm_head(self._norm(x if logits_indices is None else x[logits_indices]))
        return logits

    def _rotary_cos_sin(self, x: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosines and sines of the rotary embedding, each (rows, 1, head size).

        The first half of the sines is negated: then `x cos + roll(x) sin`, with halves swapped by `roll`, is
        transformers' `x cos + rotate_half(x) sin` with one operation less.
        """
        cos, sin = self._rotary_emb(x[None], positions[None])
        half = self._head_dim // 2
        sin = torch.cat([-sin[0, :, :half], sin[0, :, half:]], -1)
        return cos[0, :, None], sin[:, None]


def _project(projection: FusedProjection, x: torch.Tensor, patch: LayerPatch | None) -> torch.Tensor:
    if patch is None:
        return projection.linear.forward(x)
    x = patch.change_inputs(projection.name, x)
    y = projection.linear.forward(x)
    patch.change_outputs(projection.name, x, y)
    return y


def _fuse_layer(layer: Any, names: dict[Any, str]) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp

    def projection(kind: str, *modules: Any) -> FusedProjection:
        module_names = tuple(names[module] for module in modules)
        return FusedProjection(
            f"{names[layer]}.{kind}", module_names, fuse_linears(modules), int(modules[0].in_features)
        )

    return _Layer(
        norm=layer.input_layernorm,
        qkv=projection("qkv", attention.q_proj, attention.k_proj, attention.v_proj),
        out=projection("out", attention.o_proj),
        mlp_norm=layer.post_attention_layernorm,
        gate_up=projection("gate_up", mlp.gate_proj, mlp.up_proj),
        down=projection("down", mlp.down_proj),
    )
