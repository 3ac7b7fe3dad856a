"""A Llama-like base as the few products that it is, for places of many lines at once.

transformers' own forward spends more time between the products than in them when a step has a handful of rows, and it
takes one kind of attention, one mask and one cache for all rows. Here the places of all lines stand one after the
other, (places, hidden size), with no padding; only attention knows lines, and each part of the lines attends in its
own way (parts.py). The arithmetic is that of transformers' models; tests hold it against them.
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

# Architectures that are Llama's: root mean square norms before attention and a gated MLP, rotary places, no more.
ARCHITECTURES = frozenset({"llama", "qwen2"})
# Rotary embeddings that do not change with the length of what was read.
_ROPE_TYPES = frozenset({"default", "linear", "llama3"})

# (layer, queries (places, heads, head size), keys and values (places, key/value heads, head size)) -> like queries
AttentionFn = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class LayerPatch(Protocol):
    """What the places of one forward wear; see dress.py. `x` and `y` are changed in place."""

    def change_inputs(self, projection: str, x: torch.Tensor) -> torch.Tensor: ...

    def change_outputs(self, projection: str, x: torch.Tensor, y: torch.Tensor) -> None: ...


@dataclass(frozen=True)
class FusedProjection:
    """One fused product of the base, and the modules that it stands for, by name."""

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
    """Whether the base is one that `FusedLlama` computes."""
    config: Any = model.config
    if config.model_type not in ARCHITECTURES or not is_plain(new_cache(config)):
        return False
    return getattr(model.model.rotary_emb, "rope_type", "default") in _ROPE_TYPES


class FusedLlama:
    """The products of a base that `can_fuse`. The model keeps serving beside it; they share their weights."""

    def __init__(self, model: PreTrainedModel) -> None:
        whole: Any = model
        self._embedding = whole.get_input_embeddings()
        self._rotary_emb = whole.model.rotary_emb
        self._norm = whole.model.norm
        self._lm_head = whole.lm_head
        names = {module: name for name, module in whole.named_modules()}
        self._layers = [_fuse_layer(layer, names) for layer in whole.model.layers]
        first = whole.model.layers[0].self_attn
        self._head_dim = int(first.head_dim)
        self._num_heads = whole.config.num_attention_heads
        self._num_kv_heads = whole.config.num_key_value_heads
        self._act_fn = whole.model.layers[0].mlp.act_fn
        self.scale = float(first.scaling)
        self.device = whole.device
        self.dtype = self._embedding.weight.dtype
        # Layers, key/value heads and head size: what is kept of a place.
        self.kv_shape = (len(self._layers), self._num_kv_heads, self._head_dim)
        # Every fused product by its name.
        self.projections = {
            site.name: site for each in self._layers for site in (each.qkv, each.out, each.gate_up, each.down)
        }

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Token ids, (places,), as the base reads them, (places, hidden size)."""
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
        """Logits, (kept places, vocabulary), of embedded places `x` that stand at `places` of their lines.

        `kept` says which places are asked for their next token, all when None.
        """
        cos, sin = self._rotary_cos_sin(x, positions)
        count, queries, both = len(x), self._num_heads, self._num_heads + self._num_kv_heads
        for number, layer in enumerate(self._layers):
            qkv = _project(layer.qkv, layer.norm(x), patch).view(count, -1, self._head_dim)
            turned = qkv[:, :both] * cos
            turned += qkv[:, :both].roll(self._head_dim // 2, -1) * sin
            seen = attend(number, turned[:, :queries], turned[:, queries:], qkv[:, both:])
            x = x + _project(layer.out, seen.reshape(count, -1), patch)
            gate, up = _project(layer.gate_up, layer.mlp_norm(x), patch).chunk(2, -1)
            x += _project(layer.down, self._act_fn(gate).mul_(up), patch)
        logits: torch.Tensor = self._lm_head(self._norm(x if logits_indices is None else x[logits_indices]))
        return logits

    def _rotary_cos_sin(self, x: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of the rotary embedding, (places, 1, head size).

        The first half of the sines is negative: with halves swapped, `x cos + swapped x sin` is transformers'
        `x cos + rotate_half(x) sin`.
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

    def site(kind: str, *modules: Any) -> FusedProjection:
        listed = tuple(names[module] for module in modules)
        return FusedProjection(f"{names[layer]}.{kind}", listed, fuse_linears(modules), int(modules[0].in_features))

    return _Layer(
        norm=layer.input_layernorm,
        qkv=site("qkv", attention.q_proj, attention.k_proj, attention.v_proj),
        out=site("out", attention.o_proj),
        mlp_norm=layer.post_attention_layernorm,
        gate_up=site("gate_up", mlp.gate_proj, mlp.up_proj),
        down=site("down", mlp.down_proj),
    )
