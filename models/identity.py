"""Identity of a base model (id, revision, quantization, shapes), and which kinds of models answer right in a batch.

A batch holds prompts of different lengths that end at the same column. A base can be served if padding in front of a
prompt can be hidden from it, and if the cache of its rows can be joined, reordered and repeated:

- keys and values of all tokens, or of those in a sliding window, are hidden by a mask;
- states (convolution, state space, linear attention) have no mask, so their prompts are read without padding;
- other caches, and state that a model keeps elsewhere, cannot be joined.

What a configuration does not show, serve/backends/local/hf_runner.py finds by running the base.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from errors import BaseModelError
from models.source import Source

_ADVICE = 'choose a base of another kind (docs/serving.md, "Bases")'


@dataclass(frozen=True)
class BaseIdentity:
    """The properties of a base model that adapters, results and pages depend on.

    `shapes` maps each linear module's name to (out_features, in_features). `revision` is a commit hash for a Hub model,
    and `sha256:<16 hex digits>` of the weights for the embedded base, folders and GGUF files. The sizes determine the
    shapes of virtual tokens and key/value prefixes; 0 if unknown.
    """

    id: str
    revision: str
    architecture: str
    quantization: str
    device: str
    context_length: int
    has_chat_template: bool
    is_encoder_decoder: bool = False
    shapes: Mapping[str, tuple[int, int]] = field(default_factory=dict, repr=False)
    hidden_size: int = 0
    num_layers: int = 0
    num_key_value_heads: int = 0
    head_dim: int = 0
    # The prompt style of a base that this program has fully fine-tuned; "" for other bases.
    prompt_style: str = ""
    prompt_fingerprint: str = ""


def kind_error(base_id: str, model_type: str, reason: str, quantized: bool = False) -> BaseModelError:
    """Return the error for a base that cannot be served; `reason` goes on after the base's name.

    `quantized` is for a reason that may be one of quantization: some models read the weights of a layer themselves.
    """
    advice = f"try --quantization none, or {_ADVICE}" if quantized else _ADVICE
    return BaseModelError(f"The base '{base_id}' ({model_type}) {reason}: {advice}.")


def check_kind(source: Source, config: Any) -> None:
    """Raise BaseModelError for a base of a kind that cannot be served; nothing but its configuration is needed.

    A base with code of its own is not known to transformers, so that only running it can show what it does.
    """
    reason = _refusal_reason(config)
    if reason:
        raise kind_error(source.id, config.model_type, reason)


def cache_argument(model_class: Any) -> str | None:
    """Return the name of the cache in the forward of a model or of its class; None if it takes no cache."""
    parameters = inspect.signature(model_class.forward).parameters
    return next((name for name in ("past_key_values", "cache_params") if name in parameters), None)


def keeps_all_tokens(config: Any) -> bool:
    """Return whether every layer keeps the keys and values of all tokens, which virtual tokens need to be seen."""
    from transformers.cache_utils import DynamicLayer

    return all(layer is DynamicLayer for layer in _cache_layers(config))


def layer_size(config: Any, *names: str) -> int:
    """Return the first of these sizes that a configuration has; 0 if it has none, or if its layers differ."""
    from transformers.integrations.heterogeneity.configuration_utils import AmbiguousGlobalPerLayerAttributeError

    for name in names:
        try:
            value = getattr(config, name, None)
        except AmbiguousGlobalPerLayerAttributeError:
            return 0
        if value:
            return int(value)
    return 0


def _refusal_reason(config: Any) -> str | None:
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_MASKED_LM_MAPPING,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    )

    mapping = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING if config.is_encoder_decoder else MODEL_FOR_CAUSAL_LM_MAPPING
    if type(config) not in mapping:
        if getattr(config, "auto_map", None):
            return None
        return "is not a model that answers text with text"
    if config.is_encoder_decoder:
        return None
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", True):
        return "reads text in both directions and does not continue it"
    if cache_argument(mapping[type(config)]) is None:
        return "takes no cache of its previous tokens, or one in a form of its own"
    try:
        layers = _cache_layers(config)
    except KeyError as error:
        return f"has layers that transformers has no cache for ({error.args[0]})"
    others = sorted({layer.__name__ for layer in layers if not _can_join(layer)})
    return f"has a cache that is not joined with that of other rows here ({', '.join(others)})" if others else None


def _cache_layers(config: Any) -> list[type]:
    from transformers import DynamicCache

    return [type(layer) for layer in DynamicCache(config=config).layers]


def _can_join(layer: type) -> bool:
    """Whether the rows of this class of layer can be joined (serve/backends/local/kv_cache.py).

    The class itself must be known: a class derived from one of these has tensors besides.
    """
    from transformers import cache_utils

    return layer in (
        cache_utils.DynamicLayer,
        cache_utils.DynamicSlidingWindowLayer,
        cache_utils.DummyLayer,
        cache_utils.LinearAttentionLayer,
        cache_utils.LinearAttentionAndFullAttentionLayer,
        cache_utils.LinearAttentionAndSlidingWindowAttentionLayer,
    )
