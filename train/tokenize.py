"""Examples -> input_ids/labels, length filter, label spans.

From examples to token ids and labels, through the one prompt module.

From rows to what a run really learns: encoded, whole or not at all, and refused where nothing can come of it.

The run and its preflight both go through `prepare`, so that the numbers of one are those of the other.

Which part of a training sample is learned, decoded from its ids, so that the marks are those of the labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from errors import TrainingError
from tasks.problem import Example
from tasks.prompt import Message, PromptStyle, format_completion, get_style, render_prompt
from train.config import TrainConfig
from train.data import TrainingData
from train.techniques import get_technique

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


# A part of a sample's text, and whether its tokens are learned.
LabelSpan = tuple[str, bool]


def label_spans(example_tokenizer: ExampleTokenizer, tokenizer: Any, sample: TokenizedExample) -> list[LabelSpan]:
    """The sample's whole text in parts: what is only read and what is learned, special tokens such as the end visible.

    It comes from the very row that the Trainer gets. On encoder-decoder bases input and labels are two sequences, which
    stand one after the other here.
    """
    row = example_tokenizer.to_features(sample)
    if example_tokenizer.is_encoder_decoder:
        learned = [label for label in row["labels"] if label != IGNORE_INDEX]
        return [(_decode(tokenizer, row["input_ids"]), False), (_decode(tokenizer, learned), True)]
    return _group_spans(tokenizer, row["input_ids"], [label != IGNORE_INDEX for label in row["labels"]])


def _group_spans(tokenizer: Any, ids: Sequence[int], is_label: Sequence[bool]) -> list[LabelSpan]:
    pieces: list[LabelSpan] = []
    begin = 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or is_label[end] != is_label[begin]:
            before, until = _decode(tokenizer, ids[:begin]), _decode(tokenizer, ids[:end])
            # Taken out of the whole, as some tokenizers drop the space before a text's first token.
            text = until[len(before) :] if until.startswith(before) else _decode(tokenizer, ids[begin:end])
            pieces.append((text, is_label[begin]))
            begin = end
    return pieces


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
