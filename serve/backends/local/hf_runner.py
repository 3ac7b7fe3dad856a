"""Model runners over transformers' own forward, and the trial of a base before it serves.

Their sequences share one padded KV cache, so all prompts of a batch are prefilled before any of them decodes.

Trial of a base before it serves: one small batch, compared with one of its rows alone. The configuration shows most
kinds of bases that cannot be served (models/source.py). The trial finds the others: a forward that takes other
arguments, a cache of the model's own, positions that do not follow the mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from errors import BaseModelError
from models.loader import LoadedBase
from models.source import cache_argument, kind_error
from serve.backends.local.batch import ModelRunner, PromptInput, pad
from serve.backends.local.kv_cache import concat_caches, has_keys, has_states, new_cache, pad_left, select_rows
from serve.backends.local.lora.adapter import (
    AppliedAdapter,
    KVPrefix,
    SoftPrompt,
    init_cache_with_prefixes,
    to_kv_prefix,
)
from serve.backends.local.lora.batch import adapter_hooks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Tokens per forward of a long prompt; a cancel takes effect between two chunks. A base with states reads a prompt at
# once: Mamba and Jamba begin each chunk with an empty state.
PREFILL_CHUNK = 512
# Prompts are prefilled together when the shorter one has at least this share of the longer one's tokens,
MIN_LENGTH_RATIO = 0.6
# and while they have at most this many tokens together: their activations should fit a CPU's cache, and attention to a
# single prompt, which has no padding, needs no mask.
MAX_PREFILL_TOKENS = 512

_PrefillResult = tuple[Any, torch.Tensor, torch.Tensor]
# Lengths that are prefilled together (hf_runner.py), so that the second prompt is padded.
_LENGTHS = (5, 3)
# The largest difference of logits, as a share of their spread. Rounding differs with the shape of a batch: in 16 bits
# by a few percent.
_MAX_DIFFERENCE = {torch.float32: 0.01}
_MAX_DIFFERENCE_16_BIT = 0.2


class HFCausalRunner:
    """Implements ModelRunner for a decoder-only base: sequences are left-padded to end at the same column.

    A sequence's prompt prefix is in front of its padding. Position ids count unmasked columns, so that they include the
    prefix and not the padding.
    """

    supports_continuous_batching = False

    def __init__(self, model: PreTrainedModel, pad_token: int, modules: Mapping[str, torch.nn.Module]) -> None:
        self._model: Any = model
        self._pad_token_id = pad_token
        self._modules = modules
        self._cache_argument = cache_argument(model) or "past_key_values"
        self._applied_adapters: list[AppliedAdapter | None] = []
        self._cache: Any = None
        self._mask = torch.empty(0)
        self._next_positions = torch.empty(0)

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[PromptInput]) -> Iterator[torch.Tensor | None]:
        if self._applied_adapters:
            raise ValueError("This runner prefills all sequences at once: it must be empty.")
        groups = self._group_by_length([len(prompt.tokens) for prompt in prompts])
        results: list[_PrefillResult] = []
        for rows in groups:
            for result in self._prefill_group([prompts[row] for row in rows]):
                if result is not None:
                    results.append(result)
                yield None
        order = torch.tensor([row for rows in groups for row in rows], device=self._model.device).argsort()
        self._cache = concat_caches([cache for cache, _, _ in results])
        select_rows(self._cache, order)
        longest = max(mask.shape[1] for _, mask, _ in results)
        self._mask = torch.cat([pad_left(mask, longest, 1) for _, mask, _ in results])[order]
        self._next_positions = self._mask.sum(-1, keepdim=True)
        self._applied_adapters = [prompt.applied_adapter for prompt in prompts]
        yield torch.cat([logits for _, _, logits in results])[order]

    def _group_by_length(self, lengths: Sequence[int]) -> list[list[int]]:
        """Group rows by similar length, within MAX_PREFILL_TOKENS, so that short prompts need little padding.

        Rows of a base with states are grouped with rows of the same length: padding would change their states.
        """
        min_ratio = 1 if has_states(new_cache(self._model.config)) else MIN_LENGTH_RATIO
        groups: list[list[int]] = []
        for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
            longest = lengths[groups[-1][0]] if groups else 0
            fits = groups and (len(groups[-1]) + 1) * longest <= MAX_PREFILL_TOKENS
            if fits and lengths[row] >= min_ratio * longest:
                groups[-1].append(row)
            else:
                groups.append([row])
        return groups

    def _prefill_group(self, prompts: Sequence[PromptInput]) -> Iterator[_PrefillResult | None]:
        """Yield None between chunks, at last the cache, the mask and the last logits of one group."""
        cache = new_cache(self._model.config)
        prefixes = [self._kv_prefix(prompt.applied_adapter) for prompt in prompts]
        prefix_mask = init_cache_with_prefixes(cache, prefixes, self._model.device)
        ids, mask = pad([prompt.tokens for prompt in prompts], self._pad_token_id, left=True)
        ids, mask = ids.to(self._model.device), torch.cat([prefix_mask, mask.to(self._model.device)], dim=1)
        num_prefix_columns = prefix_mask.shape[1]
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, num_prefix_columns:]
        applied_adapters = [prompt.applied_adapter for prompt in prompts]
        logits = torch.empty(0)
        chunk = ids.shape[1] if has_states(cache) else PREFILL_CHUNK
        for begin in range(0, ids.shape[1], chunk):
            if begin:
                yield None
            end = min(begin + chunk, ids.shape[1])
            logits = self._forward(
                cache, applied_adapters, ids[:, begin:end], mask[:, : num_prefix_columns + end], positions[:, begin:end]
            )
        yield cache, mask, logits

    def _kv_prefix(self, applied_adapter: AppliedAdapter | None) -> KVPrefix | None:
        prompt_prefix = None if applied_adapter is None else applied_adapter.adapter.prompt_prefix
        return None if prompt_prefix is None else to_kv_prefix(self._model, prompt_prefix)

    def fork(self) -> None:
        """Do nothing: sequences of one prompt have copies of its KV cache."""

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
        self._applied_adapters = [self._applied_adapters[index] for index in indices.tolist()]
        select_rows(self._cache, indices)
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
                attention_mask=mask if has_keys(cache) else None,
                position_ids=positions,
                use_cache=True,
                logits_to_keep=1,
                **{self._cache_argument: cache},
            )
        return torch.as_tensor(out.logits[:, -1])


class HFSeq2SeqRunner:
    """Implements ModelRunner for an encoder-decoder base: prompts are encoded once, then the decoder generates.

    Virtual tokens are in front of the encoder's input, a key/value prefix in front of the decoder's. Rows without a
    prefix have masked columns instead, so a prefix needs relative positions (T5).
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
        # The mask of the decoder's columns; empty while no row has a prefix, because no mask is needed then.
        self._decoder_mask = torch.empty(0)

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[PromptInput]) -> Iterator[torch.Tensor | None]:
        from transformers import DynamicCache, EncoderDecoderCache

        if self._applied_adapters:
            raise ValueError("This runner prefills all sequences at once: it must be empty.")
        applied_adapters = [prompt.applied_adapter for prompt in prompts]
        prompt_prefixes = [None if applied is None else applied.adapter.prompt_prefix for applied in applied_adapters]
        self._cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        prefixes = [prefix if isinstance(prefix, KVPrefix) else None for prefix in prompt_prefixes]
        self._decoder_mask = init_cache_with_prefixes(self._cache.self_attention_cache, prefixes, self._model.device)
        with adapter_hooks(self._modules, applied_adapters):
            self._encoder_hidden_states = self._encode(
                [prompt.tokens for prompt in prompts],
                [prefix if isinstance(prefix, SoftPrompt) else None for prefix in prompt_prefixes],
            )
        self._applied_adapters = applied_adapters
        yield self.decode(torch.full((len(prompts),), self.decoder_start_token, dtype=torch.long))

    @property
    def decoder_start_token(self) -> int:
        """The token that the decoder begins with."""
        configs = (self._model.generation_config, self._model.config)
        tokens = [getattr(config, "decoder_start_token_id", None) for config in configs]
        return next((int(token) for token in tokens if token is not None), self._pad_token_id)

    def _encode(self, prompts: Sequence[Sequence[int]], soft_prompts: Sequence[SoftPrompt | None]) -> torch.Tensor:
        """Return the encoder's hidden states, (rows, longest, hidden size), with a row's virtual tokens first."""
        encoder = self._model.get_encoder()
        # Padding tokens stand in for virtual tokens; their embeddings are overwritten.
        counts = [0 if soft_prompt is None else len(soft_prompt.embeddings) for soft_prompt in soft_prompts]
        padded = [[self._pad_token_id] * count + list(prompt) for count, prompt in zip(counts, prompts, strict=True)]
        ids, mask = pad(padded, self._pad_token_id, left=False)
        ids, self._encoder_mask = ids.to(self._model.device), mask.to(self._model.device)
        if not any(counts):
            return torch.as_tensor(encoder(input_ids=ids, attention_mask=self._encoder_mask).last_hidden_state)
        embeddings = encoder.get_input_embeddings()(ids)
        for row, soft_prompt in enumerate(soft_prompts):
            if soft_prompt is not None:
                embeddings[row, : counts[row]] = soft_prompt.embeddings
        return torch.as_tensor(encoder(inputs_embeds=embeddings, attention_mask=self._encoder_mask).last_hidden_state)

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
        """Do nothing: the decoder's own cache is short, and the encoder's states are copied for each sequence."""

    @torch.inference_mode()
    def reorder(self, indices: torch.Tensor) -> None:
        rows = indices.to(self._model.device)
        self._applied_adapters = [self._applied_adapters[index] for index in indices.tolist()]
        self._cache.batch_select_indices(rows)
        self._encoder_hidden_states, self._encoder_mask, self._decoder_mask = (
            self._encoder_hidden_states[rows],
            self._encoder_mask[rows],
            self._decoder_mask[rows],
        )


@torch.inference_mode()
def check_batch(loaded: LoadedBase, make_runner: Callable[[], ModelRunner]) -> None:
    """Raise BaseModelError unless the base runs in a batch, and answers there as it does alone."""
    model: Any = loaded.model
    vocabulary = model.get_input_embeddings().num_embeddings
    prompts = [tuple((7 * step + 31 * length) % vocabulary for step in range(length)) for length in _LENGTHS]
    try:
        difference = _difference(model, make_runner(), prompts)
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines()
        detail = f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
        raise _trial_error(loaded, f"does not run in a batch here ({detail.rstrip('.:')})") from error
    if not difference <= _MAX_DIFFERENCE.get(model.dtype, _MAX_DIFFERENCE_16_BIT):  # NaN: no
        raise _trial_error(loaded, "gives other answers in a batch than alone")


def _trial_error(loaded: LoadedBase, reason: str) -> BaseModelError:
    base = loaded.identity
    return kind_error(base.id, loaded.model.config.model_type, reason, quantized=base.quantization != "none")


def _difference(model: Any, runner: ModelRunner, prompts: list[tuple[int, ...]]) -> float:
    """Return the difference of the padded prompt's second logits from those of the prompt alone."""
    first_logits = list(runner.prefill([PromptInput(prompt) for prompt in prompts]))[-1]
    if first_logits is None:
        raise ValueError("A prefill ended without logits.")
    tokens = first_logits.argmax(-1)
    in_batch = runner.decode(tokens)[1].float()
    prompt, token = list(prompts[1]), int(tokens[1])
    if isinstance(runner, HFSeq2SeqRunner):
        inputs = {"input_ids": prompt, "decoder_input_ids": [runner.decoder_start_token, token]}
    else:
        inputs = {"input_ids": [*prompt, token]}
    ids = {name: torch.tensor([values], device=model.device) for name, values in inputs.items()}
    alone = model(**ids, attention_mask=torch.ones_like(ids["input_ids"]), use_cache=False).logits[0, -1].float()
    return float((in_batch - alone).norm() / (alone - alone.mean()).norm())
