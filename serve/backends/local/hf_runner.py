"""Runners over transformers' own forward (causal, seq2seq).

The state of a decoder-only base whose own forward computes: prompts padded on the left, in one cache.

The state of an encoder-decoder base: prompts go through the encoder once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from serve.backends.local.kv_cache import is_plain, new_cache
from serve.backends.local.lora.batch import adapter_hooks
from serve.backends.local.lora.prompt_learning import KVPrefix, SoftPrompt, init_cache_with_prefixes, to_kv_prefix
from serve.backends.local.lora.registry import AppliedAdapter
from serve.backends.local.model_runner import PromptInput, pad

if TYPE_CHECKING:
    from transformers import PreTrainedModel


# A prompt is read in pieces, so that a cancel during a long one takes effect between two of them.
PREFILL_CHUNK = 512
# Prompts are read together when the shorter one has at least this share of the longer one's tokens,
MIN_LENGTH_RATIO = 0.6
# and while they are no more tokens than this: what comes of them should fit a CPU's cache, and prompts that are read
# alone have no padding, so that attention needs no mask.
MAX_PREFILL_TOKENS = 512

_PrefillResult = tuple[Any, torch.Tensor, torch.Tensor]


class HFCausalRunner:
    """Lines of a decoder-only base, padded on the left so that all of them end at the same column.

    A line's prefix stands before its padding. Its place counts, the padding's does not: position ids follow the mask.
    """

    supports_continuous_batching = False

    def __init__(self, model: PreTrainedModel, pad_token: int, modules: Mapping[str, torch.nn.Module]) -> None:
        self._model: Any = model
        self._pad_token_id = pad_token
        self._modules = modules
        self._applied_adapters: list[AppliedAdapter | None] = []
        self._cache: Any = None
        self._mask = torch.empty(0)
        self._next_positions = torch.empty(0)

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[PromptInput]) -> Iterator[torch.Tensor | None]:
        if self._applied_adapters:
            raise ValueError("Lines of this base are read together.")
        groups = self._group_by_length([len(line.tokens) for line in prompts])
        parts: list[_PrefillResult] = []
        for rows in groups:
            for part in self._prefill_group([prompts[row] for row in rows]):
                if part is not None:
                    parts.append(part)
                yield None
        order = torch.tensor([row for rows in groups for row in rows], device=self._model.device).argsort()
        self._cache = self._concat_caches([cache for cache, _, _ in parts], order)
        longest = max(mask.shape[1] for _, mask, _ in parts)
        self._mask = torch.cat([_pad_left(mask, longest, 1) for _, mask, _ in parts])[order]
        self._next_positions = self._mask.sum(-1, keepdim=True)
        self._applied_adapters = [line.applied_adapter for line in prompts]
        yield torch.cat([logits for _, _, logits in parts])[order]

    def _group_by_length(self, lengths: Sequence[int]) -> list[list[int]]:
        """Rows by similar length, so that a short prompt is not padded to a prompt with examples; few if they are long.

        Caches other than plain ones (a sliding window, say) cannot be joined: then all rows are one group.
        """
        order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
        if not is_plain(new_cache(self._model.config)):
            return [order]
        groups: list[list[int]] = []
        for row in order:
            longest = lengths[groups[-1][0]] if groups else 0
            fits = groups and (len(groups[-1]) + 1) * longest <= MAX_PREFILL_TOKENS
            if fits and lengths[row] >= MIN_LENGTH_RATIO * longest:
                groups[-1].append(row)
            else:
                groups.append([row])
        return groups

    def _prefill_group(self, prompts: Sequence[PromptInput]) -> Iterator[_PrefillResult | None]:
        """Cache, mask and last logits of one group; None between its pieces."""
        cache = new_cache(self._model.config)
        prefixes = [self._kv_prefix(line.applied_adapter) for line in prompts]
        known = init_cache_with_prefixes(cache, prefixes, self._model.device)
        ids, mask = pad([line.tokens for line in prompts], self._pad_token_id, left=True)
        ids, mask = ids.to(self._model.device), torch.cat([known, mask.to(self._model.device)], dim=1)
        before = known.shape[1]
        places = (mask.cumsum(-1) - 1).clamp(min=0)[:, before:]
        worn = [line.applied_adapter for line in prompts]
        logits = torch.empty(0)
        for begin in range(0, ids.shape[1], PREFILL_CHUNK):
            if begin:
                yield None
            end = min(begin + PREFILL_CHUNK, ids.shape[1])
            logits = self._forward(cache, worn, ids[:, begin:end], mask[:, : before + end], places[:, begin:end])
        yield cache, mask, logits

    def _kv_prefix(self, applied_adapter: AppliedAdapter | None) -> KVPrefix | None:
        ahead = None if applied_adapter is None else applied_adapter.adapter.prompt_prefix
        return None if ahead is None else to_kv_prefix(self._model, ahead)

    def _concat_caches(self, caches: list[Any], order: torch.Tensor) -> Any:
        """One cache of all rows: shorter groups get blank columns on the left, which the mask hides."""
        if len(caches) == 1:
            caches[0].batch_select_indices(order)
            return caches[0]
        joined = new_cache(self._model.config)
        longest = max(cache.get_seq_length() for cache in caches)
        for number in range(len(caches[0].layers)):
            pairs = []
            for kind in ("keys", "values"):
                parts = [getattr(cache.layers[number], kind) for cache in caches]
                pairs.append(torch.cat([_pad_left(part, longest, 2) for part in parts])[order])
            joined.update(pairs[0], pairs[1], number)
        return joined

    def fork(self) -> None:
        """Lines of one prompt copy its cache."""

    @torch.inference_mode()
    def decode(self, tokens: torch.Tensor) -> torch.Tensor:
        ids = tokens.to(self._model.device)[:, None]
        self._mask = torch.cat([self._mask, self._mask.new_ones((len(tokens), 1))], dim=1)
        logits = self._forward(self._cache, self._applied_adapters, ids, self._mask, self._next_positions)
        self._next_positions = self._next_positions + 1
        return logits

    @torch.inference_mode()
    def reorder(self, indices: torch.Tensor) -> None:
        indices = indices.to(self._model.device)
        self._applied_adapters = [self._applied_adapters[line] for line in indices.tolist()]
        self._cache.batch_select_indices(indices)
        self._next_positions, self._mask = self._next_positions[indices], self._mask[indices]

    def _forward(
        self,
        cache: Any,
        applied_adapters: Sequence[AppliedAdapter | None],
        ids: torch.Tensor,
        mask: torch.Tensor,
        positions: torch.Tensor,
    ) -> torch.Tensor:
        with adapter_hooks(self._modules, applied_adapters):
            out = self._model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        return torch.as_tensor(out.logits[:, -1])


def _pad_left(part: torch.Tensor, columns: int, dim: int) -> torch.Tensor:
    """`part` with blank columns on the left."""
    shape = list(part.shape)
    shape[dim] = columns - shape[dim]
    return torch.cat([part.new_zeros(shape), part], dim)


class HFSeq2SeqRunner:
    """Rows of an encoder-decoder base: prompts are encoded once, the decoder starts from its start token.

    Virtual tokens stand before the encoder's input, a prefix before the decoder's. Such a base must know places by
    their distance alone (T5): rows without a prefix have masked columns where others have one.
    """

    supports_continuous_batching = False

    def __init__(self, model: PreTrainedModel, pad_token: int, modules: Mapping[str, torch.nn.Module]) -> None:
        self._model: Any = model
        self._pad_token_id = pad_token
        self._modules = modules
        self._applied_adapters: list[AppliedAdapter | None] = []
        self._cache: Any = None
        self._encoder_hidden_states = torch.empty(0)
        self._encoder_mask = torch.empty(0)
        # What of the decoder's columns each row may see; empty while all rows see all, which needs no mask.
        self._decoder_mask = torch.empty(0)

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[PromptInput]) -> Iterator[torch.Tensor | None]:
        from transformers import DynamicCache, EncoderDecoderCache

        if self._applied_adapters:
            raise ValueError("Lines of this base are read together.")
        worn = [line.applied_adapter for line in prompts]
        ahead = [None if each is None else each.adapter.prompt_prefix for each in worn]
        self._cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        prefixes = [each if isinstance(each, KVPrefix) else None for each in ahead]
        self._decoder_mask = init_cache_with_prefixes(self._cache.self_attention_cache, prefixes, self._model.device)
        with adapter_hooks(self._modules, worn):
            self._encoder_hidden_states = self._encode(
                [line.tokens for line in prompts], [each if isinstance(each, SoftPrompt) else None for each in ahead]
            )
        self._applied_adapters = worn
        config = self._model.config
        first = self._model.generation_config.decoder_start_token_id
        first = getattr(config, "decoder_start_token_id", None) if first is None else first
        yield self.decode(torch.full((len(prompts),), self._pad_token_id if first is None else first, dtype=torch.long))

    def _encode(self, prompts: Sequence[Sequence[int]], soft_prompts: Sequence[SoftPrompt | None]) -> torch.Tensor:
        """The encoder's states, (rows, longest, hidden); virtual tokens come first, where a row has them."""
        encoder = self._model.get_encoder()
        # Room for virtual tokens is made with padding tokens, whose embeddings are then written over.
        counts = [0 if virtual is None else len(virtual.embeddings) for virtual in soft_prompts]
        padded = [[self._pad_token_id] * count + list(prompt) for count, prompt in zip(counts, prompts, strict=True)]
        ids, mask = pad(padded, self._pad_token_id, left=False)
        ids, self._encoder_mask = ids.to(self._model.device), mask.to(self._model.device)
        if not any(counts):
            return torch.as_tensor(encoder(input_ids=ids, attention_mask=self._encoder_mask).last_hidden_state)
        embedded = encoder.get_input_embeddings()(ids)
        for row, virtual in enumerate(soft_prompts):
            if virtual is not None:
                embedded[row, : counts[row]] = virtual.embeddings
        return torch.as_tensor(encoder(inputs_embeds=embedded, attention_mask=self._encoder_mask).last_hidden_state)

    @torch.inference_mode()
    def decode(self, tokens: torch.Tensor) -> torch.Tensor:
        from transformers.modeling_outputs import BaseModelOutput

        if self._decoder_mask.numel():
            self._decoder_mask = torch.cat([self._decoder_mask, self._decoder_mask.new_ones((len(tokens), 1))], dim=1)
        with adapter_hooks(self._modules, self._applied_adapters):
            out = self._model(
                encoder_outputs=BaseModelOutput(last_hidden_state=self._encoder_hidden_states),
                attention_mask=self._encoder_mask,
                decoder_input_ids=tokens.to(self._model.device)[:, None],
                decoder_attention_mask=self._decoder_mask if self._decoder_mask.numel() else None,
                past_key_values=self._cache,
                use_cache=True,
            )
        return torch.as_tensor(out.logits[:, -1])

    def fork(self) -> None:
        """The decoder's own cache is short; the encoder's states are copied for each line."""

    @torch.inference_mode()
    def reorder(self, indices: torch.Tensor) -> None:
        rows = indices.to(self._model.device)
        self._applied_adapters = [self._applied_adapters[line] for line in indices.tolist()]
        self._cache.batch_select_indices(rows)
        self._encoder_hidden_states, self._encoder_mask, self._decoder_mask = (
            self._encoder_hidden_states[rows],
            self._encoder_mask[rows],
            self._decoder_mask[rows],
        )
