"""The state of an encoder-decoder base: prompts go through the encoder once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from serve.backends.local.hooks import dressed
from serve.backends.local.prefix import Prefix, Virtual, begin_cache
from serve.backends.local.state import Line, pad
from serve.backends.local.worn import Worn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Seq2SeqState:
    """Rows of an encoder-decoder base: prompts are encoded once, the decoder starts from its start token.

    Virtual tokens stand before the encoder's input, a prefix before the decoder's. Such a base must know places by
    their distance alone (T5): rows without a prefix have masked columns where others have one.
    """

    joins = False

    def __init__(self, model: PreTrainedModel, pad_token: int, modules: Mapping[str, torch.nn.Module]) -> None:
        self._model: Any = model
        self._pad = pad_token
        self._modules = modules
        self._worn: list[Worn | None] = []
        self._cache: Any = None
        self._encoded = torch.empty(0)
        self._mask = torch.empty(0)
        # What of the decoder's columns each row may see; empty while all rows see all, which needs no mask.
        self._seen = torch.empty(0)

    @torch.inference_mode()
    def read(self, lines: Sequence[Line]) -> Iterator[torch.Tensor | None]:
        from transformers import DynamicCache, EncoderDecoderCache

        if self._worn:
            raise ValueError("Lines of this base are read together.")
        worn = [line.worn for line in lines]
        ahead = [None if each is None else each.adapter.ahead for each in worn]
        self._cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        prefixes = [each if isinstance(each, Prefix) else None for each in ahead]
        self._seen = begin_cache(self._cache.self_attention_cache, prefixes, self._model.device)
        with dressed(self._modules, worn):
            self._encoded = self._encode(
                [line.tokens for line in lines], [each if isinstance(each, Virtual) else None for each in ahead]
            )
        self._worn = worn
        config = self._model.config
        first = self._model.generation_config.decoder_start_token_id
        first = getattr(config, "decoder_start_token_id", None) if first is None else first
        yield self.step(torch.full((len(lines),), self._pad if first is None else first, dtype=torch.long))

    def _encode(self, prompts: Sequence[Sequence[int]], ahead: Sequence[Virtual | None]) -> torch.Tensor:
        """The encoder's states, (rows, longest, hidden); virtual tokens come first, where a row has them."""
        encoder = self._model.get_encoder()
        # Room for virtual tokens is made with padding tokens, whose embeddings are then written over.
        counts = [0 if virtual is None else len(virtual.embeddings) for virtual in ahead]
        padded = [[self._pad] * count + list(prompt) for count, prompt in zip(counts, prompts, strict=True)]
        ids, mask = pad(padded, self._pad, left=False)
        ids, self._mask = ids.to(self._model.device), mask.to(self._model.device)
        if not any(counts):
            return torch.as_tensor(encoder(input_ids=ids, attention_mask=self._mask).last_hidden_state)
        embedded = encoder.get_input_embeddings()(ids)
        for row, virtual in enumerate(ahead):
            if virtual is not None:
                embedded[row, : counts[row]] = virtual.embeddings
        return torch.as_tensor(encoder(inputs_embeds=embedded, attention_mask=self._mask).last_hidden_state)

    @torch.inference_mode()
    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        from transformers.modeling_outputs import BaseModelOutput

        if self._seen.numel():
            self._seen = torch.cat([self._seen, self._seen.new_ones((len(tokens), 1))], dim=1)
        with dressed(self._modules, self._worn):
            out = self._model(
                encoder_outputs=BaseModelOutput(last_hidden_state=self._encoded),
                attention_mask=self._mask,
                decoder_input_ids=tokens.to(self._model.device)[:, None],
                decoder_attention_mask=self._seen if self._seen.numel() else None,
                past_key_values=self._cache,
                use_cache=True,
            )
        return torch.as_tensor(out.logits[:, -1])

    def branch(self) -> None:
        """The decoder's own cache is short; the encoder's states are copied for each line."""

    @torch.inference_mode()
    def select(self, lines: torch.Tensor) -> None:
        rows = lines.to(self._model.device)
        self._worn = [self._worn[line] for line in lines.tolist()]
        self._cache.batch_select_indices(rows)
        self._encoded, self._mask, self._seen = self._encoded[rows], self._mask[rows], self._seen[rows]
