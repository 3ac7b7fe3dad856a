"""Fused forward pass of Llama-like bases over the ragged tokens of many sequences.

With a handful of rows per step, transformers' forward spends more time between the matrix products than in them, and
it has one kind of attention, one mask and one cache for all rows. Here the tokens of all sequences are concatenated,
(rows, hidden size), without padding. Only attention distinguishes sequences, and callers pass it in as a function
(prefill.py, decode_groups.py, shared_prefix_attention.py). The arithmetic is that of transformers; tests compare them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from serve.backends.local.fused_linear import FusedLinear, fuse_linears
from serve.backends.local.kv_cache import is_plain, new_cache

if TYPE_CHECKING:
    from transformers import PreTrainedModel

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
