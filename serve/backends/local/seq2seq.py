"""The state of an encoder-decoder base: prompts go through the encoder once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from serve.backends.local.hooks import adapter_hooks
from serve.backends.local.prefix import KVPrefix, SoftPrompt, init_cache_with_prefixes
from serve.backends.local.state import PromptInput, pad
from serve.backends.local.worn import AppliedAdapter

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
