"""Prompt learning: prompt tuning and prefix tuning as keys and values in front of a row's prompt.

The virtual tokens of prompt tuning (arXiv 2104.08691) are computed by the bare base when they are first used; prefix
tuning (arXiv 2101.00190) stores keys and values. Rows with and without a prefix share a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from errors import AdapterError
from serve.backends.local.kv_cache import is_plain, new_cache

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class KVPrefix:
    """Keys and values of every layer, each (heads, positions, head size), at positions 0, 1, ... of the row."""

    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]

    def __len__(self) -> int:
        return self.keys[0].shape[1]


@dataclass(frozen=True)
class SoftPrompt:
    """Embeddings of virtual tokens, (tokens, hidden size), in front of the input of the base or of its encoder."""

    embeddings: torch.Tensor


PromptPrefix = KVPrefix | SoftPrompt


def prompt_tuning(model: PreTrainedModel, config: Any, embeddings: torch.Tensor, name: str) -> PromptPrefix:
    """Return the prefix of a prompt tuning adapter from `embeddings`, (tokens, hidden size) as PEFT saves them."""
    # For encoder-decoder bases PEFT saves a second half for the decoder and does not use it.
    embeddings = embeddings[: config["num_virtual_tokens"]]
    embedding_weight = model.get_input_embeddings().weight
    _check_cache(model, name)
    return SoftPrompt(embeddings.to(embedding_weight.device, embedding_weight.dtype))


def prefix_tuning(model: PreTrainedModel, config: Any, flat: torch.Tensor, name: str) -> KVPrefix:
    """Return the prefix in `flat`, (tokens, layers * 2 * heads * head size), with the layout of `PeftModel.get_prompt`.

    On encoder-decoder bases it is in front of the decoder's own tokens. Raises AdapterError where the base cannot use
    it.
    """
    layers, layer_order = config["num_layers"], list(range(config["num_layers"]))
    if model.config.is_encoder_decoder:
        if not hasattr(model.config, "relative_attention_num_buckets"):
            raise AdapterError(
                f"Adapter '{name}' is a Prefix tuning adapter of an encoder-decoder base with absolute positions, and "
                "only bases like T5 are served with one: train a LoRA, IA3 or Prompt tuning adapter instead."
            )
        # For encoder-decoder bases PEFT splits the saved layers into groups for self-attention and cross-attention and
        # drops the second ones. So layer i uses the keys that are saved as layer 2 i modulo the number of layers.
        layer_order = [2 * layer % layers for layer in layer_order]
    _check_cache(model, name)
    heads = config["num_attention_heads"]
    pairs = flat.view(len(flat), layers, 2, heads, -1).permute(1, 2, 3, 0, 4)[layer_order]
    keys, values = (tuple(pair[side].to(model.device, model.dtype).contiguous() for pair in pairs) for side in (0, 1))
    base_shape = _kv_heads(model.config.get_text_config())
    if (heads, keys[0].shape[2]) != base_shape:
        raise AdapterError(
            f"Adapter '{name}' has a prefix of {heads} heads of size {keys[0].shape[2]} and the base has "
            f"{base_shape[0]} heads of size {base_shape[1]}: train it again on this base."
        )
    return KVPrefix(keys, values)


def _kv_heads(config: Any) -> tuple[int, int]:
    """Return the number of key/value heads of a base and their size."""
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or getattr(config, "d_kv", None) or config.hidden_size // heads
    return getattr(config, "num_key_value_heads", None) or heads, size


def _check_cache(model: Any, name: str) -> None:
    if not model.config.is_encoder_decoder and not is_plain(new_cache(model.config)):
        raise AdapterError(
            f"Adapter '{name}' puts virtual tokens before the prompt, and this base does not keep the keys and values "
            "of tokens far back (it has a sliding window, or states): train a LoRA or IA3 adapter instead."
        )


@torch.inference_mode()
def to_kv_prefix(model: Any, prompt_prefix: PromptPrefix) -> KVPrefix:
    """Return the prefix as keys and values; those of virtual tokens are computed by the bare decoder-only base."""
    if isinstance(prompt_prefix, KVPrefix):
        return prompt_prefix
    cache = new_cache(model.config)
    model(inputs_embeds=prompt_prefix.embeddings[None], past_key_values=cache, use_cache=True, logits_to_keep=1)
    return KVPrefix(
        tuple(layer.keys[0].clone() for layer in cache.layers), tuple(layer.values[0].clone() for layer in cache.layers)
    )


def init_cache_with_prefixes(cache: Any, prefixes: Sequence[KVPrefix | None], device: torch.device) -> torch.Tensor:
    """Put each row's prefix into an empty cache and return the mask of its columns, (rows, columns).

    Prefixes end at the same column; rows with a shorter one, or none, have masked columns in front.
    """
    columns = max((len(prefix) for prefix in prefixes if prefix is not None), default=0)
    mask = torch.zeros((len(prefixes), columns), dtype=torch.long, device=device)
    example = next((prefix for prefix in prefixes if prefix is not None), None)
    if example is None:
        return mask
    for number, (key, value) in enumerate(zip(example.keys, example.values, strict=True)):
        keys = key.new_zeros((len(prefixes), key.shape[0], columns, key.shape[2]))
        values = value.new_zeros((len(prefixes), value.shape[0], columns, value.shape[2]))
        for row, prefix in enumerate(prefixes):
            if prefix is not None:
                keys[row, :, columns - len(prefix) :] = prefix.keys[number]
                values[row, :, columns - len(prefix) :] = prefix.values[number]
                mask[row, columns - len(prefix) :] = 1
        cache.update(keys, values, number)
    return mask
