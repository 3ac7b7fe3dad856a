"""Model runner for Llama-like bases: continuous batching with chunked prefill, KV groups and batched LoRA.

All running sequences share one forward, whatever their lengths and adapters. Prompts are prefilled in chunks between
decode steps; a prefilled sequence then joins a KV group (decode_groups.py). Groups share all matrix products and differ
only in attention, so that short sequences are not padded to a very long one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakSet

import torch

from serve.backends.local.decode_groups import DecodeBatch
from serve.backends.local.fused_llama import FusedLlama
from serve.backends.local.lora.batch import BatchedAdapters, TokenSpan
from serve.backends.local.lora.memory_pool import LoRAMemoryPool
from serve.backends.local.lora.registry import AppliedAdapter, LoadedAdapter
from serve.backends.local.model_runner import PromptInput
from serve.backends.local.prefill import ChunkedPrefill, PrefillSequence
from serve.backends.local.prefix_cache import PrefixCache
from serve.backends.local.shared_prefix_attention import SharedPrefixCache, build_shared_prefix


@dataclass(frozen=True)
class SharedModel:
    """What all runners of one base share; `runners` are those in use, whose adapters must keep their slots."""

    model: FusedLlama
    modules: Mapping[str, torch.nn.Module]
    prefix_cache: PrefixCache
    lora_pool: LoRAMemoryPool
    runners: WeakSet[FusedModelRunner]


def share_model(model: FusedLlama, modules: Mapping[str, torch.nn.Module], prefix_cache: PrefixCache) -> SharedModel:
    """Return the state shared by all runners of a base."""
    # Batched products of LoRA's size are faster in float32 on a CPU, and more precise.
    dtype = torch.float32 if model.device.type == "cpu" else model.dtype
    return SharedModel(model, modules, prefix_cache, LoRAMemoryPool(model.projections, model.device, dtype), WeakSet())


class FusedModelRunner:
    """Implements ModelRunner for a base that `can_fuse`.

    Prefilled sequences stay in `_prefilled` until the first step after their prefill, because `fork` may be called in
    between: it moves them to `_shared_prefix` instead of `_decode_batch`.
    """

    supports_continuous_batching = True

    def __init__(self, shared: SharedModel) -> None:
        self._shared = shared
        self._applied_adapters: list[AppliedAdapter | None] = []
        self._prefilled: list[tuple[PromptInput, PrefillSequence]] = []
        self._decode_batch = DecodeBatch(shared.model)
        self._shared_prefix: SharedPrefixCache | None = None
        self._is_prefilling = False
        self._prefill_prompts: Sequence[PromptInput] = ()
        self._batched_adapters: BatchedAdapters | None = None
        shared.runners.add(self)

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[PromptInput]) -> Iterator[torch.Tensor | None]:
        if self._shared_prefix is not None or self._is_prefilling:
            raise ValueError("A prefill needs a runner that has not forked and is not in another prefill.")
        self._is_prefilling = True
        try:
            self._prefill_prompts = prompts
            self._activate_adapters()
            prefill = ChunkedPrefill(self._shared.model, self._shared.prefix_cache, self._batch_adapters, prompts)
            while not prefill.prefill_chunk():
                yield None
        finally:
            self._is_prefilling = False
            self._prefill_prompts = ()
        self._prefilled += zip(prompts, prefill.sequences, strict=True)
        self._applied_adapters += [prompt.applied_adapter for prompt in prompts]
        self._batched_adapters = None
        yield prefill.logits

    @torch.inference_mode()
    def decode(self, tokens: torch.Tensor) -> torch.Tensor:
        self._merge_prefilled()
        decode_cache: DecodeBatch | SharedPrefixCache = (
            self._decode_batch if self._shared_prefix is None else self._shared_prefix
        )
        order = decode_cache.order
        tokens = tokens.to(self._shared.model.device)
        if self._batched_adapters is None:
            self._batched_adapters = self._batch_adapters(self._spans(order))
        embeddings = self._shared.model.embed(tokens if order is None else tokens[order])
        positions, attend = decode_cache.begin_step()
        logits = self._shared.model.forward(embeddings, positions, attend, self._batched_adapters, None)
        if order is None:
            return logits
        inverse_order = torch.empty_like(order)
        inverse_order[order] = torch.arange(len(order), device=order.device)
        return logits[inverse_order]

    @torch.inference_mode()
    def reorder(self, indices: torch.Tensor) -> None:
        self._merge_prefilled()
        index_list = indices.tolist()
        if self._shared_prefix is not None:
            self._shared_prefix.reorder(indices.to(self._shared.model.device))
        else:
            self._decode_batch.reorder(index_list)
        self._applied_adapters = [self._applied_adapters[index] for index in index_list]
        self._batched_adapters = None
        if not index_list:
            self._shared_prefix = None

    @torch.inference_mode()
    def fork(self) -> None:
        # Beside running sequences a fork is not possible: their samples get copies of the prompt's KV cache.
        if not len(self._decode_batch) and self._prefilled:
            self._shared_prefix = build_shared_prefix(self._shared.model, self._prefilled)
            self._prefilled = []

    def _merge_prefilled(self) -> None:
        """Move the prefilled sequences to the decode groups."""
        if self._prefilled:
            self._decode_batch.add_sequences([sequence.kv for _, sequence in self._prefilled])
            self._prefilled = []
            self._batched_adapters = None

    def adapters(self) -> dict[LoadedAdapter, None]:
        """Return the adapters of its sequences and of the prompts in prefill, without duplicates, in their order."""
        all_applied = (*self._applied_adapters, *(prompt.applied_adapter for prompt in self._prefill_prompts))
        return dict.fromkeys(applied.adapter for applied in all_applied if applied is not None)

    def _activate_adapters(self) -> None:
        """Give the adapters of all sequences slots in the memory pool, without taking those that other runners use."""
        if not any(runner._applied_adapters for runner in self._shared.runners):
            self._shared.lora_pool.release_idle()
        in_use = {adapter for runner in self._shared.runners for adapter in runner.adapters()}
        self._shared.lora_pool.activate(self.adapters(), in_use)
        for runner in self._shared.runners:
            runner._batched_adapters = None  # buffers or slots may have changed

    def _spans(self, order: torch.Tensor | None) -> list[TokenSpan]:
        indices = range(len(self._applied_adapters)) if order is None else order.tolist()
        return [
            (slice(row, row + 1), applied)
            for row, index in enumerate(indices)
            if (applied := self._applied_adapters[index]) is not None
        ]

    def _batch_adapters(self, spans: Sequence[TokenSpan]) -> BatchedAdapters | None:
        if not any(applied.adapter.layers for _, applied in spans):
            return None
        return BatchedAdapters(spans, self._shared.lora_pool, self._shared.model.projections, self._shared.modules)
