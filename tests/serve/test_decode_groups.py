"""KV groups for decoding: grouping of sequences, and attention of each sequence to its own tokens only."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from serve.backends.local.fused_runner import MAX_PADDING_TOKENS, SPARE_COLUMNS, DecodeBatch

HEADS, SIZE = 2, 4


def _model() -> Any:
    return SimpleNamespace(kv_shape=(1, HEADS, SIZE), scale=0.5, device=torch.device("cpu"), dtype=torch.float32)


class GroupsWithReference:
    """A DecodeBatch of random keys and values, with a copy for each sequence as the reference."""

    def __init__(self, seed: int) -> None:
        self.groups = DecodeBatch(_model())
        self.sequences: list[torch.Tensor] = []
        self._noise = torch.Generator().manual_seed(seed)

    def _random(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self._noise)

    def add(self, *lengths: int) -> None:
        kv = [self._random(1, 2, HEADS, length, SIZE) for length in lengths]
        self.groups.add_sequences(kv)
        self.sequences += kv

    def select(self, sequences: list[int]) -> None:
        self.groups.reorder(sequences)
        self.sequences = [self.sequences[index] for index in sequences]

    def step(self) -> None:
        """Run one step; each sequence must attend to its own past and its new position only."""
        count = len(self.sequences)
        query, keys, values = (self._random(count, heads, SIZE) for heads in (2 * HEADS, HEADS, HEADS))
        order = self.groups.order
        batch_order = torch.arange(count) if order is None else order
        positions, attend = self.groups.begin_step()
        assert positions.tolist() == [self.sequences[index].shape[3] for index in batch_order.tolist()]
        attended = attend(0, query[batch_order], keys[batch_order], values[batch_order])
        for row, index in enumerate(batch_order.tolist()):
            new = torch.stack([keys[index], values[index]])[None, :, :, None]
            self.sequences[index] = torch.cat([self.sequences[index], new], 3)
            own_keys, own_values = self.sequences[index][0].repeat_interleave(2, 1)
            probs = (0.5 * query[index][:, None] @ own_keys.transpose(1, 2)).softmax(-1)
            assert torch.allclose(attended[row], (probs @ own_values)[:, 0], atol=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_sequences_attend_to_their_own_tokens_while_others_are_added_and_removed(seed: int) -> None:
    rng = random.Random(seed)
    groups = GroupsWithReference(seed)
    groups.add(*(rng.choice([3, 20, 300, 2000]) for _ in range(3)))
    for _ in range(25):
        groups.step()
        operation = rng.random()
        if operation < 0.3:
            groups.add(*(rng.choice([1, 25, 400, 2100]) for _ in range(rng.randint(1, 3))))
        elif operation < 0.6:
            saved = [index for index in range(len(groups.sequences)) if rng.random() < 0.7]
            groups.select(saved or [0])
        elif operation < 0.7:
            groups.select(sorted(rng.choices(range(len(groups.sequences)), k=len(groups.sequences) + 1)))


def test_groups_are_enlarged_when_their_spare_columns_are_used() -> None:
    groups = GroupsWithReference(1)
    groups.add(5, 9)
    for _ in range(2 * SPARE_COLUMNS + 3):
        groups.step()


def test_similar_lengths_share_a_group() -> None:
    groups = GroupsWithReference(2)
    groups.add(50, 60, 2 * MAX_PADDING_TOKENS, 55, 2 * MAX_PADDING_TOKENS - 10)
    assert sorted(len(members) for members in groups.groups._members) == [2, 3]
    groups.add(58)
    assert sorted(len(members) for members in groups.groups._members) == [2, 4]
    groups.select([0, 1, 3, 4, 5])
    assert sorted(len(members) for members in groups.groups._members) == [1, 4]
    groups.step()


def test_padding_of_a_removed_long_sequence_is_dropped() -> None:
    groups = GroupsWithReference(3)
    groups.add(400, *[30] * 3)
    assert len(groups.groups._groups) == 1
    groups.add(*[30] * 8)
    groups.select([*range(1, 12)])
    assert sum(group.padding for group in groups.groups._groups) <= MAX_PADDING_TOKENS
    groups.step()
