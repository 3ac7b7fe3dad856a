"""The order of the samples: those of like length stand together, and an epoch's order depends on its seed alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from transformers.trainer_pt_utils import LengthGroupedSampler


class SeededLengthGroupedSampler(LengthGroupedSampler):
    """transformers' sampler draws from the global generator, so a run that goes on met its samples in another order."""

    def __init__(self, batch_size: int, lengths: Sequence[int], seed: int) -> None:
        super().__init__(batch_size, lengths=list(lengths), generator=torch.Generator())
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Trainer calls this before each epoch, also when it continues in the middle of one."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed(self._seed * 1_000_003 + self._epoch)
        return iter(super().__iter__())
