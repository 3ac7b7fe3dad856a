"""From examples to token ids and labels, through the one prompt module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from errors import TrainingError
from tasks.problem import Example
from tasks.prompt import Message, PromptStyle, completion, render

if TYPE_CHECKING:
    import torch

IGNORED = -100


@dataclass(frozen=True)
class Encoded:
    """One training sample: the prompt's ids, and the response's with the end token, which alone are learned."""

    prompt: list[int]
    response: list[int]


class Encoder:
    """Encodes for one base. `is_encoder_decoder` decides whether prompt and response share one sequence."""

    def __init__(self, tokenizer: Any, style: PromptStyle, is_encoder_decoder: bool) -> None:
        if tokenizer.eos_token_id is None:
            raise TrainingError("The base's tokenizer has no end token, so a model could never learn to stop.")
        self._tokenizer = tokenizer
        self._style = style
        self.is_encoder_decoder = is_encoder_decoder

    def encode(self, example: Example) -> Encoded:
        """Prompt and response are tokenized apart, as they are when the adapter serves."""
        prompt = render(example.intent, (), self._style, self._chat)
        ids = self._tokenizer(prompt, add_special_tokens=self._style.format == "plain", verbose=False)["input_ids"]
        response = self._tokenizer(completion(example.code, self._style), add_special_tokens=False, verbose=False)
        return Encoded(list(ids), [*response["input_ids"], self._tokenizer.eos_token_id])

    def _chat(self, messages: Sequence[Message]) -> str:
        return str(self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))

    def row(self, sample: Encoded) -> dict[str, list[int]]:
        """The sample as the Trainer wants it: `input_ids`, and `labels` that are -100 where nothing is learned.

        For encoder-decoder bases the prompt is the input and the response the labels.
        """
        if self.is_encoder_decoder:
            return {"input_ids": sample.prompt, "labels": sample.response}
        labels = [IGNORED] * len(sample.prompt) + sample.response
        return {"input_ids": sample.prompt + sample.response, "labels": labels}

    def collate(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        """A padded batch: input_ids, attention_mask and labels, each (samples, longest)."""
        return {
            "input_ids": _padded([row["input_ids"] for row in rows], self._tokenizer.pad_token_id),
            "attention_mask": _padded([[1] * len(row["input_ids"]) for row in rows], 0),
            "labels": _padded([row["labels"] for row in rows], IGNORED),
        }


def _padded(rows: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
    import torch

    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows], dtype=torch.long)
