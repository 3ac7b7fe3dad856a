"""The state of a Llama-like base: every line in one forward, whatever its length, its adapter and its past.

Prompts are read in pieces between the steps of the lines that speak. What was read of a line becomes part of a group
of lines; groups share all products and differ only in how they attend. So a line joins while others speak, and a
short line is not padded to a very long one.
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
    """What all states of one base share."""

    model: FusedLlama
    modules: Mapping[str, torch.nn.Module]
    prefix_cache: PrefixCache
    lora_pool: LoRAMemoryPool
    runners: WeakSet[FusedModelRunner]


def share_model(model: FusedLlama, modules: Mapping[str, torch.nn.Module], prefix_cache: PrefixCache) -> SharedModel:
    """What the states of a base are made from."""
    # Batched products of LoRA's size are quicker in float32 on a CPU, and more exact besides.
    dtype = torch.float32 if model.device.type == "cpu" else model.dtype
    return SharedModel(model, modules, prefix_cache, LoRAMemoryPool(model.projections, model.device, dtype), WeakSet())


class FusedModelRunner:
    """Lines of a base that `can_fuse`; see state.py."""

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
            raise ValueError("Lines join neither those that have branched nor those that are being read.")
        self._is_prefilling = True
        try:
            self._prefill_prompts = prompts
            self._activate_adapters()
            reader = ChunkedPrefill(self._shared.model, self._shared.prefix_cache, self._batch_adapters, prompts)
            while not reader.prefill_chunk():
                yield None
        finally:
            self._is_prefilling = False
            self._prefill_prompts = ()
        self._prefilled += zip(prompts, reader.sequences, strict=True)
        self._applied_adapters += [line.applied_adapter for line in prompts]
        self._batched_adapters = None
        yield reader.logits

    @torch.inference_mode()
    def decode(self, tokens: torch.Tensor) -> torch.Tensor:
        self._merge_prefilled()
        speaking: DecodeBatch | SharedPrefixCache = (
            self._decode_batch if self._shared_prefix is None else self._shared_prefix
        )
        order = speaking.order
        tokens = tokens.to(self._shared.model.device)
        if self._batched_adapters is None:
            self._batched_adapters = self._batch_adapters(self._spans(order))
        embedded = self._shared.model.embed(tokens if order is None else tokens[order])
        places, attend = speaking.begin_step()
        logits = self._shared.model.forward(embedded, places, attend, self._batched_adapters, None)
        if order is None:
            return logits
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        return logits[back]

    @torch.inference_mode()
    def reorder(self, indices: torch.Tensor) -> None:
        self._merge_prefilled()
        chosen = indices.tolist()
        if self._shared_prefix is not None:
            self._shared_prefix.reorder(indices.to(self._shared.model.device))
        else:
            self._decode_batch.reorder(chosen)
        self._applied_adapters = [self._applied_adapters[line] for line in chosen]
        self._batched_adapters = None
        if not chosen:
            self._shared_prefix = None

    @torch.inference_mode()
    def fork(self) -> None:
        # Lines that speak already, beside others, have copies instead.
        if not len(self._decode_batch) and self._prefilled:
            self._shared_prefix = build_shared_prefix(self._shared.model, self._prefilled)
            self._prefilled = []

    def _merge_prefilled(self) -> None:
        """Lets what was just read speak."""
        if self._prefilled:
            self._decode_batch.add_sequences([reading.kv for _, reading in self._prefilled])
            self._prefilled = []
            self._batched_adapters = None

    def adapters(self) -> dict[LoadedAdapter, None]:
        """What its lines wear, those that are being read too, each once and in their order."""
        worn = (*self._applied_adapters, *(line.applied_adapter for line in self._prefill_prompts))
        return dict.fromkeys(each.adapter for each in worn if each is not None)

    def _activate_adapters(self) -> None:
        """Gives the adapters of all lines their place in the rack, beside those of other states."""
        if not any(state._applied_adapters for state in self._shared.runners):
            self._shared.lora_pool.release_idle()
        held = {adapter for state in self._shared.runners for adapter in state.adapters()}
        self._shared.lora_pool.activate(self.adapters(), held)
        for state in self._shared.runners:
            state._batched_adapters = None  # the stacks may have grown

    def _spans(self, order: torch.Tensor | None) -> list[TokenSpan]:
        lines = range(len(self._applied_adapters)) if order is None else order.tolist()
        return [
            (slice(place, place + 1), worn)
            for place, line in enumerate(lines)
            if (worn := self._applied_adapters[line]) is not None
        ]

    def _batch_adapters(self, spans: Sequence[TokenSpan]) -> BatchedAdapters | None:
        if not any(worn.adapter.layers for _, worn in spans):
            return None
        return BatchedAdapters(spans, self._shared.lora_pool, self._shared.model.projections, self._shared.modules)
