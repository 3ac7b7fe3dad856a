"""Model runner for Llama-like bases: continuous batching with chunked prefill, KV groups and batched LoRA.

KV groups for decoding: the sequences of a group attend together, left-padded to end at the same column. Each group
costs every step a fixed time (its kernel launches), and padding costs time per column. Sequences share a group as long
as their padding costs less than another group would. A group has spare rows and columns, so that a sequence is added or
removed without copying the others.

All running sequences share one forward, whatever their lengths and adapters. Prompts are prefilled in chunks between
decode steps; a prefilled sequence then joins a KV group. Groups share all matrix products and differ
only in attention, so that short sequences are not padded to a very long one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakSet

import torch

from serve.backends.local.batch import PromptInput
from serve.backends.local.fused_llama import AttentionFn, FusedLlama
from serve.backends.local.lora.adapter import AppliedAdapter, LoadedAdapter
from serve.backends.local.lora.batch import BatchedAdapters, LoRAMemoryPool, TokenSpan
from serve.backends.local.prefill import ChunkedPrefill, PrefillSequence, PrefixCache
from serve.backends.local.shared_prefix_attention import SharedPrefixCache, build_shared_prefix

# Columns and rows that a group allocates beyond what it needs.
SPARE_COLUMNS = 32
_SPARE_SEQUENCES = 4
# One more group costs a step about as much as this many padded columns of one sequence (measured on a CPU): it adds two
# matrix products and a softmax per layer with their launch overhead, while a padded column is only memory to read.
MAX_PADDING_TOKENS = 1500
# For a single sequence of at most this many columns, torch's fused attention is faster on a CPU than two products.
_MAX_SDPA_COLUMNS = 256
_sdpa = torch.nn.functional.scaled_dot_product_attention


class DecodeGroup:
    """Left-padded keys and values of several sequences, with spare room.

    One tensor, (layers, 2, sequences, key/value heads, columns, head size): all valid columns of sequence i are
    `columns - lengths[i]` to `columns`, so that a decode step writes the same column for all sequences.
    """

    def __init__(self, model: FusedLlama, kv: Sequence[torch.Tensor]) -> None:
        """Copy `kv[i]`, all keys and values of sequence i in the layout of `PrefillSequence.kv`."""
        layers, heads, size = model.kv_shape
        self._scale = model.scale
        self._mask_value = torch.finfo(model.dtype).min
        self.lengths: list[int] = []
        self.columns = max(kv_of_sequence.shape[3] for kv_of_sequence in kv)
        shape = (layers, 2, len(kv) + _SPARE_SEQUENCES, heads, self.columns + SPARE_COLUMNS, size)
        self._kv = torch.zeros(shape, device=model.device, dtype=model.dtype)
        # Added to the scores: hides the padding and the spare columns.
        self._bias = torch.full((shape[2], 1, 1, shape[4]), self._mask_value, device=model.device, dtype=model.dtype)
        self._layer_views = list(self._kv.unbind(0))
        for kv_of_sequence in kv:
            self.add_sequence(kv_of_sequence)

    @property
    def padding(self) -> int:
        """The number of padded columns of all its sequences."""
        return len(self.lengths) * self.columns - sum(self.lengths)

    def fits(self, kv: Sequence[torch.Tensor]) -> bool:
        """Return whether sequences with these keys and values can be added without copying the others."""
        longest = max(kv_of_sequence.shape[3] for kv_of_sequence in kv)
        return longest <= self.columns and len(self.lengths) + len(kv) <= self._kv.shape[2]

    def add_sequence(self, kv: torch.Tensor) -> None:
        """Add one sequence, which must fit; `kv` is copied."""
        index, length = len(self.lengths), kv.shape[3]
        padding = self.columns - length
        self._kv[:, :, index, :, padding : self.columns] = kv
        self._bias[index] = self._mask_value
        self._bias[index, :, :, padding : self.columns] = 0
        self.lengths.append(length)

    def remove_sequence(self, index: int) -> None:
        """Remove a sequence; the last one moves to its index."""
        last = len(self.lengths) - 1
        if index < last:
            self._kv[:, :, index, :, : self.columns] = self._kv[:, :, last, :, : self.columns]
            self._bias[index] = self._bias[last]
            self.lengths[index] = self.lengths[last]
        self.lengths.pop()

    def kv(self, index: int) -> torch.Tensor:
        """Return a view of one sequence's keys and values in the layout of `PrefillSequence.kv`."""
        return self._kv[:, :, index, :, self.columns - self.lengths[index] : self.columns]

    def begin_step(self) -> None:
        """Add the column that the next forward writes, with new spare columns when none is left."""
        if self.columns == self._kv.shape[4]:
            shape = self._kv.shape
            self._kv = torch.cat([self._kv, self._kv.new_zeros((*shape[:4], SPARE_COLUMNS, shape[5]))], 4)
            self._bias = torch.nn.functional.pad(self._bias, (0, SPARE_COLUMNS), value=self._mask_value)
            self._layer_views = list(self._kv.unbind(0))
        self._bias[..., self.columns] = 0
        self.columns += 1
        self.lengths = [length + 1 for length in self.lengths]

    def attend(self, layer: int, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Store the new keys and values and return each sequence's attention, (sequences, heads, head size)."""
        num_seqs, heads, size = query.shape
        layer_kv, columns = self._layer_views[layer], self.columns
        layer_kv[0, :num_seqs, :, columns - 1] = keys
        layer_kv[1, :num_seqs, :, columns - 1] = values
        groups = keys.shape[1]
        query = query.reshape(num_seqs, groups, heads // groups, size)
        keys, values, bias = layer_kv[0, :num_seqs], layer_kv[1, :num_seqs], self._bias[:num_seqs]
        if query.device.type != "cpu" or (num_seqs == 1 and columns <= _MAX_SDPA_COLUMNS):
            attended = _sdpa(
                query, keys[:, :, :columns], values[:, :, :columns], bias[..., :columns], scale=self._scale
            )
        else:
            attended = self._matmul_attention(query, keys, values, bias)
        return attended.reshape(num_seqs, heads, size)

    def _matmul_attention(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        """Attention as two matrix products: for one query per sequence torch 2.13's fused kernels are slower on a CPU.

        Computed over the spare columns too (the bias hides them): a slice of the columns would not be contiguous and
        oneDNN would copy all keys and values.
        """
        scores = torch.bmm((query * self._scale).flatten(0, 1), keys.flatten(0, 1).transpose(1, 2))
        scores = scores.view(*query.shape[:3], -1).add_(bias)
        probs = scores.softmax(-1)  # accumulates in float32
        return torch.bmm(probs.flatten(0, 1), values.flatten(0, 1)).view(query.shape)


# A sequence's keys and values, and its index in the batch.
_NewSequence = tuple[torch.Tensor, int]


class DecodeBatch:
    """All running sequences, distributed over groups; callers index them 0, 1, ... in the order of arrival.

    A forward computes the sequences group by group. `order` maps a row of that forward to the caller's index; it is
    None when both orders are the same.
    """

    def __init__(self, model: FusedLlama) -> None:
        self._model = model
        self._groups: list[DecodeGroup] = []
        # For each group the callers' indices of its sequences.
        self._members: list[list[int]] = []
        self.order: torch.Tensor | None = None
        self._positions = torch.empty(0)

    def __len__(self) -> int:
        return sum(map(len, self._members))

    def add_sequences(self, kv: Sequence[torch.Tensor]) -> None:
        """Append sequences; their keys and values are copied."""
        number = len(self)
        self._insert([(kv_of_sequence, number + offset) for offset, kv_of_sequence in enumerate(kv)])
        self._update_order()

    def reorder(self, indices: Sequence[int]) -> None:
        """Keep, reorder, drop or repeat sequences: new sequence i is old sequence `indices[i]`."""
        new_numbers: dict[int, list[int]] = {}
        for number, old in enumerate(indices):
            new_numbers.setdefault(old, []).append(number)
        repeated: list[_NewSequence] = []
        for group, members in zip(self._groups, self._members, strict=True):
            for index in reversed(range(len(members))):
                numbers = new_numbers.get(members[index], [])
                if not numbers:
                    group.remove_sequence(index)
                    members[index] = members[-1]
                    members.pop()
                else:
                    members[index] = numbers[0]
                    repeated += [(group.kv(index).clone(), number) for number in numbers[1:]]
        self._insert(repeated + self._drop_padded_groups())
        self._update_order()

    def begin_step(self) -> tuple[torch.Tensor, AttentionFn]:
        """Return the positions of the next tokens, in the order of `order`, and the attention for one forward."""
        positions = self._positions
        self._positions = positions + 1
        for group in self._groups:
            group.begin_step()
        if len(self._groups) == 1:
            return positions, self._groups[0].attend
        ends = torch.tensor([len(members) for members in self._members]).cumsum(0).tolist()
        group_rows = [slice(end - len(members), end) for end, members in zip(ends, self._members, strict=True)]

        def attend(layer: int, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
            return torch.cat(
                [
                    group.attend(layer, query[rows], keys[rows], values[rows])
                    for rows, group in zip(group_rows, self._groups, strict=True)
                ]
            )

        return positions, attend

    def _drop_padded_groups(self) -> list[_NewSequence]:
        """Dissolve empty groups and those with much padding left by removed long sequences; return their sequences."""
        groups = list(zip(self._groups, self._members, strict=True))
        remaining = [(group, members) for group, members in groups if members and group.padding <= MAX_PADDING_TOKENS]
        self._groups, self._members = [group for group, _ in remaining], [members for _, members in remaining]
        return [
            (group.kv(index), number)
            for group, members in groups
            if members and group.padding > MAX_PADDING_TOKENS
            for index, number in enumerate(members)
        ]

    def _insert(self, new_sequences: Sequence[_NewSequence]) -> None:
        """Insert sequences at the lowest cost: clusters of similar length go to an existing group or to a new one."""
        ordered = sorted(new_sequences, key=lambda new_sequence: -new_sequence[0].shape[3])
        lengths = [kv.shape[3] for kv, _ in ordered]
        for cluster in _clusters(lengths):
            kv, numbers = zip(*ordered[cluster], strict=True)
            costs = [_padding([*group.lengths, *lengths[cluster]]) - _padding(group.lengths) for group in self._groups]
            best = min(range(len(costs)), key=costs.__getitem__, default=None)
            if best is None or costs[best] > MAX_PADDING_TOKENS:
                self._groups.append(DecodeGroup(self._model, kv))
                self._members.append(list(numbers))
                continue
            group = self._groups[best]
            if group.fits(kv):
                for kv_of_sequence in kv:
                    group.add_sequence(kv_of_sequence)
            else:
                self._groups[best] = DecodeGroup(self._model, [*map(group.kv, range(len(group.lengths))), *kv])
            self._members[best] += numbers

    def _update_order(self) -> None:
        """Recompute `order` and the position of each sequence's next token."""
        device = self._model.device
        order = [number for members in self._members for number in members]
        self.order = None if order == list(range(len(order))) else torch.tensor(order, device=device)
        self._positions = torch.tensor([n for group in self._groups for n in group.lengths], device=device)


def _padding(lengths: Sequence[int]) -> int:
    """Return the number of padded columns of one group of sequences with these lengths."""
    return len(lengths) * max(lengths, default=0) - sum(lengths)


def _clusters(lengths: Sequence[int]) -> list[slice]:
    """Partition descending `lengths` into groups so that padding plus MAX_PADDING_TOKENS per group is least.

    Dynamic program over prefixes: in descending order an optimal group is a contiguous slice, so the best partition
    of the first n lengths is the best last group [begin, n) behind the best partition of the first `begin`. O(n^2)
    slices for the few sequences that are prefilled at once.
    """
    cheapest: list[tuple[int, int]] = [(0, 0)]  # for the first n lengths: the least cost, and the last group's begin
    for end in range(1, len(lengths) + 1):
        cheapest.append(
            min((cheapest[begin][0] + _padding(lengths[begin:end]) + MAX_PADDING_TOKENS, begin) for begin in range(end))
        )
    cuts = []
    end = len(lengths)
    while end:
        begin = cheapest[end][1]
        cuts.append(slice(begin, end))
        end = begin
    return cuts[::-1]


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
