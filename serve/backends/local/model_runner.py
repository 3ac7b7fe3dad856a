"""What a batch in flight is to decoding: the cache of its lines and all else that goes from one step to the next.

Kinds with the same methods, so that decoding need not know what the base is: see states.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from serve.backends.local.lora.registry import AppliedAdapter


@dataclass(frozen=True)
class PromptInput:
    """A prompt to be read, and what its line wears until it ends."""

    tokens: tuple[int, ...]
    applied_adapter: AppliedAdapter | None = None


class ModelRunner(Protocol):
    """What decoding needs of a batch. Logits are (lines, vocabulary), in the base's own precision."""

    @property
    def supports_continuous_batching(self) -> bool:
        """Whether lines may be read while others are in flight."""

    def prefill(self, prompts: Sequence[PromptInput]) -> Iterator[torch.Tensor | None]:
        """Reads prompts piece by piece; after each piece None, at last the logits of each line's first new token.

        The lines are the state's last ones from then on, and none of them before; in between `step` and `select` may
        be called for those in flight, where the state `joins`. Closing the iterator, or an error, leaves the state
        as it was.
        """

    def decode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Appends one token per line, shape (lines,); the logits of the next ones."""

    def reorder(self, indices: torch.Tensor) -> None:
        """Keeps, reorders, drops or repeats lines: new line i is old line `lines[i]`; those of a prompt stay together.

        A selection of no lines leaves an empty state, which may `read` anew.
        """

    def fork(self) -> None:
        """From here on prompts have several lines each: where the base can, these share what has been read."""


def pad(prompts: Sequence[Sequence[int]], pad_token: int, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, both (rows, longest)."""
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), longest), pad_token, dtype=torch.long)
    mask = torch.zeros((len(prompts), longest), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        where = slice(longest - len(prompt), longest) if left else slice(0, len(prompt))
        ids[row, where] = torch.tensor(prompt, dtype=torch.long)
        mask[row, where] = 1
    return ids, mask
