"""From examples to token ids and labels, through the one prompt module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from errors import TrainingError
from tasks.problem import Example
from tasks.prompt import Message, PromptStyle, format_completion, render_prompt

if TYPE_CHECKING:
    import torch

IGNORE_INDEX = -100


@dataclass(frozen=True)
class TokenizedExample:
    """One training sample: the prompt's ids, and the response's with the end token, which alone are learned."""

    prompt_ids: list[int]
    response_ids: list[int]


class ExampleTokenizer:
    """Encodes for one base. `is_encoder_decoder` decides whether prompt and response share one sequence."""

    def __init__(self, tokenizer: Any, style: PromptStyle, is_encoder_decoder: bool) -> None:
        if tokenizer.eos_token_id is None:
            raise TrainingError("The base's tokenizer has no end token, so a model could never learn to stop.")
        self._tokenizer = tokenizer
        self._style = style
        self.is_encoder_decoder = is_encoder_decoder

    def tokenize(self, example: Example) -> TokenizedExample:
        """Prompt and response are tokenized apart, as they are when the adapter serves."""
        prompt = render_prompt(example.intent, (), self._style, self._apply_chat_template)
        ids = self._tokenizer(prompt, add_special_tokens=self._style.format == "plain", verbose=False)["input_ids"]
        response = self._tokenizer(
            format_completion(example.code, self._style), add_special_tokens=False, verbose=False
        )
        return TokenizedExample(list(ids), [*response["input_ids"], self._tokenizer.eos_token_id])

    def _apply_chat_template(self, messages: Sequence[Message]) -> str:
        return str(self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))

    def to_features(self, sample: TokenizedExample) -> dict[str, list[int]]:
        """The sample as the Trainer wants it: `input_ids`, and `labels` that are -100 where nothing is learned.

        For encoder-decoder bases the prompt is the input and the response the labels.
        """
        if self.is_encoder_decoder:
            return {"input_ids": sample.prompt_ids, "labels": sample.response_ids}
        labels = [IGNORE_INDEX] * len(sample.prompt_ids) + sample.response_ids
        return {"input_ids": sample.prompt_ids + sample.response_ids, "labels": labels}

    def collate(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        """A padded batch: input_ids, attention_mask and labels, each (samples, longest)."""
        return {
            "input_ids": _pad([row["input_ids"] for row in rows], self._tokenizer.pad_token_id),
            "attention_mask": _pad([[1] * len(row["input_ids"]) for row in rows], 0),
            "labels": _pad([row["labels"] for row in rows], IGNORE_INDEX),
        }


def _pad(rows: Sequence[Sequence[int]], pad_value: int) -> torch.Tensor:
    import torch

    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[pad_value] * (longest - len(row))] for row in rows], dtype=torch.long)
