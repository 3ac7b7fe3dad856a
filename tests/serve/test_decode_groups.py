"""Which lines attend together, and that lines that come and go are never mixed up."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from serve.backends.local.decode_groups import MAX_PADDING_TOKENS, SPARE_COLUMNS, DecodeBatch

HEADS, SIZE = 2, 4


def _model() -> Any:
    return SimpleNamespace(kv_shape=(1, HEADS, SIZE), scale=0.5, device=torch.device("cpu"), dtype=torch.float32)


class Told:
    """Lines whose keys and values are random, with each line's own kept beside as what it must see."""

    def __init__(self, seed: int) -> None:
        self.groups = DecodeBatch(_model())
        self.lines: list[torch.Tensor] = []
        self._noise = torch.Generator().manual_seed(seed)

    def _random(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self._noise)

    def join(self, *lengths: int) -> None:
        known = [self._random(1, 2, HEADS, length, SIZE) for length in lengths]
        self.groups.add_sequences(known)
        self.lines += known

    def select(self, lines: list[int]) -> None:
        self.groups.reorder(lines)
        self.lines = [self.lines[line] for line in lines]

    def step(self) -> None:
        """One step of all lines; each must see its own past, and its new place, and nothing else."""
        count = len(self.lines)
        query, keys, values = (self._random(count, heads, SIZE) for heads in (2 * HEADS, HEADS, HEADS))
        order = self.groups.order
        inside = torch.arange(count) if order is None else order
        places, attend = self.groups.begin_step()
        assert places.tolist() == [self.lines[line].shape[3] for line in inside.tolist()]
        seen = attend(0, query[inside], keys[inside], values[inside])
        for place, line in enumerate(inside.tolist()):
            new = torch.stack([keys[line], values[line]])[None, :, :, None]
            self.lines[line] = torch.cat([self.lines[line], new], 3)
            own_keys, own_values = self.lines[line][0].repeat_interleave(2, 1)
            shares = (0.5 * query[line][:, None] @ own_keys.transpose(1, 2)).softmax(-1)
            assert torch.allclose(seen[place], (shares @ own_values)[:, 0], atol=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_sequences_attend_to_their_own_tokens_while_others_come_and_go(seed: int) -> None:
    choices = random.Random(seed)
    told = Told(seed)
    told.join(*(choices.choice([3, 20, 300, 2000]) for _ in range(3)))
    for _ in range(25):
        told.step()
        doing = choices.random()
        if doing < 0.3:
            told.join(*(choices.choice([1, 25, 400, 2100]) for _ in range(choices.randint(1, 3))))
        elif doing < 0.6:
            kept = [line for line in range(len(told.lines)) if choices.random() < 0.7]
            told.select(kept or [0])
        elif doing < 0.7:
            told.select(sorted(choices.choices(range(len(told.lines)), k=len(told.lines) + 1)))


def test_groups_grow_beyond_their_spare_columns() -> None:
    told = Told(1)
    told.join(5, 9)
    for _ in range(2 * SPARE_COLUMNS + 3):
        told.step()


def test_similar_lengths_share_a_group() -> None:
    told = Told(2)
    told.join(50, 60, 2 * MAX_PADDING_TOKENS, 55, 2 * MAX_PADDING_TOKENS - 10)
    assert sorted(len(members) for members in told.groups._members) == [2, 3]
    told.join(58)
    assert sorted(len(members) for members in told.groups._members) == [2, 4]
    told.select([0, 1, 3, 4, 5])
    assert sorted(len(members) for members in told.groups._members) == [1, 4]
    told.step()


def test_padding_of_a_removed_long_sequence_is_dropped() -> None:
    told = Told(3)
    told.join(400, *[30] * 3)
    assert len(told.groups._groups) == 1
    told.join(*[30] * 8)
    told.select([*range(1, 12)])
    assert sum(group.padding for group in told.groups._groups) <= MAX_PADDING_TOKENS
    told.step()
