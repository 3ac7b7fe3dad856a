"""Tokenization of training examples: input_ids and labels, the length filter, and label spans for display.

Prompts come from tasks.prompt, as in serving. The run and its preflight both call `tokenize_data`, so that their
numbers agree. Rows that are too long are left out, never truncated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from errors import TrainingError
from tasks.problem import Example
from tasks.prompt import Message, PromptStyle, format_completion, get_style, render_prompt
from train.config import PromptExamples, SelectFn, TrainConfig, nearest_retriever, parse_train_examples
from train.data import TrainingData
from train.techniques import get_technique

if TYPE_CHECKING:
    import torch


IGNORE_INDEX = -100


@dataclass(frozen=True)
class TokenizedExample:
    """One training sample: ids of the prompt, and of the response with the end token. The loss covers the latter."""

    prompt_ids: list[int]
    response_ids: list[int]

    @property
    def length(self) -> int:
        """The number of tokens of both."""
        return len(self.prompt_ids) + len(self.response_ids)


class ExampleTokenizer:
    """Tokenizes examples for one base; without `is_encoder_decoder`, prompt and response share one sequence."""

    def __init__(self, tokenizer: Any, style: PromptStyle, is_encoder_decoder: bool) -> None:
        if tokenizer.eos_token_id is None:
            raise TrainingError("The base's tokenizer has no end token, so a model could never learn to stop.")
        self._tokenizer = tokenizer
        self._style = style
        self.is_encoder_decoder = is_encoder_decoder

    def tokenize(self, example: Example, examples: Sequence[Example] = ()) -> TokenizedExample:
        """Tokenize prompt and response separately, as in serving; `examples` are those in the prompt."""
        prompt = render_prompt(example.intent, examples, self._style, self._apply_chat_template)
        ids = self._tokenizer(prompt, add_special_tokens=self._style.format == "plain", verbose=False)["input_ids"]
        response = self._tokenizer(
            format_completion(example.code, self._style), add_special_tokens=False, verbose=False
        )
        return TokenizedExample(list(ids), [*response["input_ids"], self._tokenizer.eos_token_id])

    def _apply_chat_template(self, messages: Sequence[Message]) -> str:
        return str(self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))

    def to_features(self, sample: TokenizedExample) -> dict[str, list[int]]:
        """Return `input_ids`, and `labels` that are -100 where there is no loss.

        For encoder-decoder bases, the prompt is the input and the response the labels.
        """
        if self.is_encoder_decoder:
            return {"input_ids": sample.prompt_ids, "labels": sample.response_ids}
        labels = [IGNORE_INDEX] * len(sample.prompt_ids) + sample.response_ids
        return {"input_ids": sample.prompt_ids + sample.response_ids, "labels": labels}

    def collate(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        """Return a padded batch: input_ids, attention_mask and labels, each (samples, longest)."""
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
    """A base's tokenizer, and the properties of the base that limit the length of rows."""

    base_id: str
    tokenizer: Any
    is_encoder_decoder: bool
    # The base's maximum number of tokens.
    context_length: int


@dataclass(frozen=True)
class TokenizedSplit:
    """The tokenized rows of the training or the validation side.

    `examples` and `lengths` (tokens of prompt, response and end token) cover all rows, a row with two prompts twice;
    `selected_indices` are the rows of at most `max_length` tokens, and `samples` are these rows tokenized. Of rows
    that are trained with examples, `example_counts` has the number of examples in the prompt of each sample, and
    `num_shortened` counts the samples whose prompt has fewer than were selected, to fit.
    """

    examples: Sequence[Example]
    lengths: Sequence[int]
    selected_indices: Sequence[int]
    samples: Sequence[TokenizedExample]
    max_length: int
    example_counts: Sequence[int] = ()
    num_shortened: int = 0

    @property
    def dropped_indices(self) -> list[int]:
        """Indices of the rows that are too long."""
        return [index for index, length in enumerate(self.lengths) if length > self.max_length]

    def summary(self, what: str) -> str:
        """Return a line for the progress output."""
        tokens = sum(len(sample.response_ids) for sample in self.samples)
        dropped = len(self.lengths) - len(self.selected_indices)
        note = f"; {dropped} longer than {self.max_length} tokens are left out" if dropped else ""
        return f"{len(self.selected_indices)} {what} samples, {tokens} learned tokens{note}{self._examples_note()}."

    def _examples_note(self) -> str:
        if not self.example_counts:
            return ""
        mean = sum(self.example_counts) / len(self.example_counts)
        fewer = f" ({self.num_shortened} fewer than drawn, to fit)" if self.num_shortened else ""
        least, most = min(self.example_counts), max(self.example_counts)
        return f"; {least} to {most} examples in a prompt, {mean:.1f} on average{fewer}"


@dataclass(frozen=True)
class TokenizedData:
    """The tokenized rows of both sides, and the tokenizer that made them."""

    example_tokenizer: ExampleTokenizer
    train: TokenizedSplit
    validation: TokenizedSplit


def tokenize_data(config: TrainConfig, data: TrainingData, tokenizer_info: TokenizerInfo) -> TokenizedData:
    """Tokenize the rows and select those that fit. Raises TrainingError for rows that cannot be trained on."""
    example_tokenizer = build_example_tokenizer(config, tokenizer_info)
    max_length = max_sample_length(config, tokenizer_info)
    parts = parse_train_examples(config.train_examples)
    select = PromptExamples(parts, nearest_retriever(data.train), config.seed).select if parts else None
    train = tokenize_split(example_tokenizer, data.train, max_length, select)
    validation = tokenize_split(example_tokenizer, data.validation, max_length, select)
    _require_labels(train, example_tokenizer, data.train_split.locate)
    for split, kind in ((train, "training"), (validation, "validation")):
        if not split.selected_indices:
            _raise_too_long(split, kind, config)
    batch = config.per_device_train_batch_size
    if len(train.selected_indices) < batch:
        left_out = f" ({len(train.dropped_indices)} more are too long)" if train.dropped_indices else ""
        raise TrainingError(
            f"{len(train.selected_indices)} training samples{left_out} are fewer than one batch of {batch}: "
            "give more data or a smaller --per-device-train-batch-size."
        )
    return TokenizedData(example_tokenizer, train, validation)


def build_example_tokenizer(config: TrainConfig, tokenizer_info: TokenizerInfo) -> ExampleTokenizer:
    """Make the tokenizer of examples, after the checks that need no data. Raises TrainingError."""
    get_technique(config.technique).validate(config)
    style = get_style(config.prompt_style)
    if style.format == "chat" and not tokenizer_info.tokenizer.chat_template:
        raise TrainingError(
            f"Prompt style '{style.name}' needs a chat template and {tokenizer_info.base_id} has none: "
            "choose --prompt-style plain."
        )
    if tokenizer_info.tokenizer.eos_token_id is None:
        raise TrainingError(
            f"The tokenizer of {tokenizer_info.base_id} has no end token, so a model could never learn to stop: choose "
            "a base whose tokenizer names one (eos_token)."
        )
    return ExampleTokenizer(tokenizer_info.tokenizer, style, tokenizer_info.is_encoder_decoder)


def max_sample_length(config: TrainConfig, tokenizer_info: TokenizerInfo) -> int:
    """Return the maximum tokens of a row: max_length, or the base's context without the virtual tokens.

    An encoder-decoder base reads prompt and response separately; its context is not checked.
    """
    if tokenizer_info.is_encoder_decoder:
        return config.max_length
    virtual = config.num_virtual_tokens if get_technique(config.technique).uses_virtual_tokens else 0
    return min(config.max_length, tokenizer_info.context_length - virtual)


def tokenize_split(
    example_tokenizer: ExampleTokenizer, examples: Sequence[Example], max_length: int, select: SelectFn | None = None
) -> TokenizedSplit:
    """Tokenize all rows and select those of at most `max_length` tokens; none is truncated.

    `select` returns the examples for each prompt of a row, nearest first, so a row with two prompts is two samples; the
    last examples are left out of a prompt that would be too long.
    """
    prompts = [(example, selected) for example in examples for selected in (select(example) if select else [()])]
    examples, chosen = [example for example, _ in prompts], [list(selected) for _, selected in prompts]
    used = [list(selected) for selected in chosen]
    tokenized = []
    for example, prompt_examples in zip(examples, used, strict=True):
        sample = example_tokenizer.tokenize(example, prompt_examples)
        while prompt_examples and sample.length > max_length:
            prompt_examples.pop()
            sample = example_tokenizer.tokenize(example, prompt_examples)
        tokenized.append(sample)
    lengths = [sample.length for sample in tokenized]
    selected = [index for index, length in enumerate(lengths) if length <= max_length]
    return TokenizedSplit(
        examples,
        lengths,
        selected,
        [tokenized[index] for index in selected],
        max_length,
        [len(used[index]) for index in selected] if select else (),
        sum(len(used[index]) < len(chosen[index]) for index in selected),
    )


def _require_labels(
    train: TokenizedSplit, example_tokenizer: ExampleTokenizer, locate: Callable[[Example], str]
) -> None:
    """Raise TrainingError for a row whose only label is the end token: it would train an empty answer."""
    for index, sample in zip(train.selected_indices, train.samples, strict=True):
        num_labels = sum(label != IGNORE_INDEX for label in example_tokenizer.to_features(sample)["labels"])
        if num_labels < 2:
            raise TrainingError(
                f"{locate(train.examples[index])}: no token of its code would be learned, as the base's tokenizer "
                "makes none of it: take the row out."
            )


def _raise_too_long(split: TokenizedSplit, kind: str, config: TrainConfig) -> None:
    if not split.lengths:
        raise TrainingError(f"There is no {kind} row: give more data.")
    needed = min(split.lengths)
    raise TrainingError(
        f"None of the {len(split.lengths)} {kind} rows fits {split.max_length} tokens, the shortest has {needed}: "
        + (
            f"raise --max-length to {needed} or more."
            if split.max_length == config.max_length
            else "that is as much as the base reads, so give shorter rows or choose another base."
        )
    )


# A part of a sample's text, and whether the loss covers its tokens.
LabelSpan = tuple[str, bool]


def label_spans(example_tokenizer: ExampleTokenizer, tokenizer: Any, sample: TokenizedExample) -> list[LabelSpan]:
    """Split the sample's text, with its special tokens, into parts with and without labels.

    The text is decoded from the row that the Trainer gets. On encoder-decoder bases, where input and labels are two
    sequences, the input comes first.
    """
    row = example_tokenizer.to_features(sample)
    if example_tokenizer.is_encoder_decoder:
        labels = [label for label in row["labels"] if label != IGNORE_INDEX]
        return [(_decode(tokenizer, row["input_ids"]), False), (_decode(tokenizer, labels), True)]
    return _group_spans(tokenizer, row["input_ids"], [label != IGNORE_INDEX for label in row["labels"]])


def _group_spans(tokenizer: Any, ids: Sequence[int], is_label: Sequence[bool]) -> list[LabelSpan]:
    spans: list[LabelSpan] = []
    begin = 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or is_label[end] != is_label[begin]:
            before, until = _decode(tokenizer, ids[:begin]), _decode(tokenizer, ids[:end])
            # A slice of the decoded sequence, because some tokenizers drop the space before a text's first token.
            text = until[len(before) :] if until.startswith(before) else _decode(tokenizer, ids[begin:end])
            spans.append((text, is_label[begin]))
            begin = end
    return spans


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
