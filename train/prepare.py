"""From rows to what a run really learns: encoded, whole or not at all, and refused where nothing can come of it.

The run and its preflight both go through `prepare`, so that the numbers of one are those of the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from errors import TrainingError
from tasks.problem import Example
from tasks.prompt import style_named
from train.config import TrainConfig
from train.data import TrainingData
from train.encode import IGNORED, Encoded, Encoder
from train.techniques import technique_named


@dataclass(frozen=True)
class Reader:
    """What reads the rows: a base's tokenizer, and what of the base decides how long they may be."""

    base_id: str
    tokenizer: Any
    is_encoder_decoder: bool
    # The most tokens that the base was made for.
    context_length: int


@dataclass(frozen=True)
class Selection:
    """The rows of one side. `examples` are all of them, `kept` are the indices of those that fit `limit` tokens.

    `lengths` are tokens of prompt, response and end token together, of all rows; `encoded` has the kept rows alone.
    """

    examples: Sequence[Example]
    lengths: Sequence[int]
    kept: Sequence[int]
    encoded: Sequence[Encoded]
    limit: int

    @property
    def left_out(self) -> list[int]:
        """Indices of the rows that are too long."""
        return [index for index, length in enumerate(self.lengths) if length > self.limit]

    def summary(self, what: str) -> str:
        """One line for a run's progress."""
        tokens = sum(len(sample.response) for sample in self.encoded)
        dropped = len(self.lengths) - len(self.kept)
        note = f"; {dropped} longer than {self.limit} tokens are left out whole" if dropped else ""
        return f"{len(self.kept)} {what} samples, {tokens} learned tokens{note}."


@dataclass(frozen=True)
class Prepared:
    """Both sides, and the encoder that made them."""

    encoder: Encoder
    train: Selection
    validation: Selection


def prepare(config: TrainConfig, data: TrainingData, reader: Reader) -> Prepared:
    """Encodes and selects the rows; TrainingError, in one sentence, for what cannot train."""
    encoder = make_encoder(config, reader)
    limit = longest(config, reader)
    train = select(encoder, data.train, limit)
    validation = select(encoder, data.validation, limit)
    _require_code(train, encoder, data.learned.place)
    for selection, what in ((train, "training"), (validation, "validation")):
        if not selection.kept:
            _refuse_length(selection, what, config)
    batch = config.per_device_train_batch_size
    if len(train.kept) < batch:
        left_out = f" ({len(train.left_out)} more are too long)" if train.left_out else ""
        raise TrainingError(
            f"{len(train.kept)} training samples{left_out} are fewer than one batch of {batch}: "
            "give more data or a smaller --per-device-train-batch-size."
        )
    return Prepared(encoder, train, validation)


def make_encoder(config: TrainConfig, reader: Reader) -> Encoder:
    """The encoder, after the checks that need no data."""
    technique_named(config.technique).check(config)
    style = style_named(config.prompt_style)
    if style.format == "chat" and not reader.tokenizer.chat_template:
        raise TrainingError(
            f"Prompt style '{style.name}' needs a chat template and {reader.base_id} has none: "
            "choose --prompt-style plain."
        )
    if reader.tokenizer.eos_token_id is None:
        raise TrainingError(
            f"The tokenizer of {reader.base_id} has no end token, so a model could never learn to stop: choose a base "
            "whose tokenizer names one (eos_token)."
        )
    return Encoder(reader.tokenizer, style, reader.is_encoder_decoder)


def longest(config: TrainConfig, reader: Reader) -> int:
    """Tokens that a row may have: max_length, or what is left of the base's context behind virtual tokens.

    An encoder-decoder base reads prompt and response apart and has no such end of its context.
    """
    if reader.is_encoder_decoder:
        return config.max_length
    virtual = config.num_virtual_tokens if technique_named(config.technique).virtual_tokens else 0
    return min(config.max_length, reader.context_length - virtual)


def select(encoder: Encoder, examples: Sequence[Example], limit: int) -> Selection:
    """All rows encoded; those of more than `limit` tokens are left out whole, none is ever cut."""
    encoded = [encoder.encode(example) for example in examples]
    lengths = [len(sample.prompt) + len(sample.response) for sample in encoded]
    kept = [index for index, length in enumerate(lengths) if length <= limit]
    return Selection(examples, lengths, kept, [encoded[index] for index in kept], limit)


def _require_code(train: Selection, encoder: Encoder, place: Callable[[Example], str]) -> None:
    """A row of which nothing but the end would be learned is refused: it teaches to answer nothing."""
    for index, sample in zip(train.kept, train.encoded, strict=True):
        learned = sum(label != IGNORED for label in encoder.row(sample)["labels"])
        if learned < 2:
            raise TrainingError(
                f"{place(train.examples[index])}: no token of its code would be learned, as the base's tokenizer "
                "makes none of it: take the row out."
            )


def _refuse_length(selection: Selection, what: str, config: TrainConfig) -> None:
    if not selection.lengths:
        raise TrainingError(f"There is no {what} row: give more data.")
    needed = min(selection.lengths)
    raise TrainingError(
        f"None of the {len(selection.lengths)} {what} rows fits {selection.limit} tokens, the shortest has {needed}: "
        + (
            f"raise --max-length to {needed} or more."
            if selection.limit == config.max_length
            else "that is as much as the base reads, so give shorter rows or choose another base."
        )
    )
