"""Which part of a training sample is learned, decoded from its ids, so that the marks are those of the labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from train.encode import IGNORE_INDEX, ExampleTokenizer, TokenizedExample

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
