"""ModelRunner: the interface between decoding and a base's forward with its KV cache.

One runner holds the state of one batch. Each kind of base has its own runner (`make_runner_factory` in backend.py
chooses it), so that greedy decoding, sampling and beam search need not know the base's architecture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from serve.backends.local.lora.registry import AppliedAdapter


@dataclass(frozen=True)
class PromptInput:
    """A prompt to prefill, and the adapter of its sequence."""

    tokens: tuple[int, ...]
    applied_adapter: AppliedAdapter | None = None


class ModelRunner(Protocol):
    """Forward passes and KV cache of one batch. Logits are (sequences, vocabulary) in the base's precision.

    Sequences are indexed 0, 1, ... in the order in which they were prefilled, or as the last `reorder` put them.
    """

    @property
    def supports_continuous_batching(self) -> bool:
        """Whether prompts may be prefilled while other sequences run."""

    def prefill(self, prompts: Sequence[PromptInput]) -> Iterator[torch.Tensor | None]:
        """Prefill prompts chunk by chunk: yield None after each chunk, at last the logits of each first new token.

        The prompts become the runner's last sequences with that last yield. With `supports_continuous_batching`,
        `decode` and `reorder` may be called for the other sequences between two chunks. Closing the iterator, or an
        exception, leaves the runner as it was.
        """

    def decode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append one token per sequence, shape (sequences,), and return the logits of the next ones."""

    def reorder(self, indices: torch.Tensor) -> None:
        """Keep, reorder, drop or repeat sequences: new sequence i is old sequence `indices[i]`.

        Sequences of one prompt must stay adjacent. Without indices the runner is empty and may `prefill` again.
        """

    def fork(self) -> None:
        """Announce that prompts will have several sequences each; a runner may then share their prompts' KV cache."""


def pad(prompts: Sequence[Sequence[int]], pad_token: int, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and mask, both (rows, longest), padded on the left or on the right."""
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), longest), pad_token, dtype=torch.long)
    mask = torch.zeros((len(prompts), longest), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        columns = slice(longest - len(prompt), longest) if left else slice(0, len(prompt))
        ids[row, columns] = torch.tensor(prompt, dtype=torch.long)
        mask[row, columns] = 1
    return ids, mask
