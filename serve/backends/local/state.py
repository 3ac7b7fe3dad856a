"""What a batch in flight is to decoding: the cache of its rows and all else that goes from one step to the next.

Two kinds with the same methods, so that decoding need not know what the base is: `CausalState` (causal.py) and
`Seq2SeqState` (seq2seq.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

OnRows = Callable[[Sequence[int]], None]


class CancelledError(Exception):
    """The person who asked has stopped waiting."""


class State(Protocol):
    """What decoding needs of a batch. Logits are (rows, vocabulary), in the base's own precision."""

    def start(self, prompts: Sequence[Sequence[int]], on_rows: OnRows, cancelled: Callable[[], bool]) -> torch.Tensor:
        """Reads all prompts; the logits of each row's first new token. Raises CancelledError.

        Prompts may be read in several groups: `on_rows` is told which prompts the next lines are, and at the end
        that they are all of them in order.
        """

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Appends one token per row, shape (rows,); the logits of the next ones."""

    def select(self, rows: torch.Tensor) -> None:
        """Keeps, reorders, drops or repeats rows: new row i is old row `rows[i]`; those of a prompt stay together."""

    def branch(self) -> None:
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
