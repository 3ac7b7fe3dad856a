"""From rows to what a run really learns: encoded, whole or not at all, and refused where nothing can come of it.

The run and its preflight both go through `prepare`, so that the numbers of one are those of the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from errors import TrainingError
from tasks.problem import Example
from tasks.prompt import get_style
from train.config import TrainConfig
from train.data import TrainingData
from train.encode import IGNORE_INDEX, ExampleTokenizer, TokenizedExample
from train.techniques import get_technique


@dataclass(frozen=True)
class TokenizerInfo:
    """What reads the rows: a base's tokenizer, and what of the base decides how long they may be."""

    base_id: str
    tokenizer: Any
    is_encoder_decoder: bool
    # The most tokens that the base was made for.
    context_length: int


@dataclass(frozen=True)
class TokenizedSplit:
    """The rows of one side. `examples` are all of them, `kept` are the indices of those that fit `limit` tokens.

    `lengths` are tokens of prompt, response and end token together, of all rows; `encoded` has the kept rows alone.
    """

    examples: Sequence[Example]
    lengths: Sequence[int]
    selected_indices: Sequence[int]
    samples: Sequence[TokenizedExample]
    max_length: int

    @property
    def dropped_indices(self) -> list[int]:
        """Indices of the rows that are too long."""
        return [index for index, length in enumerate(self.lengths) if length > self.max_length]

    def summary(self, what: str) -> str:
        """One line for a run's progress."""
        tokens = sum(len(sample.response_ids) for sample in self.samples)
        dropped = len(self.lengths) - len(self.selected_indices)
        note = f"; {dropped} longer than {self.max_length} tokens are left out whole" if dropped else ""
        return f"{len(self.selected_indices)} {what} samples, {tokens} learned tokens{note}."


@dataclass(frozen=True)
class TokenizedData:
    """Both sides, and the encoder that made them."""

    example_tokenizer: ExampleTokenizer
    train: TokenizedSplit
    validation: TokenizedSplit


def tokenize_data(config: TrainConfig, data: TrainingData, tokenizer_info: TokenizerInfo) -> TokenizedData:
    """Encodes and selects the rows; TrainingError, in one sentence, for what cannot train."""
    encoder = build_example_tokenizer(config, tokenizer_info)
    limit = max_sample_length(config, tokenizer_info)
    train = tokenize_split(encoder, data.train, limit)
    validation = tokenize_split(encoder, data.validation, limit)
    _require_labels(train, encoder, data.train_split.locate)
    for selection, what in ((train, "training"), (validation, "validation")):
        if not selection.selected_indices:
            _raise_too_long(selection, what, config)
    batch = config.per_device_train_batch_size
    if len(train.selected_indices) < batch:
        left_out = f" ({len(train.dropped_indices)} more are too long)" if train.dropped_indices else ""
        raise TrainingError(
            f"{len(train.selected_indices)} training samples{left_out} are fewer than one batch of {batch}: "
            "give more data or a smaller --per-device-train-batch-size."
        )
    return TokenizedData(encoder, train, validation)


def build_example_tokenizer(config: TrainConfig, tokenizer_info: TokenizerInfo) -> ExampleTokenizer:
    """The encoder, after the checks that need no data."""
    get_technique(config.technique).validate(config)
    style = get_style(config.prompt_style)
    if style.format == "chat" and not tokenizer_info.tokenizer.chat_template:
        raise TrainingError(
            f"Prompt style '{style.name}' needs a chat template and {tokenizer_info.base_id} has none: "
            "choose --prompt-style plain."
        )
    if tokenizer_info.tokenizer.eos_token_id is None:
        raise TrainingError(
            f"The tokenizer of {tokenizer_info.base_id} has no end token, so a model could never learn to stop: choose a base "
            "whose tokenizer names one (eos_token)."
        )
    return ExampleTokenizer(tokenizer_info.tokenizer, style, tokenizer_info.is_encoder_decoder)


def max_sample_length(config: TrainConfig, tokenizer_info: TokenizerInfo) -> int:
    """Tokens that a row may have: max_length, or what is left of the base's context behind virtual tokens.

    An encoder-decoder base reads prompt and response apart and has no such end of its context.
    """
    if tokenizer_info.is_encoder_decoder:
        return config.max_length
    virtual = config.num_virtual_tokens if get_technique(config.technique).uses_virtual_tokens else 0
    return min(config.max_length, tokenizer_info.context_length - virtual)


def tokenize_split(example_tokenizer: ExampleTokenizer, examples: Sequence[Example], max_length: int) -> TokenizedSplit:
    """All rows encoded; those of more than `limit` tokens are left out whole, none is ever cut."""
    encoded = [example_tokenizer.tokenize(example) for example in examples]
    lengths = [len(sample.prompt_ids) + len(sample.response_ids) for sample in encoded]
    kept = [index for index, length in enumerate(lengths) if length <= max_length]
    return TokenizedSplit(examples, lengths, kept, [encoded[index] for index in kept], max_length)


def _require_labels(
    train: TokenizedSplit, example_tokenizer: ExampleTokenizer, locate: Callable[[Example], str]
) -> None:
    """A row of which nothing but the end would be learned is refused: it teaches to answer nothing."""
    for index, sample in zip(train.selected_indices, train.samples, strict=True):
        learned = sum(label != IGNORE_INDEX for label in example_tokenizer.to_features(sample)["labels"])
        if learned < 2:
            raise TrainingError(
                f"{locate(train.examples[index])}: no token of its code would be learned, as the base's tokenizer "
                "makes none of it: take the row out."
            )


def _raise_too_long(selection: TokenizedSplit, what: str, config: TrainConfig) -> None:
    if not selection.lengths:
        raise TrainingError(f"There is no {what} row: give more data.")
    needed = min(selection.lengths)
    raise TrainingError(
        f"None of the {len(selection.lengths)} {what} rows fits {selection.max_length} tokens, the shortest has {needed}: "
        + (
            f"raise --max-length to {needed} or more."
            if selection.max_length == config.max_length
            else "that is as much as the base reads, so give shorter rows or choose another base."
        )
    )
