"""What training learns: the response and its end token, after exactly the prompt that serving renders."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from errors import TrainingError
from tasks.problem import Example
from tasks.prompt import STYLES, render_prompt
from tests.serve.tiny import tokenizer
from train.model import patch_loss
from train.tokenize import IGNORE_INDEX, ExampleTokenizer

EXAMPLES = [Example("a", "add `x`", "x + 1"), Example("b", "sort the list `items`", "items.sort()\nprint(items)")]
PLAIN = STYLES["plain"]


def test_only_the_code_and_the_end_token_are_learned() -> None:
    tokens = tokenizer()
    encoder = ExampleTokenizer(tokens, PLAIN, is_encoder_decoder=False)
    row = encoder.to_features(encoder.tokenize(EXAMPLES[1]))
    learned = [label for label in row["labels"] if label != IGNORE_INDEX]
    assert tokens.decode(learned[:-1]) == EXAMPLES[1].code
    assert learned[-1] == tokens.eos_token_id
    skipped = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label == IGNORE_INDEX]
    assert tokens.decode(skipped) == render_prompt(EXAMPLES[1].intent, (), PLAIN)


def test_an_encoder_decoder_base_reads_the_prompt_and_learns_the_response() -> None:
    encoder = ExampleTokenizer(tokenizer(), PLAIN, is_encoder_decoder=True)
    sample = encoder.tokenize(EXAMPLES[0])
    assert encoder.to_features(sample) == {"input_ids": sample.prompt_ids, "labels": sample.response_ids}


def test_a_batch_is_padded_where_nothing_is_read_or_learned() -> None:
    encoder = ExampleTokenizer(tokenizer(), PLAIN, is_encoder_decoder=False)
    rows = [encoder.to_features(encoder.tokenize(example)) for example in EXAMPLES]
    batch = encoder.collate(rows)
    short, long = (len(row["input_ids"]) for row in rows)
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape == (2, long)
    assert batch["attention_mask"].sum(1).tolist() == [short, long]
    assert (batch["labels"][0, short:] == IGNORE_INDEX).all()


def test_a_tokenizer_without_an_end_token_is_refused() -> None:
    with pytest.raises(TrainingError, match="no end token"):
        ExampleTokenizer(SimpleNamespace(eos_token_id=None), PLAIN, is_encoder_decoder=False)


def test_the_loss_is_the_model_s_own() -> None:
    """The oracle is transformers: its loss over all logits, of which ours computes the learned ones alone."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=300, **sizes))
    encoder = ExampleTokenizer(tokenizer(), PLAIN, is_encoder_decoder=False)
    batch = encoder.collate([encoder.to_features(encoder.tokenize(example)) for example in EXAMPLES])
    theirs = model(**batch).loss
    patch_loss(model)
    ours = model(**batch)["loss"]
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    shared = model(**batch, num_items_in_batch=1000)["loss"]
    learned = int((batch["labels"] != IGNORE_INDEX).sum())
    assert shared.item() == pytest.approx(ours.item() * learned / 1000, rel=1e-5)
