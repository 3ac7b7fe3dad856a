"""Row prefixes: keys and values that stand before a line's prompt as if they had been read.

Prompt tuning (arXiv 2104.08691) and Prefix tuning (arXiv 2101.00190) are the same thing here: the virtual tokens of
the first are read by the bare base when they are first worn, the second brings its keys and values along. Rows with
and without a prefix share a batch.
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
    """Keys and values of every layer, each (heads, places, head size); the places are 0, 1, ... of the line."""

    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]

    def __len__(self) -> int:
        return self.keys[0].shape[1]


@dataclass(frozen=True)
class SoftPrompt:
    """Virtual tokens that stand before what the base, or its encoder, reads, (tokens, hidden size)."""

    embeddings: torch.Tensor


PromptPrefix = KVPrefix | SoftPrompt


def prompt_tuning(model: PreTrainedModel, config: Any, embeddings: torch.Tensor, name: str) -> PromptPrefix:
    """What `embeddings`, (tokens, hidden size) as PEFT saves them, put before a prompt; read when first worn."""
    # The second half, where there is one, is for the decoder: PEFT keeps it and does not use it.
    embeddings = embeddings[: config["num_virtual_tokens"]]
    place = model.get_input_embeddings().weight
    _check_cache(model, name)
    return SoftPrompt(embeddings.to(place.device, place.dtype))


def prefix_tuning(model: PreTrainedModel, config: Any, flat: torch.Tensor, name: str) -> KVPrefix:
    """The prefix in `flat`, (tokens, layers * 2 * heads * head size), laid out as `PeftModel.get_prompt` does.

    On encoder-decoder bases it stands before the decoder's own tokens.
    """
    layers, places = config["num_layers"], list(range(config["num_layers"]))
    if model.config.is_encoder_decoder:
        if not hasattr(model.config, "relative_attention_num_buckets"):
            raise AdapterError(
                f"Adapter '{name}' is a Prefix tuning adapter of an encoder-decoder base that counts places from the "
                "start, where only bases like T5 are served: train a LoRA, IA3 or Prompt tuning adapter instead."
            )
        # PEFT deals the layers out in fours, for the decoder's own attention and for that to the encoder, and drops
        # the second half. So layer i finds its keys where twice i is written.
        places = [2 * place % layers for place in places]
    _check_cache(model, name)
    heads = config["num_attention_heads"]
    pairs = flat.view(len(flat), layers, 2, heads, -1).permute(1, 2, 3, 0, 4)[places]
    keys, values = (tuple(pair[side].to(model.device, model.dtype).contiguous() for pair in pairs) for side in (0, 1))
    kept = _kv_heads(model.config.get_text_config())
    if (heads, keys[0].shape[2]) != kept:
        raise AdapterError(
            f"Adapter '{name}' has a prefix of {heads} heads of {keys[0].shape[2]} and the base keeps "
            f"{kept[0]} of {kept[1]}: train it again on this base."
        )
    return KVPrefix(keys, values)


def _kv_heads(config: Any) -> tuple[int, int]:
    """How many heads of keys a base of this configuration keeps, and their size."""
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or getattr(config, "d_kv", None) or config.hidden_size // heads
    return getattr(config, "num_key_value_heads", None) or heads, size


def _check_cache(model: Any, name: str) -> None:
    if not model.config.is_encoder_decoder and not is_plain(new_cache(model.config)):
        raise AdapterError(
            f"Adapter '{name}' puts virtual tokens before the prompt, and this base forgets what stands far back "
            "(a sliding window): train a LoRA or IA3 adapter instead."
        )


@torch.inference_mode()
def to_kv_prefix(model: Any, prompt_prefix: PromptPrefix) -> KVPrefix:
    """Keys and values of what stands before a prompt of a decoder-only base; the bare base reads virtual tokens."""
    if isinstance(prompt_prefix, KVPrefix):
        return prompt_prefix
    cache = new_cache(model.config)
    model(inputs_embeds=prompt_prefix.embeddings[None], past_key_values=cache, use_cache=True, logits_to_keep=1)
    return KVPrefix(
        tuple(layer.keys[0].clone() for layer in cache.layers), tuple(layer.values[0].clone() for layer in cache.layers)
    )


def init_cache_with_prefixes(cache: Any, prefixes: Sequence[KVPrefix | None], device: torch.device) -> torch.Tensor:
    """Puts each line's prefix into an empty cache; the mask of what it then holds, (lines, columns).

    Prefixes end at the same column; the columns of lines with a shorter one, or none, are masked.
    """
    columns = max((len(prefix) for prefix in prefixes if prefix is not None), default=0)
    mask = torch.zeros((len(prefixes), columns), dtype=torch.long, device=device)
    like = next((prefix for prefix in prefixes if prefix is not None), None)
    if like is None:
        return mask
    for number, (key, value) in enumerate(zip(like.keys, like.values, strict=True)):
        keys = key.new_zeros((len(prefixes), key.shape[0], columns, key.shape[2]))
        values = value.new_zeros((len(prefixes), value.shape[0], columns, value.shape[2]))
        for line, prefix in enumerate(prefixes):
            if prefix is not None:
                keys[line, :, columns - len(prefix) :] = prefix.keys[number]
                values[line, :, columns - len(prefix) :] = prefix.values[number]
                mask[line, columns - len(prefix) :] = 1
        cache.update(keys, values, number)
    return mask
