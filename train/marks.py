"""Which part of a training sample is learned, decoded from its ids, so that the marks are those of the labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from train.encode import IGNORED, Encoded, Encoder

# A part of a sample's text, and whether its tokens are learned.
Piece = tuple[str, bool]


def marked(encoder: Encoder, tokenizer: Any, sample: Encoded) -> list[Piece]:
    """The sample's whole text in parts: what is only read and what is learned, special tokens such as the end visible.

    It comes from the very row that the Trainer gets. On encoder-decoder bases input and labels are two sequences, which
    stand one after the other here.
    """
    row = encoder.row(sample)
    if encoder.is_encoder_decoder:
        learned = [label for label in row["labels"] if label != IGNORED]
        return [(_decode(tokenizer, row["input_ids"]), False), (_decode(tokenizer, learned), True)]
    return _runs(tokenizer, row["input_ids"], [label != IGNORED for label in row["labels"]])


def _runs(tokenizer: Any, ids: Sequence[int], learned: Sequence[bool]) -> list[Piece]:
    pieces: list[Piece] = []
    begin = 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or learned[end] != learned[begin]:
            before, until = _decode(tokenizer, ids[:begin]), _decode(tokenizer, ids[:end])
            # Taken out of the whole, as some tokenizers drop the space before a text's first token.
            text = until[len(before) :] if until.startswith(before) else _decode(tokenizer, ids[begin:end])
            pieces.append((text, learned[begin]))
            begin = end
    return pieces


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
